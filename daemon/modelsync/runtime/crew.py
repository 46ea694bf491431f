"""Tasks that come and go beside a loop, none of which may die unheard.

asyncio reports a task's exception when the task is collected, which may be never. A fault of ours in any of these tasks
ends the process instead, and systemd restarts it. asyncio.TaskGroup was the alternative: it cannot outlive the function
that opened it, nor be closed from another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Crew:
    """Tasks with one end. ``watch`` raises the first fault; ``close`` cancels what is left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._fault: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = self._fault or fault
            self._ended.set()

    async def watch(self) -> None:
        """Return never; raise what a task ended with."""
        await self._ended.wait()
        assert self._fault is not None
        raise self._fault

    async def close(self) -> None:
        """Cancel every task and wait for their ends; harmless when called twice."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
