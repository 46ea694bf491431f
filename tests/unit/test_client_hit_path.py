"""The path of a request that finds its model in memory: what it may contain, read from its own bytecode."""

from __future__ import annotations

import dis
import gc
import weakref
from typing import Any

from modelsync.client.counting import VersionCounts
from modelsync.client.handle import Entry, Handle, Timer, predicting


def test_it_calls_nothing_but_the_model() -> None:
    code = list(dis.get_instructions(Handle.predict))
    calls = [each for each in code if each.opname.startswith("CALL")]
    names = {each.argval for each in code if each.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "STORE_ATTR")}
    assert len(calls) == 1
    assert names == {"_entry", "started", "call", "ended"}
    assert not any(each.opname in ("BEFORE_WITH", "FOR_ITER", "JUMP_BACKWARD") for each in code)


class Model:
    def predict(self, X: Any) -> Any:
        if X is None:
            raise ValueError("the model's own")
        return X


def entry(model: Any = None) -> Entry:
    model = model or Model()
    made = Entry(None, model, predicting("m", model), VersionCounts(1), 10)
    made.timer = Timer(made)
    return made


def answers(made: Entry, count: int) -> None:
    for number in range(count):
        made.started += 1
        assert made.call(number) == number
        made.ended += 1


def test_timing_pauses_when_a_model_is_asked_often_and_what_was_skipped_is_weighed_in() -> None:
    made = entry()
    assert made.timer is not None and made.counts is not None
    answers(made, 1000)
    assert made.timer.paused() and made.call == made.direct
    timed = sum(made.counts.latency.counts)
    assert 8 <= timed < 100
    made.timer.arm()
    assert not made.timer.paused()
    answers(made, 8)
    assert 900 < sum(made.counts.latency.counts) <= 1100


def test_what_the_model_raises_is_timed_and_passes_through() -> None:
    made = entry()
    try:
        made.call(None)
    except ValueError:
        pass
    else:
        raise AssertionError("swallowed")
    assert made.counts is not None and sum(made.counts.latency.counts) == 1


def test_an_entry_is_freed_by_its_last_reference_and_its_requests_stay_counted() -> None:
    gc.disable()
    try:
        made = entry()
        counts, seen = made.counts, weakref.ref(made.model)
        answers(made, 20)
        del made
        assert seen() is None
        assert counts is not None and (counts.requests, counts.ended_requests) == (20, 20)
    finally:
        gc.enable()


def test_a_function_is_a_model_and_data_is_not() -> None:
    assert predicting("m", lambda X: X + 1)(1) == 2
    assert predicting("m", Model())(5) == 5
