"""Where inference runs: a few threads, shared so that no model can take them all, and a bounded queue before them.

A call that has been short so far runs on the event loop itself: for a model that answers in a fraction of a millisecond
the way to a thread and back costs more than the answer (decisions/, "inference over HTTP"). How long a call may take
there is bounded by what was seen of the same model, so one that is slow goes to the threads and stays there.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from modelsync.serve.faults import ModelBusy, ServerBusy

_T = TypeVar("_T")

INLINE_S = 0.001
"""The longest that a call on the loop is expected to keep others waiting: what parsing a request may take, too."""
_FORGET = 0.98
"""A slow call is half forgotten after 34 quick ones: one hiccup does not send a model to the threads for good."""
_STRIKE_S = 5 * INLINE_S
"""An inline call that took this long by the clock waited for threads of its own, or the host was busy. While a model is
loaded it tells nothing: the way to a thread and back waits for the same processors, and twice."""
_STRIKES = 5.0
"""After as many the model is in the threads until it is forgiven one, a hundred calls in time; of one that is late in
each hundredth call, or oftener, none ever is."""
_FORGIVEN = 0.01
"""Of a strike, by each call in time: a busy host is late once in a while, a blocking model each time, wherever it runs.
"""


@dataclass
class _Lane:
    """One model's calls."""

    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    running: int = 0
    call_s: dict[int, float] = field(default_factory=dict)
    """What calls were seen to take at worst, decaying, by the binary digits of their rows: most of a short call does
    not grow with its rows, so sixteen requests that are run together are no sixteen times as long."""
    strikes: float = 0.0
    aside: bool = False
    """Whether it was late too often to be run on the loop."""

    def expected_s(self, rows: int) -> float:
        """Infinite for a model that was not yet seen: it begins in the threads."""
        digits = rows.bit_length()
        if digits in self.call_s:
            return self.call_s[digits]
        fewer = [each for each in self.call_s if each < digits]
        if fewer:
            return self.call_s[max(fewer)] * float(1 << digits - max(fewer))
        return min((self.call_s[each] for each in self.call_s), default=math.inf)

    def note(self, rows: int, took_s: float) -> None:
        digits = rows.bit_length()
        self.call_s[digits] = max(took_s, self.call_s.get(digits, 0.0) * _FORGET)

    def timed(self, rows: int, call: Callable[[], _T], excused: Callable[[], bool]) -> _T:
        """Run a call and note how it went.

        Args:
            excused: whether others than the model are to blame if it was late.
        """
        started_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            return call()
        finally:
            late = time.perf_counter() - started_s > _STRIKE_S and not excused()
            self.strikes = min(_STRIKES, self.strikes + 1) if late else max(0.0, self.strikes - _FORGIVEN)
            self.aside = self.strikes >= _STRIKES or (self.aside and self.strikes > _STRIKES - 1)
            # This thread's processor time: by the clock a call waits for the interpreter as long as others are busy.
            self.note(rows, time.thread_time() - cpu_s)


class Lanes:
    """Runs calls, model by model in order of arrival.

    Args:
        threads: that infer; half of them, at least one, for any one model.
        queue: calls that may wait; half of them, at least one, for any one model.
        loading: whether a model is being loaded in this process.
    """

    def __init__(self, threads: int, queue: int, loading: Callable[[], bool] = lambda: False) -> None:
        self._loading = loading
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="infer")
        self._share = max(1, threads // 2)
        self._queue = queue
        self._queue_share = max(1, queue // 2)
        self._lanes: dict[str, _Lane] = {}
        self.waiting = 0

    async def run(self, model: str, rows: int, call: Callable[[], _T]) -> _T:
        """Run a blocking call for a model, now or when its turn comes.

        Args:
            rows: how much work the call is, in units that the model's calls share; at least 1.
        Raises:
            ModelBusy, ServerBusy: too many wait already. Whatever the call raises.
        """
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes.setdefault(model, _Lane())
        if lane.expected_s(rows) < INLINE_S and not lane.aside:
            return lane.timed(rows, call, self._loading)
        await self._turn(model, lane)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, lane.timed, rows, call, self._loading
            )
        finally:
            self._leave(lane)

    def close(self) -> None:
        """Wait for running calls."""
        self._executor.shutdown(cancel_futures=True)

    async def _turn(self, model: str, lane: _Lane) -> None:
        """Take one of the model's places, or wait until one is handed on."""
        if lane.running < self._share:
            lane.running += 1
            return
        if self.waiting >= self._queue:
            raise ServerBusy(reason=f"{self.waiting} requests wait")
        if len(lane.waiting) >= self._queue_share:
            raise ModelBusy(model=model, waiting=len(lane.waiting))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append(turn)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(lane)  # the place was handed over just now: it goes to the one behind
            raise
        finally:
            self.waiting -= 1

    @staticmethod
    def _leave(lane: _Lane) -> None:
        """Hand the place on to the longest waiting; ``running`` counts the place, whoever has it."""
        while lane.waiting:
            turn = lane.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        lane.running -= 1
