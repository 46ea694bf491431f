"""Lets a load stand back behind requests: it works in slices of a fraction of a millisecond and sleeps after each.

While it sleeps it has neither Python's lock nor a processor, so nobody waits for either; a thread of low priority may
be put off while it holds the lock, and everybody with it. Only while this client's models are being asked: a load
beside which nobody is served takes no breath (decisions/, "a load beside requests").
"""

from __future__ import annotations

import time
from collections.abc import Callable

SLICE_S = 0.0002
"""Of processor time between two sleeps: a request that comes meanwhile waits at most so long, and it is well above what
a sleep costs. Objects that take longer to build are not divided; of a forest's they are one in a thousand."""
WAITED_REST = 1.0
"""Sleep for each second of work, where requests wait for the load: it takes at most twice as long."""
UNWAITED_REST = 3.0
"""Where the version before answers meanwhile, or what is done is freeing memory."""
LONGEST_S = 0.05
"""Of a piece of work that is made good by sleep; beyond it there is nobody left who waited."""
ASKED_S = 1.0
"""A model that was asked so lately is being served."""
_LOOK_S = 0.002
"""Between two looks whether anybody is asked: counting thousands of models costs a tenth of a millisecond."""


class Pace:
    """The pace of one load, on the thread that loads.

    Args:
        asked: how many requests were answered from memory so far.
        rest: seconds of sleep for each second of work.
        clock_s: a monotonic clock in seconds.
        worked_s: this thread's processor time in seconds; waiting for others' bytes, or for requests, is no work.
    """

    def __init__(
        self,
        asked: Callable[[], int],
        rest: float,
        clock_s: Callable[[], float] = time.perf_counter,
        worked_s: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._asked, self._rest = asked, rest
        self._clock_s, self._worked_s, self._sleep = clock_s, worked_s, sleep
        self._seen = asked()
        self._looked_s = self._checked_s = self._asked_until_s = clock_s()
        self._rested_s = worked_s()

    def stand_back(self) -> None:
        """Call between any two pieces of work: sleeps when a slice is over and somebody is being served."""
        now_s = self._clock_s()
        if now_s - self._checked_s < SLICE_S / 2:
            return  # asking for the processor time is a system call
        self._checked_s = now_s
        if now_s - self._looked_s >= _LOOK_S:
            self._look(now_s)
        worked_s = self._worked_s()
        if worked_s - self._rested_s < SLICE_S:
            return
        if now_s < self._asked_until_s:
            self._sleep(min(worked_s - self._rested_s, LONGEST_S) * self._rest)
            self._checked_s = self._clock_s()
        self._rested_s = worked_s

    def _look(self, now_s: float) -> None:
        self._looked_s = now_s
        asked = self._asked()
        if asked != self._seen:
            self._seen = asked
            self._asked_until_s = now_s + ASKED_S
