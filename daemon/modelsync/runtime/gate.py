"""Many may ingest at once, or one may collect garbage: never both, since what was just ingested is not referred to yet.

The publisher's own lock was the alternative: then a command would wait for a large model to be copied.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gate:
    """Shared by ingests, held alone by garbage collection, which waits for its turn and is not overtaken."""

    def __init__(self) -> None:
        self._inside = 0
        self._alone = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def inside(self) -> int:
        """How many are inside together."""
        return self._inside

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Enter beside others; waits while somebody is, or wants to be, alone."""
        async with self._alone:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Enter when nobody is inside, and keep others out."""
        async with self._alone:
            await self._empty.wait()
            yield
