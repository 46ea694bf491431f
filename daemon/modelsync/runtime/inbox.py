"""Events from other threads, handed to the event loop: bounded, and with one wake-up for many.

This file alone is called from threads that are not the loop's. It knows nothing of what the events mean but that, when
there are too many, having lost some is an event of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from modelsync.core.sources.events import Overflowed, SourceEvent

MAX_EVENTS = 20_000
"""Not yet taken; beyond it they are dropped and said to be lost. Above the kernel's own limit of 16,384."""


class Inbox:
    """Made on the loop; ``put`` may be called from any thread, the rest only on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._events: list[SourceEvent] = []
        self._lost = False
        self.woken = asyncio.Event()

    def put(self, event: SourceEvent) -> None:
        """Add an event; one that repeats the last is dropped. Never blocks and never raises."""
        with self._lock:
            if self._lost or (self._events and self._events[-1] == event):
                return
            wake = not self._events
            if len(self._events) < MAX_EVENTS:
                self._events.append(event)
            else:
                self._lost = True
        if wake:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody wants to know any more
                self._loop.call_soon_threadsafe(self.woken.set)

    def take(self) -> list[SourceEvent]:
        """Everything since the last call; after too much of it, ``Overflowed`` and what came before."""
        self.woken.clear()
        with self._lock:
            events, self._events = self._events, []
            lost, self._lost = self._lost, False
        return [*events, Overflowed()] if lost else events
