"""Follows what ``current`` means: a model that is in memory, or pinned, is loaded anew when it is switched.

The thread is `watching`'s; what it sees is judged here. It also closes the ledger's buckets and resumes timing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

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
        in_children: follow in processes that are forked from this one, though not in this one.
    """

    def __init__(
        self,
        offers: Offers,
        handles: Mapping[tuple[str, int | None], Handle],
        memory: Memory,
        flights: Flights,
        renewal: Renewal,
        ledger: Ledger,
        poll_s: float,
    ) -> None:
        self._offers, self._handles, self._memory = offers, handles, memory
        self._flights, self._renewal, self._ledger = flights, renewal, ledger
        self._poll_s = poll_s
        self._watching: Watching | None = None
        self.in_children = False

    @property
    def mode(self) -> str:
        """``inotify``, ``poll``, or ``off``."""
        return self._watching.mode if self._watching is not None else "off"

    def start(self) -> None:
        """Follow from now on, whatever has a handle already too."""
        watching = self._watching = Watching(self._offers.live_dir, self._changed, self._tick, self._poll_s)
        for name, wanted in self._handles:
            if wanted is None:
                watching.add(name)
        watching.start()

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
        follows = self._watching is not None or self.in_children
        if self._watching is not None:
            self._watching.abandon()
        if follows:
            self.start()

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
