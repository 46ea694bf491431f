"""What is in memory, who may come in, and who leaves for it. Orders what ``eviction`` decides; off the hit path.

The rule, in words: models leave until the newcomer will fit; then it comes in as soon as what is in memory now is
within the budget. So the budget is exceeded by at most one model, and only while a swap keeps two versions, or all else
is in use.

A call tells nobody when it ends, it just holds its version. So whether a model is in use is found out by letting go of
it: what is still there then is in use, and comes back.

What left takes memory until the C library has returned it to the system, and counts as long; so whoever let it go has
it returned before another model comes in its place, however many threads load.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

from modelsync.client.entry import Entry
from modelsync.client.eviction import Resident, admit
from modelsync.client.giving_back import heaps
from modelsync.client.handle import Handle
from modelsync.client.pacing import UNWAITED_REST, Pace
from modelsync.client.taking_apart import Remains
from modelsync.client.timing import Timer
from modelsync.core.errors import BudgetExceeded

PATIENCE_S = 30.0
"""How long a load waits for room: calls end in milliseconds, swaps in seconds; longer leases are somebody's plan."""
_TRIM_BYTES = 1 << 20
"""What must have left for the heaps of all threads to be looked through for memory that the system can have back; less
is not counted either."""
_LOOK_S = 0.02
"""Between two looks while waiting: the hit path tells nobody when it ends."""


