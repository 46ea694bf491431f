"""Where calls run, who waits, who is refused; and requests that are run together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from modelsync.serve import batching, lanes
from modelsync.serve.batching import Batcher
from modelsync.serve.faults import BadTensor, ModelBusy, ServerBusy
from modelsync.serve.lanes import Lanes
from modelsync.serve.settings import Batching
from modelsync.serve.tensors import Tensor


class Gate:
    """A call that lasts until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.go.wait(10)
        with self._lock:
            self.running -= 1
        return threading.get_ident()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_one_model_takes_half_of_the_threads_and_others_go_on() -> None:
    slow, room = Gate(), Lanes(threads=4, queue=100)
    slow_calls = [asyncio.create_task(room.run("slow", 1, slow)) for _ in range(10)]
    await settled()
    assert slow.running == 2
    assert room.waiting == 8
    assert await room.run("other", 1, lambda: "answered") == "answered"
    slow.go.set()
    await asyncio.gather(*slow_calls)
    assert slow.most == 2
    assert room.waiting == 0
    room.close()


async def test_too_many_of_one_model_and_too_many_at_all() -> None:
    slow, room = Gate(), Lanes(threads=2, queue=4)
    calls = [asyncio.create_task(room.run(name, 1, slow)) for name in ("a", "a", "a", "b", "b", "b")]
    await settled()
    assert (slow.running, room.waiting) == (2, 4)
    with pytest.raises(ServerBusy) as full:
        await room.run("a", 1, slow)
    assert full.value.status == 503
    calls[5].cancel()
    await settled()
    assert room.waiting == 3
    with pytest.raises(ModelBusy) as busy:
        await room.run("a", 1, slow)
    assert busy.value.status == 429
    slow.go.set()
    await asyncio.gather(*calls, return_exceptions=True)
    room.close()


async def test_a_place_whose_waiter_left_goes_to_the_next() -> None:
    slow, room = Gate(), Lanes(threads=2, queue=10)
    calls = [asyncio.create_task(room.run("a", 1, slow)) for _ in range(3)]
    await settled()
    slow.go.set()
    await calls[0]
    calls[1].cancel()  # its turn may have come at this very moment
    await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(await room.run("a", 1, slow), int)
    room.close()


async def test_a_quick_model_is_run_on_the_loop_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    here, room = threading.get_ident(), Lanes(threads=2, queue=10)
    cost_s = 0.0001
    monkeypatch.setattr(lanes.time, "thread_time", iter(np.arange(0, 100, cost_s)).__next__)
    monkeypatch.setattr(lanes.time, "perf_counter", iter(np.arange(0, 100, cost_s)).__next__)
    assert await room.run("quick", 1, threading.get_ident) != here  # not known yet
    assert await room.run("quick", 1, threading.get_ident) == here
    assert await room.run("quick", 50, threading.get_ident) != here  # fifty rows are expected to take too long
    assert await room.run("quick", 60, threading.get_ident) == here  # and were seen not to
    assert await room.run("quick", 600, threading.get_ident) != here
    assert await room.run("quick", 2, threading.get_ident) == here  # no longer than one of more rows
    monkeypatch.setattr(lanes.time, "thread_time", iter(np.arange(0, 100, 0.01)).__next__)
    assert await room.run("slow", 1, threading.get_ident) != here
    assert await room.run("slow", 1, threading.get_ident) != here
    room.close()


async def test_a_model_that_blocks_the_loop_goes_to_the_threads_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own processor time is nothing: it waits for threads of its own, which only the clock shows."""
    here, room, clock = threading.get_ident(), Lanes(threads=2, queue=10), iter(np.arange(0, 1e6, 0.05))
    monkeypatch.setattr(lanes.time, "thread_time", lambda: 0.0)
    monkeypatch.setattr(lanes.time, "perf_counter", clock.__next__)
    inline = sum([await room.run("joblib", 1, threading.get_ident) == here for _ in range(3000)])
    assert inline == 4  # the first call was in the threads, and late as well
    room.close()


async def test_a_quick_model_comes_back_to_the_loop_when_its_host_was_only_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, room, now_s = threading.get_ident(), Lanes(threads=2, queue=10), [0.0]
    step_s = [0.05]

    def clock() -> float:
        now_s[0] += step_s[0]
        return now_s[0]

    monkeypatch.setattr(lanes.time, "thread_time", lambda: 0.0)
    monkeypatch.setattr(lanes.time, "perf_counter", clock)
    for _ in range(20):
        await room.run("m", 1, threading.get_ident)
    assert await room.run("m", 1, threading.get_ident) != here
    step_s[0] = 0.0001
    assert here not in [await room.run("m", 1, threading.get_ident) for _ in range(90)]
    for _ in range(20):
        await room.run("m", 1, threading.get_ident)
    assert {await room.run("m", 1, threading.get_ident) for _ in range(20)} == {here}
    room.close()


async def test_a_model_that_is_late_beside_a_load_stays_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the load that makes it late, and would in the threads, too."""
    loads = [True]
    here, room = threading.get_ident(), Lanes(threads=2, queue=10, loading=lambda: loads[0])
    clock = iter(np.arange(0, 1e6, 0.05))
    monkeypatch.setattr(lanes.time, "thread_time", lambda: 0.0)
    await room.run("m", 1, threading.get_ident)  # the first is in the threads
    monkeypatch.setattr(lanes.time, "perf_counter", clock.__next__)
    assert {await room.run("m", 1, threading.get_ident) for _ in range(50)} == {here}
    loads[0] = False
    assert sum([await room.run("m", 1, threading.get_ident) == here for _ in range(50)]) == 5
    room.close()


