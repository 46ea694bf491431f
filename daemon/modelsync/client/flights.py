"""Loads that are under way: one of a model at a time, however many wait for it, on threads of their own.

This file knows who waits for what. How a model is loaded is `renewal`'s, and handed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from modelsync.client.entry import Entry
from modelsync.client.handle import Handle
from modelsync.client.ledger import Ledger
from modelsync.client.loaders.contract import Progress
from modelsync.client.swaps import Swap
from modelsync.core.errors import ClientClosed

Load = Callable[[Handle, Progress], tuple[Entry, Swap | None]]
Landed = Callable[[Handle, Swap | None], None]


class Followers(list[Progress]):
    """Those who follow a load. A model in shards keeps them, so they must not lead back to it."""

    def tell(self, done_bytes: int, all_bytes: int) -> None:
        for each in self:
            each(done_bytes, all_bytes)


@dataclass(eq=False, slots=True)
class Flight:
    """One load, and all who wait for it."""

    future: Future[Entry] = field(default_factory=Future)
    followers: Followers = field(default_factory=Followers)
    begun: bool = False

    def follower(self) -> Future[None]:
        """A future that ends with this load; cancelling it does not cancel the load."""
        follower: Future[None] = Future()

        def follow(ended: Future[Entry]) -> None:
            if not follower.set_running_or_notify_cancel():
                return
            error = ended.exception()
            if error is not None:
                follower.set_exception(error)
            else:
                follower.set_result(None)

        self.future.add_done_callback(follow)
        return follower


class Flights:
    """The loads of one client.

    Args:
        lock: the client's.
        load: loads what a handle should be now and lets it answer; on any thread.
        landed: called after those who waited were told, on the thread that loaded; must not raise.
    """

    def __init__(self, lock: threading.Condition, workers: int, ledger: Ledger, load: Load, landed: Landed) -> None:
        self._lock = lock
        self._workers = workers
        self._ledger = ledger
        self._load, self._landed = load, landed
        self._flights: dict[Handle, Flight] = {}
        self._inside = threading.local()
        self._executor = self._new_executor()
        self.closed = False

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, handle: Handle) -> bool:
        return handle in self._flights

    def begin(self, handle: Handle, progress: Progress | None = None, *, asked: bool = True) -> Flight:
        """Begin a load, or join the one that is under way. Raises ClientClosed.

        Args:
            asked: somebody will wait for it, who is counted if another began it.
        """
        with self._lock:
            self.require_open()
            flight = self._flights.get(handle)
            if flight is None:
                flight = self._flights[handle] = Flight()
                if not (asked and self._is_inside):
                    self._executor.submit(self._fly, handle)
            elif asked:
                self._ledger.of(handle.name).coalesced += 1
            if progress is not None:
                flight.followers.append(progress)
        if asked and self._is_inside:
            self._fly(handle)  # a callback or loader of ours asks: waiting for another worker could be for ever
        return flight

    def require_open(self) -> None:
        if self.closed:
            raise ClientClosed()

    def close(self) -> None:
        """Let loads under way end, and tell all others who wait that there will be none."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for flight in self._flights.values():
                if not flight.future.done():
                    flight.future.set_exception(ClientClosed())
            self._flights.clear()

    def restart_in_child(self) -> None:
        """In a forked child: no thread of the parent's is here. Loads that were under way begin again when asked."""
        self._flights.clear()
        self._inside = threading.local()
        self._executor = self._new_executor()

    # --- the threads that load --------------------------------------------------------------------------------------

    @property
    def _is_inside(self) -> bool:
        return getattr(self._inside, "worker", False)

    def _fly(self, handle: Handle) -> None:
        flight = self._take(handle)
        if flight is None:
            return  # another thread flies it, or has
        was_inside, self._inside.worker = self._is_inside, True
        try:
            swap = self._told(handle, flight)
            del flight  # it leads to the version, which must be free to go while callbacks run
            self._landed(handle, swap)
        finally:
            self._inside.worker = was_inside

    def _take(self, handle: Handle) -> Flight | None:
        with self._lock:
            flight = self._flights.get(handle)
            if flight is None or flight.begun:
                return None
            flight.begun = True
            return flight

    def _told(self, handle: Handle, flight: Flight) -> Swap | None:
        try:
            entry, swap = self._load(handle, flight.followers.tell)
        except BaseException as error:
            self._end(handle, flight)
            flight.future.set_exception(error)
            return None
        self._end(handle, flight)
        flight.future.set_result(entry)
        return swap

    def _end(self, handle: Handle, flight: Flight) -> None:
        with self._lock:
            if self._flights.get(handle) is flight:
                del self._flights[handle]

    def _new_executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, thread_name_prefix="modelsync-load")