class Memory:
    """The residents of one client. Every method takes the client's lock, which is handed in."""

    def __init__(self, budget_bytes: int | None, lock: threading.Condition) -> None:
        self.budget_bytes = budget_bytes
        self.lock = lock
        self.pinned: set[str] = set()
        self.evictions = 0
        self._residents: dict[Handle, None] = {}
        """In the order in which they came."""
        self._leaving: list[tuple[weakref.ref[Entry], int]] = []
        """Old versions that may be in use still, and their sizes."""
        self._remains: list[Remains] = []
        self._freed_bytes = 0
        """Of what has left, and nobody has begun to return to the system."""
        self._returning_bytes = 0
        self._reserved_bytes = 0
        self._sweep = 0

    def occupied_bytes(self) -> int:
        """Residents, loads under way, old versions that calls or leases still hold, and what is being returned."""
        with self.lock:
            return self._needed_bytes() + self._unreturned_bytes()

    def _needed_bytes(self) -> int:
        """What takes memory because somebody wants it."""
        held_bytes = sum(size_bytes for entry, size_bytes in self._leaving if entry() is not None)
        return sum(self._size_bytes(handle) for handle in self._residents) + held_bytes + self._reserved_bytes

    def _unreturned_bytes(self) -> int:
        """What will be the system's again in a moment."""
        return self._returning_bytes + (self._freed_bytes if self._freed_bytes >= _TRIM_BYTES else 0)

    def residents(self) -> Iterator[Handle]:
        yield from list(self._residents)

    def timers(self) -> Iterator[Timer]:
        """The timers of what is in memory."""
        for handle in self.residents():
            timer = handle._entry.timer
            if timer is not None:
                yield timer

    def _size_bytes(self, handle: Handle | None) -> int:
        return handle._entry.size_bytes if handle in self._residents else 0

    def reserve(self, handle: Handle, needed_bytes: int, *, replace: bool) -> None:
        """Make room for a load. Raises BudgetExceeded: it can never fit, or nothing left within PATIENCE_S.

        Args:
            replace: the handle's old version may leave first if both do not fit; its callers then wait.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        self._refuse_the_impossible(handle, needed_bytes)
        while not self._try_reserve(handle, needed_bytes, replace):
            if time.monotonic() > deadline_s:
                reason = f"{handle.name} needs {needed_bytes:,} bytes; all in memory is leased, pinned or loading"
                raise BudgetExceeded(reason=reason)
            if not self.clear():
                with self.lock:
                    self.lock.wait(_LOOK_S)
        self.clear()

    def _refuse_the_impossible(self, handle: Handle, needed_bytes: int) -> None:
        if self.budget_bytes is not None and needed_bytes > self.budget_bytes:
            reason = f"{handle.name} needs {needed_bytes:,} bytes, budget_bytes is {self.budget_bytes:,}: raise it"
            raise BudgetExceeded(reason=reason)

    def _try_reserve(self, handle: Handle, needed_bytes: int, replace: bool) -> bool:
        with self.lock:
            if self.budget_bytes is not None:
                if replace and handle in self._residents and self._needed_bytes() + needed_bytes > self.budget_bytes:
                    self.drop(handle)
                self._make_room(handle, needed_bytes, self.budget_bytes)
                if self.occupied_bytes() > self.budget_bytes:
                    return False
            self._reserved_bytes += needed_bytes
            return True

    def _make_room(self, newcomer: Handle | None, needed_bytes: int, budget_bytes: int) -> None:
        """Let models leave until the newcomer fits in the place of its own old version, or all others are in use."""
        self._sweep += 1
        rated = [self._rated(handle) for handle in self._residents if handle is not newcomer]
        stayed = True
        while stayed:
            steady_bytes = self._needed_bytes() - self._size_bytes(newcomer)
            victims = admit(rated, steady_bytes, needed_bytes, budget_bytes).victims
            stayed = not all([self._evict(victim) for victim in victims])
            gone_or_used = set(victims)
            rated = [each for each in rated if each.key not in gone_or_used]

    def _rated(self, handle: Handle) -> Resident[Handle]:
        entry = handle._entry
        uses = entry.swept(self._sweep)
        return Resident(handle, entry.size_bytes, entry.stamp, uses, bool(entry.leases) or handle.name in self.pinned)

    def _evict(self, handle: Handle) -> bool:
        """Let an idle model go. One that a call holds would keep its memory: it stays, and the answer is False."""
        entry = handle._entry
        counts, age_s, seen = entry.counts, time.monotonic() - entry.loaded_s, weakref.ref(entry)
        remains, size_bytes = Remains(entry), entry.size_bytes
        del entry
        handle._empty()
        used = seen()
        if used is not None:
            handle._switch(used)
            return False
        del self._residents[handle]
        self._remains.append(remains)
        self._freed_bytes += size_bytes
        self.evictions += 1
        if counts is not None:
            counts.evicted(age_s)
            counts.size_bytes = 0
        return True

    def unreserve(self, needed_bytes: int) -> None:
        """A load ended, well or not."""
        with self.lock:
            self._reserved_bytes -= needed_bytes
            self.lock.notify_all()

    def put(self, handle: Handle, entry: Entry) -> None:
        """Let a loaded version answer from now on; the one before leaves once nobody holds it."""
        with self.lock:
            self._sweep += 1
            entry.stamp = self._sweep  # newer than all that was used before its load began
            self._leave(handle)
            self._residents[handle] = None
            handle._switch(entry)
            self.lock.notify_all()

    def drop(self, handle: Handle) -> None:
        """Let a handle's version leave; its next request loads again."""
        with self.lock:
            self._leave(handle)
            handle._empty()
            self.lock.notify_all()

    def _leave(self, handle: Handle) -> None:
        if handle not in self._residents:
            return
        del self._residents[handle]
        entry = handle._entry
        if entry.counts is not None:
            entry.counts.size_bytes = 0
        self._leaving.append((weakref.ref(entry), entry.size_bytes))
        self._remains.append(Remains(entry))

    def settle(self) -> None:
        """Come back within the budget after a swap or a load that had to exceed it."""
        with self.lock:
            if self.budget_bytes is not None and self._needed_bytes() > self.budget_bytes:
                self._make_room(None, 0, self.budget_bytes)
        self.clear()

    def clear(self) -> bool:
        """Free what has left, and return it to the system; whether there was any.

        It takes its time and must not have the lock, which misses wait for.
        """
        with self.lock:
            self._notice_the_gone()
            remains, self._remains = self._remains, []
            freed_bytes = self._freed_bytes if self._freed_bytes >= _TRIM_BYTES else 0
            self._freed_bytes -= freed_bytes
            self._returning_bytes += freed_bytes
        if remains:
            pace = self.pace(UNWAITED_REST)
            for each in remains:
                each.free(pace.stand_back)
        if freed_bytes:
            heaps.give_back()
            with self.lock:
                self._returning_bytes -= freed_bytes
                self.lock.notify_all()
        return freed_bytes > 0

    def _notice_the_gone(self) -> None:
        """Of old versions, those that nobody holds any more."""
        leaving, self._leaving = self._leaving, []
        for entry, size_bytes in leaving:
            if entry() is not None:
                self._leaving.append((entry, size_bytes))
            else:
                self._freed_bytes += size_bytes

    def pace(self, rest: float) -> Pace:
        """For a thread that works beside requests for what is in memory."""
        return Pace(lambda: sum(handle._path.count() for handle in self.residents()), rest)

    def restart_in_child(self) -> None:
        """In a forked child: the leases and loads that were under way belong to threads of the parent."""
        for handle in self._residents:
            handle._entry.leases = 0
        self._reserved_bytes = self._returning_bytes = 0