async def test_what_a_call_raises_is_raised_and_frees_its_place() -> None:
    room = Lanes(threads=2, queue=10)
    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            await room.run("a", 1, lambda: 1 // 0)
    room.close()


# --- batches ---------------------------------------------------------------------------------------------------------


def inputs(*values: float) -> list[Tensor]:
    return [Tensor("x", "FP64", np.array(values).reshape(-1, 1))]


class Doubler:
    """Counts calls and their rows; refuses negative numbers."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        array = given[0].array
        self.calls.append(len(array))
        await asyncio.sleep(0)
        if (array < 0).any():
            raise BadTensor(tensor="x", reason="negative")
        return [Tensor("y", "FP64", array[:, 0] * 2)]


async def test_requests_of_one_moment_are_one_call() -> None:
    run, batcher = Doubler(), Batcher()
    requests = [batcher.run("k", Batching(8, 0.01), inputs(n, n + 0.5), run) for n in range(3)]
    answers = await asyncio.gather(*requests)
    assert run.calls == [6]
    assert [answer[0].array.tolist() for answer in answers] == [[0, 1], [2, 3], [4, 5]]


async def test_where_nothing_may_wait_what_has_come_is_one_call() -> None:
    run, batcher = Doubler(), Batcher()
    settings = Batching(64, 0.0)
    first = [asyncio.create_task(batcher.run("k", settings, inputs(n), run)) for n in (1, 2, 3)]
    for _ in range(5):
        await asyncio.sleep(0)
    late = asyncio.create_task(batcher.run("k", settings, inputs(4), run))
    answers = await asyncio.gather(*first, late)
    assert run.calls == [3, 1]
    assert [answer[0].array.tolist() for answer in answers] == [[2], [4], [6], [8]]


async def test_a_full_batch_does_not_wait_and_a_too_full_one_is_two() -> None:
    run, batcher = Doubler(), Batcher()
    settings = Batching(4, 3600)
    first = [asyncio.create_task(batcher.run("k", settings, inputs(1, 2, 3), run))]
    await asyncio.sleep(0)
    full = [asyncio.create_task(batcher.run("k", settings, inputs(4, 5), run)) for _ in range(2)]
    await asyncio.gather(*first, *full)
    assert sorted(run.calls) == [3, 4]


async def test_one_bad_request_fails_alone() -> None:
    run, batcher = Doubler(), Batcher()
    settings = Batching(8, 0.01)
    good, bad, other = await asyncio.gather(
        *(batcher.run("k", settings, inputs(value), run) for value in (1, -1, 2)), return_exceptions=True
    )
    assert isinstance(bad, BadTensor)
    assert [answer[0].array.tolist() for answer in (good, other)] == [[2], [4]]  # type: ignore[index, union-attr]
    assert run.calls == [3, 1, 1, 1]


async def test_keys_are_not_mixed_and_senders_that_left_are_not_run() -> None:
    run, batcher = Doubler(), Batcher()
    settings = Batching(8, 0.01)
    gone = asyncio.create_task(batcher.run("a", settings, inputs(1), run))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(batcher.run("a", settings, inputs(1), run), batcher.run("b", settings, inputs(1), run))
    assert run.calls == [1, 1]


def test_what_may_stand_below_one_another() -> None:
    table = Tensor("x", "FP64", np.zeros((3, 4)))
    assert batching.key_of([table]) == batching.key_of([Tensor("x", "FP64", np.zeros((1, 4)))])
    assert batching.key_of([table]) != batching.key_of([Tensor("x", "FP32", np.zeros((3, 4), "f4"))])
    assert batching.key_of([table]) != batching.key_of([Tensor("x", "FP64", np.zeros((3, 5)))])
    assert batching.key_of([]) is None
    assert batching.key_of([Tensor("x", "FP64", np.array(1.0))]) is None
    assert batching.key_of([table, Tensor("y", "FP64", np.zeros(2))]) is None
    assert batching.split([Tensor("y", "FP64", np.zeros(5))], [2, 2]) is None
