"""Follows what ``current`` means: a model that is in memory, or pinned, is loaded anew when it is switched.

The thread is `watching`'s; what it sees is judged here. It also closes the ledger's buckets and resumes timing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Mapping
from typing import Any

from modelsync.client.entry import Entry
from modelsync.client.flights import Flights
from modelsync.client.handle import Handle
from modelsync.client.ledger import Ledger
from modelsync.client.memory import Memory
from modelsync.client.offers import Offers
from modelsync.client.renewal import Renewal
from modelsync.client.watching import Watching
from modelsync.core.errors import ClientClosed

_REARM_S = 0.05
"""How often timing is resumed for models with more than 500 requests a second."""


class Following:
    """Follows for one client.

    Args:
        handles: the client's, by name and wanted version; only those without a version follow.
    """

    def __init__(
        self,
        lock: threading.Condition,
        offers: Offers,
        handles: Mapping[tuple[str, int | None], Handle],
        memory: Memory,
        flights: Flights,
        renewal: Renewal,
        ledger: Ledger,
        poll_s: float,
    ) -> None:
        self._lock = lock
        self._offers, self._handles, self._memory = offers, handles, memory
        self._flights, self._renewal, self._ledger = flights, renewal, ledger
        self._poll_s = poll_s
        self._watching: Watching | None = None
        self.waits = False
        """Whether to begin in processes that are forked from this one, and in this one once it is asked anything."""

    @property
    def mode(self) -> str:
        """``inotify``, ``poll``, or ``off``."""
        return self._watching.mode if self._watching is not None else "off"

    def start(self) -> None:
        """Follow from now on, whatever has a handle already too."""
        self.waits = False
        watching = self._watching = Watching(self._offers.live_dir, self._changed, self._tick, self._poll_s)
        for name, wanted in self._handles:
            if wanted is None:
                watching.add(name)
        watching.start()

    def wait(self) -> None:
        """Begin when the first request comes, or in a child that is forked."""
        self.waits = True
        for handle in self._handles.values():
            if handle.resident:
                handle._path.divert(handle._entry, functools.partial(self._first, handle._entry))

    def asked(self) -> None:
        """A request came: this is no process that only forks others."""
        with self._lock:
            if self.waits and self._watching is None and not self._flights.closed:
                self.start()

    def add(self, handle: Handle) -> None:
        """Follow one more model."""
        if self._watching is not None and handle.wanted is None:
            self._watching.add(handle.name)

    def look(self, handle: Handle) -> None:
        """Begin to load what ``current`` means, if that is not what is in memory and anybody needs it there."""
        if handle.wanted is not None or self._watching is None or self._flights.closed:
            return
        resident = handle.resident  # read once: it may be unloaded from one line to the next
        if not (resident or handle.name in self._memory.pinned) or handle in self._flights:
            return  # its next request, or the end of the load, looks again
        identity = self._offers.identity(handle.name)
        if not identity or (identity == handle._identity and resident):
            return
        if self._renewal.may_try(handle, identity):
            with contextlib.suppress(ClientClosed, RuntimeError):  # closed meanwhile
                self._flights.begin(handle, asked=False)

    def close(self) -> None:
        if self._watching is not None:
            self._watching.close()

    def restart_in_child(self) -> None:
        """In a forked child, which has no thread of its parent's."""
        follows = self._watching is not None or self.waits
        if self._watching is not None:
            self._watching.abandon()
        if follows:
            self.start()

    def _first(self, entry: Entry, X: Any) -> Any:
        """Stands in the place of what is called, until the first request."""
        self.asked()
        if entry.timer is not None:
            entry.timer.arm()
        return entry.direct(X)

    def _changed(self, name: str) -> None:
        handle = self._handles.get((name, None))
        if handle is not None:
            self.look(handle)

    def _tick(self) -> float:
        """Close the bucket when its time is over and resume timing; returns when to be called again, in seconds."""
        until_bucket_s = self._ledger.tick(time.time())
        paused = [timer for timer in self._memory.timers() if timer.paused]
        for timer in paused:
            timer.arm()
        return min(until_bucket_s, _REARM_S) if paused else until_bucket_s
