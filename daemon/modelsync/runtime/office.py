"""What only the primary does: watch its models directory and publish what is complete there.

It is entered by a promotion and left by a demotion; in between each model has a task of its own, so that one that must
be tried again holds up no other model.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from modelsync.core.errors import LocalFault, ModelsyncError, NotAModel, PolicyRefusal, SourceChanged, VersionConflict
from modelsync.core.ids import ModelName, NodeId
from modelsync.core.sources.notes import SourceNotes
from modelsync.ports import CatalogDisk, ReadySource, SourceFile, Sources
from modelsync.runtime.crew import Crew
from modelsync.runtime.publisher import Draft, Publisher

log = structlog.get_logger()

RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a source is tried again; the last one repeats."""

REMEMBER_S = 1.0

ReadNotes = Callable[[Path], SourceNotes]
"""What lies in a model's directory about it; blocks, raises NotAModel."""
OpenSources = Callable[[Mapping[str, tuple[SourceFile, ...]]], AbstractAsyncContextManager[Sources]]


@dataclass
class _Queue:
    """What waits to be published of one model, by its source's key, and the task that sees to it."""

    waiting: dict[str, ReadySource] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class Office:
    """The models directory's way into the catalog, while this node is primary."""

    def __init__(
        self,
        *,
        node: NodeId,
        watch: Path | None,
        publisher: Publisher,
        disk: CatalogDisk,
        open_sources: OpenSources,
        read_notes: ReadNotes,
    ) -> None:
        self._node = node
        self._watch = watch
        self._publisher = publisher
        self._disk = disk
        self._open_sources = open_sources
        self._read_notes = read_notes
        self._sources: Sources | None = None
        self._known: dict[str, tuple[SourceFile, ...]] = {}
        self._refused: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self.crew = Crew()

    def refusals(self) -> dict[str, str]:
        """Path to reason, for what lies in the models directory and is not published."""
        return {**(dict(self._sources.refusals()) if self._sources else {}), **self._refused}

    def enter(self) -> None:
        """Begin to publish. Does nothing without a models directory."""
        if self._watch is not None and self._task is None:
            self._task = self.crew.start(self._work(), "models-directory")

    async def restart(self) -> None:
        """Look at the models directory anew, by settings that have changed."""
        if self._task is not None:
            await self.leave()
            self.enter()

    async def leave(self) -> None:
        """Stop; a publish that is under way is abandoned or fenced."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._saving is not None and not self._saving.done():
            self._saving.cancel()
            with contextlib.suppress(LocalFault):  # the next start hashes everything once
                await asyncio.to_thread(self._disk.save_sources, self._known)

    async def _work(self) -> None:
        self._known = await asyncio.to_thread(self._disk.load_sources)
        queues: dict[ModelName, _Queue] = {}
        try:
            async with self._open_sources(self._known) as sources:
                self._sources = sources
                async for ready in sources:
                    queue = queues.setdefault(ready.model, _Queue())
                    queue.waiting[ready.key] = ready  # a newer look at the same source replaces the older
                    if queue.task is None or queue.task.done():
                        queue.task = self.crew.start(self._drain(queue, sources), f"publish-{ready.model}")
        finally:
            self._sources = None
            tasks = [queue.task for queue in queues.values() if queue.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, queue: _Queue, sources: Sources) -> None:
        """Publish what waits of one model, lower versions first: one that came late could not be published at all."""
        attempt = 0
        while queue.waiting:
            ready = min(queue.waiting.values(), key=lambda source: source.version or 0)
            pause_s = await self._publish(ready, sources, attempt)
            if pause_s:
                attempt += 1
                await asyncio.sleep(pause_s)
                continue
            attempt = 0
            if queue.waiting.get(ready.key) is ready:
                del queue.waiting[ready.key]

    async def _publish(self, ready: ReadySource, sources: Sources, attempt: int) -> float:
        """Try once. Returns 0 when it is settled, or the seconds after which to try again."""
        try:
            await self._publisher.publish(await self._draft(ready))
        except SourceChanged:
            sources.retry(ready)
            return 0
        except (NotAModel, PolicyRefusal, VersionConflict) as error:
            self._refused[ready.key] = str(error)
            log.warning("source.refused", path=ready.key, error=str(error), next="it stays where it is, unpublished")
            return 0
        except ModelsyncError as error:
            pause_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
            self._refused[ready.key] = f"not published yet: {error}"
            log.warning("publish.failed", path=ready.key, error=str(error), retry_s=pause_s, next="it is tried again")
            return pause_s
        self._refused.pop(ready.key, None)
        self._remember(ready.key, ready)
        return 0

    async def _draft(self, ready: ReadySource) -> Draft:
        """With what its publisher said of it. Read before the files are: a directory that was replaced in between does
        not pass for the one that was scanned (SourceChanged), so words and weights are of one publish.
        """
        notes = await asyncio.to_thread(self._read_notes, ready.root) if ready.root != self._watch else SourceNotes()
        return Draft(
            model=ready.model,
            root=ready.root,
            files=ready.files,
            version=ready.version,
            author=notes.author or f"watch@{self._node}",
            note=notes.note,
            metadata=notes.metadata,
            arrived=ready.arrived,
        )

    def _remember(self, key: str, ready: ReadySource) -> None:
        """So that a restart does not hash it again; written soon, since a loss costs only that."""
        self._known = {**self._known, key: ready.files}
        if self._saving is None or self._saving.done():
            self._saving = self.crew.start(self._save_known(), "remember-sources")

    async def _save_known(self) -> None:
        await asyncio.sleep(REMEMBER_S)
        try:
            await asyncio.to_thread(self._disk.save_sources, self._known)
        except LocalFault as error:
            log.warning("sources.unsaved", error=str(error), next="the next start hashes everything once")
