"""The watched models directory as a stream of complete versions: events, scans and deadlines, put in order.

This file alone decides in which order things are scanned. What a model is decides core.sources.layout; when
one is complete, core.sources.settle. Inotify and the file system are for the Scanner and Watch that it is given.

Nothing here ever says that a model is gone: an emptied, unmounted or replaced directory is only a directory in which
there is nothing to publish.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType

import structlog

from modelsync.core.errors import LocalFault
from modelsync.core.sources.events import Overflowed, RootRemoved, SourceEvent, WatchLost
from modelsync.core.sources.layout import Item, Layout, SourceFile, interpret
from modelsync.core.sources.names import model_of, shown
from modelsync.core.sources.settle import Complete, Facts, Settling, Waiting, Writers, entry_of
from modelsync.ports import Clock, Listing, ReadySource, Scanner, Watch
from modelsync.runtime.inbox import Inbox
from modelsync.runtime.refusals import Refusals
from modelsync.runtime.watching import Watching

log = structlog.get_logger()

MAX_REMEMBERED = 10_000
"""Items whose signature is kept after they are gone, so that a directory that comes back is not hashed again."""
BACKLOG_PIECE = 64
"""Entries of a rescan that are looked at in one go, so that what arrives meanwhile does not wait for all of it."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """A listing and what it means."""

    listing: Listing
    layout: Layout


@dataclass(slots=True)
class _Said:
    """What one look found to say of an entry."""

    refused: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)


class SourceWatcher:
    """A ``ports.Sources``: iterate it for versions to publish, in the order in which they became complete."""

    def __init__(
        self,
        root: Path,
        settle_s: float,
        rescan_s: float,
        include: tuple[str, ...],
        exclude: tuple[str, ...],
        known: Mapping[str, tuple[SourceFile, ...]],
        scanner: Scanner,
        watch: Watch,
        clock: Clock,
    ) -> None:
        """
        Args:
            root: the models directory; it need not exist yet.
            settle_s: how long nothing may change before what was not renamed into place counts as complete.
            rescan_s: how often everything is scanned, whatever the events say.
            include, exclude: patterns (fnmatch) on model names; no ``include`` means all. ``exclude`` wins.
            known: what was published before, by ``ReadySource.key``; it is not yielded again.
        """
        self._root = root
        self._include = include
        self._exclude = exclude
        self._scanner = scanner
        self._clock = clock
        self._settling = Settling(settle_s, known)
        self._refusals = Refusals()
        self._watching = Watching(root, rescan_s, scanner, watch, self._refusals)
        self._found = "scan"
        self._backlog: list[str] = []
        self._ready: dict[str, ReadySource] = {}
        self._has_ready = asyncio.Condition()
        self._inbox: Inbox | None = None
        self._task: asyncio.Task[None] | None = None

    # --- what others call ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to watch; the first scan runs in the background. A directory that is not there is waited for."""
        self._inbox = Inbox(asyncio.get_running_loop())
        self._task = asyncio.create_task(self._run_and_notify(self._inbox), name="sources")

    async def close(self) -> None:
        """Stop watching; iteration ends. Harmless when called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self._watching.stop()
        await self._notify()

    async def __aenter__(self) -> SourceWatcher:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[ReadySource]:
        return self

    async def __anext__(self) -> ReadySource:
        async with self._has_ready:
            await self._has_ready.wait_for(lambda: self._ready or self._task is None or self._task.done())
            if self._ready:
                return self._ready.pop(next(iter(self._ready)))
        if self._task is not None and not self._task.cancelled():
            self._task.result()  # a fault of ours: it ends the consumer, too
        raise StopAsyncIteration

    def refusals(self) -> Mapping[str, str]:
        """Path to reason, for everything that lies there and is not published; at most 1,000 of them."""
        return self._refusals.snapshot()

    def request_rescan(self) -> None:
        """Scan everything soon, whatever the events say."""
        self._watching.scan_s = 0.0
        self._wake()

    def retry(self, source: ReadySource) -> None:
        """Yield a source again once it is complete again: what was yielded could not be published (SourceChanged)."""
        self._settling.again(source.key, source.arrived, self._clock.boottime_s())
        self._wake()

    def _wake(self) -> None:
        if self._inbox is not None:
            self._inbox.woken.set()

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _run_and_notify(self, inbox: Inbox) -> None:
        try:
            await self._run(inbox)
        finally:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._notify()))

    async def _run(self, inbox: Inbox) -> None:
        """One thing at a time, the most urgent first; a rescan goes piece by piece behind what events ask for."""
        while True:
            now_s = self._clock.boottime_s()
            for event in inbox.take():
                self._take_in(event, now_s)
            if now_s >= self._watching.check_s:
                await self._keep_watch(inbox, now_s)
            elif due := self._settling.due(now_s):
                await self._look_at(due)
            elif now_s >= self._watching.scan_s:
                await self._begin_rescan(now_s)
            elif self._backlog:
                await self._go_on_with_rescan()
            else:
                await self._sleep(inbox, now_s)

    async def _sleep(self, inbox: Inbox, now_s: float) -> None:
        until_s = min(self._watching.check_s, self._watching.scan_s)
        look_s = self._settling.next_look_s()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(until_s, look_s or until_s) - now_s)):
                await inbox.woken.wait()

    def _take_in(self, event: SourceEvent, now_s: float) -> None:
        match event:
            case Overflowed():
                log.warning("source.events_lost", next="everything is scanned")
                self._settling.lose(now_s)
                self._watching.scan_s = now_s
            case WatchLost(reason):
                self._watching.degrade(reason, now_s)
            case RootRemoved():
                self._watching.check_s = now_s
            case _:
                self._settling.hear(event, now_s)

    async def _keep_watch(self, inbox: Inbox, now_s: float) -> None:
        before = self._watching.identity
        if await self._watching.keep(inbox.put, now_s):
            self._settling.lose(now_s)
            self._found = "event" if self._watching.identity == before else "scan"

    # --- scanning -----------------------------------------------------------------------------------------------------

    async def _begin_rescan(self, now_s: float) -> None:
        """List the directory; what is in it is looked at piece by piece."""
        self._watching.scanned(now_s)
        survey = await self._survey(frozenset())
        if survey is None:
            return
        present = frozenset(survey.listing.names)
        for gone in self._refusals.entries() - present:
            self._refusals.say(gone, {})
        self._settling.keep_only(present, MAX_REMEMBERED)
        self._backlog = sorted((name for name in present if self._is_wanted(name)), reverse=True)
        self._end_rescan()

    async def _go_on_with_rescan(self) -> None:
        size = max(BACKLOG_PIECE, len(self._backlog) // 8)
        piece, self._backlog = self._backlog[-size:], self._backlog[:-size]
        await self._look_at(frozenset(piece))
        self._end_rescan()

    def _end_rescan(self) -> None:
        if not self._backlog and self._watching.identity is not None:
            self._found = "event"  # what is found from now on came while the directory was watched

    async def _survey(self, entries: frozenset[str]) -> _Survey | None:
        """Scan and understand, in a thread; None, with a reason among the refusals, where the disk does not answer."""
        try:
            survey = await asyncio.to_thread(self._scan, entries)
        except LocalFault as fault:
            self._watching.fail(fault, self._clock.boottime_s())
            return None
        if survey.listing.identity != self._watching.identity:
            self._watching.check_s = 0.0
        return survey

    def _scan(self, entries: frozenset[str]) -> _Survey:
        listing = self._scanner.scan(entries)
        return _Survey(listing, interpret(listing.names, listing.top, listing.trees, listing.capacity_bytes))

    def _is_wanted(self, entry: str) -> bool:
        name = model_of(entry) or entry
        included = not self._include or any(fnmatchcase(name, pattern) for pattern in self._include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self._exclude)

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _look_at(self, entries: frozenset[str]) -> None:
        for entry in entries:
            self._settling.begin(entry)
        survey = await self._survey(frozenset(entry for entry in entries if self._is_wanted(entry)))
        if survey is None:
            return
        said = {entry: _Said() for entry in entries}
        for path, reason in survey.layout.refusals.items():
            said[entry_of(path)].refused[path] = reason
        quiet = [item for item in survey.layout.items if self._judge(item, None, said)]
        answers = await self._ask_for_writers(quiet)
        if answers is None:
            return
        for item, writers in zip(quiet, answers, strict=True):
            complete = self._judge(item, writers, said)
            if complete and not self._is_refused(item, writers, said):
                self._settling.announce(_facts(item))
                await self._hand_out(item, complete.arrived)
        for entry in entries:
            self._settling.rest(entry)
            self._refusals.say(entry, said[entry].refused, said[entry].waiting)
        self._withdraw(entries - survey.listing.names.keys())

    def _judge(self, item: Item, writers: Writers | None, said: dict[str, _Said]) -> Complete | None:
        """Complete, or None, with what it waits for among the things to be said."""
        wall_ns = self._clock.wall_ms() * 1_000_000
        verdict = self._settling.look(_facts(item), writers, self._clock.boottime_s(), wall_ns, self._found)
        if isinstance(verdict, Waiting) and verdict.holder:
            reason = f"not complete: {shown(verdict.holder)} is open for writing"
            said[entry_of(item.key)].waiting[item.key] = reason
        return verdict if isinstance(verdict, Complete) else None

    async def _ask_for_writers(self, items: Sequence[Item]) -> list[Writers] | None:
        """One answer for each, in one thread for all; None where the disk does not answer: all is scanned again."""
        if not items:
            return []
        try:
            return await asyncio.to_thread(lambda: [self._scanner.writers(item.watched) for item in items])
        except LocalFault as fault:
            self._watching.fail(fault, self._clock.boottime_s())
            return None

    def _is_refused(self, item: Item, writers: Writers, said: dict[str, _Said]) -> bool:
        """Whether a file that would be published may not be read; of one that would not, it does not matter."""
        if not writers.unreadable:
            return False
        published = {f"{item.base}/{file.path}" if item.base else file.path for file in item.files}
        refused = {path: reason for path, reason in writers.unreadable if path in published}
        said[entry_of(item.key)].refused.update(refused)
        return bool(refused)

    async def _hand_out(self, item: Item, arrived: str) -> None:
        self._ready.pop(item.key, None)
        self._ready[item.key] = ReadySource(
            item.model, item.version, self._root / item.base, item.files, arrived, item.key
        )
        log.debug("source.completed", model=item.model, source=item.key, arrived=arrived, files=len(item.files))
        await self._notify()

    def _withdraw(self, gone: frozenset[str]) -> None:
        """What vanished before anybody took it cannot be published any more; what was published stays published."""
        for key in [key for key in self._ready if entry_of(key) in gone]:
            del self._ready[key]

    async def _notify(self) -> None:
        async with self._has_ready:
            self._has_ready.notify_all()


def _facts(item: Item) -> Facts:
    return Facts(item.key, item.files, item.newest_ns, item.marked)
