"""The path of a request that finds its model in memory: what it may contain, what it counts, and what it holds."""

from __future__ import annotations

import dis
import gc
import inspect
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelsync.client.counting import VersionCounts
from modelsync.client.entry import Entry, predicting
from modelsync.client.hit import HitPath, hit_path
from modelsync.client.timing import Timer

_STEPS = {"LOAD_DEREF", "STORE_DEREF", "LOAD_CONST", "LOAD_FAST", "STORE_FAST", "BINARY_OP", "PUSH_NULL", "PRECALL"}
"""Bytecodes between which CPython 3.11 to 3.13 runs no other thread, no signal handler and no garbage collection."""
_STEPS |= {"IS_OP", "POP_JUMP_FORWARD_IF_FALSE", "POP_JUMP_IF_FALSE", "CACHE", "NOP", "RETURN_VALUE", "RETURN_CONST"}


class Model:
    def predict(self, X: Any) -> Any:
        if X is None:
            raise ValueError("the model's own")
        return X


def entry(model: Any = None) -> Entry:
    model = model or Model()
    return Entry(None, model, predicting("m", model), VersionCounts(1), 10)


def answering(made: Entry) -> HitPath:
    path = hit_path(made)
    made.begin(path.count, path.count())
    made.timer = Timer(made, path)
    made.timer.arm()
    return path


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """It is the last reference that frees, not the collector."""
    gc.disable()
    yield
    gc.enable()


def _between(function: Callable[..., Any], first: str, last: str) -> set[str]:
    """The bytecodes from where one variable is first touched to where another is last touched."""
    code = list(dis.get_instructions(function))
    begin = next(at for at, each in enumerate(code) if each.argval == first)
    end = max(at for at, each in enumerate(code) if each.argval == last)
    return {each.opname for each in code[begin : end + 1]}


def test_it_calls_nothing_but_the_model_and_waits_for_nothing() -> None:
    code = list(dis.get_instructions(hit_path(entry()).predict))
    assert sum(each.opname.startswith("CALL") for each in code) == 1
    assert not any(
        each.opname in ("BEFORE_WITH", "FOR_ITER", "JUMP_BACKWARD", "LOAD_ATTR", "LOAD_GLOBAL") for each in code
    )


def test_a_request_is_counted_and_finds_its_version_in_one_step_and_a_switch_is_one_too() -> None:
    path = hit_path(entry())
    assert _between(path.predict, "requests", "call") <= _STEPS
    assert _between(path.hold, "requests", "entry") <= _STEPS
    assert _between(path.switch, "entry", "requests") <= _STEPS
    assert _between(path.divert, "entry", "call") <= _STEPS


def test_each_handle_has_code_of_its_own_that_looks_like_a_function() -> None:
    one, other = hit_path(entry()).predict, hit_path(entry()).predict
    assert one.__code__ is not other.__code__  # type: ignore[attr-defined]
    assert list(inspect.signature(one).parameters) == ["X"]
    assert "active version" in (one.__doc__ or "")
    assert one(X=3) == 3


def test_every_request_is_counted_for_the_version_that_answered_it() -> None:
    """Threads ask and lease while another switches, at an interval at which they interrupt each other all the time."""

    def version(number: int) -> Entry:
        return Entry(None, number, lambda X: number, VersionCounts(number), 10)

    versions = [version(0)]
    path = hit_path(versions[0])
    versions[0].begin(path.count, 0)
    answers: list[Counter[int]] = []
    go_on = True

    def ask() -> None:
        seen: Counter[int] = Counter()
        answers.append(seen)
        while go_on:
            for _ in range(50):
                seen[path.predict(None)] += 1
                seen[path.hold().model] += 1

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1, 100):
            versions.append(version(number))
            requests = path.switch(versions[-1])
            versions[-2].end(requests)
            versions[-1].begin(path.count, requests)
            until = path.count() + 20
            while path.count() < until:
                pass
        go_on = False
        for thread in threads:
            thread.join()
    finally:
        go_on = False
        sys.setswitchinterval(interval_s)
    counted = {each.model: each.counts.requests for each in versions if each.counts and each.counts.requests}
    assert counted == dict(sum(answers, Counter()))
    assert len(counted) > 80


def test_timing_pauses_when_a_model_is_asked_often_and_what_was_skipped_is_weighed_in() -> None:
    made = entry()
    path, counts, timer = answering(made), made.counts, made.timer
    assert timer is not None and counts is not None
    for number in range(1000):
        assert path.predict(number) == number
    assert timer.paused
    timed = sum(counts.latency.counts)
    assert 8 <= timed < 100
    for number in range(50):
        path.predict(number)
    assert sum(counts.latency.counts) == timed
    timer.arm()
    assert not timer.paused
    for number in range(8):
        path.predict(number)
    assert 900 < sum(counts.latency.counts) <= 1100
    assert counts.requests == 1058


def test_a_timer_of_a_version_that_answers_no_more_diverts_nothing() -> None:
    old, new = entry(), entry(Model())
    path = answering(old)
    path.switch(new)
    assert old.timer is not None and old.counts is not None
    old.timer.arm()
    path.predict(1)
    assert sum(old.counts.latency.counts) == 0


def test_what_the_model_raises_is_timed_and_passes_through() -> None:
    made = entry()
    path = answering(made)
    with pytest.raises(ValueError, match="the model's own"):
        path.predict(None)
    assert made.counts is not None and sum(made.counts.latency.counts) == 1


@pytest.mark.usefixtures("_uncollected")
def test_a_version_is_freed_by_its_last_call_and_its_requests_stay_counted() -> None:
    made: list[Entry] = [entry()]
    seen, counts = weakref.ref(made[0]), made[0].counts
    freed_inside: list[bool] = []

    class Switching:
        """A model in the midst of whose call it is switched away."""

        def predict(self, X: Any) -> Any:
            made[0].end(path.switch(entry()))
            made.clear()
            freed_inside.append(seen() is None)

    made[0].model, made[0].direct = None, Switching().predict
    path = answering(made[0])
    path.predict(1)
    assert freed_inside == [False]
    assert seen() is None
    assert counts is not None and (counts.requests, counts.ended_requests) == (1, 1)


def test_a_function_is_a_model_and_data_is_not() -> None:
    assert predicting("m", lambda X: X + 1)(1) == 2
    assert predicting("m", Model())(5) == 5
