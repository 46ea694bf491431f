"""A reason to look now instead of at the next turn: set by anyone, waited for by one loop, with a time limit."""

from __future__ import annotations

import asyncio
import contextlib


class Wake:
    """An event that clears itself."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Until it is set or the time is over.

        asyncio.timeout, not wait_for: before Python 3.12 the latter loses a cancellation that comes with the event.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        self._event.clear()
