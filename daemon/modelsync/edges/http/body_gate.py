"""How many large bodies leave at once, so that those under way arrive soon instead of all of them late.

What is above waits for a place for a short while, and what is above that is told at once to come again: a peer that
pulls from several knows what to do with that, and nothing here grows with the number of those who ask.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from modelsync.edges.http.sending import Sender

RETRY_AFTER_S = 1


class BodyGate:
    """Places for bodies, and a queue before them.

    Args:
        places: bodies that leave at once.
        queue: requests that may wait for a place.
        wait_s: how long.
    """

    def __init__(self, places: int, queue: int, wait_s: float) -> None:
        self._places = asyncio.Semaphore(places)
        self.sender = Sender(places)
        self._queue = queue
        self._wait_s = wait_s
        self._waiting = 0
        self.sent_bytes = 0
        """Of bodies that left, or were about to; on the wire."""
        self.content_bytes = 0
        """What they stood for: more, where they were packed."""

    def count(self, content_bytes: int, wire_bytes: int) -> None:
        """Bytes of a body leave."""
        self.content_bytes += content_bytes
        self.sent_bytes += wire_bytes

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One body's place. Raises HTTPServiceUnavailable."""
        if self._places.locked() and self._waiting >= self._queue:
            raise self._full()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise self._full() from error
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    @staticmethod
    def _full() -> web.HTTPServiceUnavailable:
        text = "as many bodies as this node sends at once are under way"
        return web.HTTPServiceUnavailable(text=text, headers={"Retry-After": str(RETRY_AFTER_S)})
