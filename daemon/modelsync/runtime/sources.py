"""The watched models directory as a stream of complete versions: events, scans and deadlines, put in order.

This file alone decides when the directory is scanned. It must not decide what a model is (core.layout) nor when one is
complete (core.settle), and it knows neither inotify nor the file system (the Scanner and Watch it is given do).

Nothing here ever says that a model is gone: an emptied, unmounted or replaced directory is only a directory in which
there is nothing to publish.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType

import structlog

from modelsync.core.errors import LocalFault, WatchUnavailable
from modelsync.core.layout import Item, Layout, SourceFile, interpret, model_of, shown
from modelsync.core.settle import (
    Complete,
    Facts,
    Overflowed,
    Settling,
    SourceEvent,
    Verdict,
    Waiting,
    WatchLost,
    Writers,
    entry_of,
)
from modelsync.ports import Clock, Listing, ReadySource, Scanner, Watch
from modelsync.runtime.inbox import Inbox

log = structlog.get_logger()

MAX_REFUSALS = 1_000
MAX_REMEMBERED = 10_000
"""Items whose signature is kept after they are gone, so that a directory that comes back is not hashed again."""
BACKLOG_PIECE = 64
"""Entries of a rescan that are looked at in one go."""
IDENTITY_EVERY_S = 1.0
"""How often the directory itself is looked at: whether it is still the one that is watched. One stat(2)."""
UNWATCHED_SCAN_S = 2.0
"""How often it is scanned while the kernel gives no watch."""
DIRECTORY = "."
"""The models directory itself among the refusals."""


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
        self._rescan_s = rescan_s
        self._include = include
        self._exclude = exclude
        self._settling = Settling(settle_s, known)
        self._scanner = scanner
        self._watch = watch
        self._clock = clock
        self._ready: dict[str, ReadySource] = {}
        self._has_ready = asyncio.Condition()
        self._refusals: dict[str, dict[str, str]] = {}
        self._inbox: Inbox | None = None
        self._task: asyncio.Task[None] | None = None
        self._identity: tuple[int, int] | None = None
        self._degraded = False
        self._found = "scan"
        self._backlog: list[str] = []
        self._next_scan_s = math.inf
        self._next_identity_s = 0.0
        self._next_try_s = math.inf

    # --- what others call ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to watch; the first scan runs in the background. A directory that is not there is waited for."""
        self._inbox = Inbox(asyncio.get_running_loop())
        self._task = asyncio.create_task(self._run(self._inbox), name="sources")
        self._task.add_done_callback(lambda _: asyncio.ensure_future(self._notify()))

    async def close(self) -> None:
        """Stop watching; iteration ends. Harmless when called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.to_thread(self._watch.stop)
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
        """Path to reason, for everything that lies there and is not published; at most MAX_REFUSALS of them."""
        found: dict[str, str] = {}
        for entry in sorted(self._refusals):
            for path, reason in self._refusals[entry].items():
                if len(found) >= MAX_REFUSALS:
                    return found
                found[shown(path)] = reason
        return found

    def request_rescan(self) -> None:
        """Scan everything soon, whatever the events say."""
        self._next_scan_s = 0.0
        if self._inbox is not None:
            self._inbox.woken.set()

    def retry(self, source: ReadySource) -> None:
        """Yield a source again once it is complete again: what was yielded could not be published (SourceChanged)."""
        self._settling.again(source.key, source.arrived, self._clock.boottime_s())
        if self._inbox is not None:
            self._inbox.woken.set()

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self, inbox: Inbox) -> None:
        while True:
            self._take_in(inbox.take())
            now_s = self._clock.boottime_s()
            if now_s >= self._next_identity_s:
                await self._keep_watch(inbox)
            elif now_s >= self._next_scan_s:
                await self._rescan()
            elif due := self._settling.due(now_s):
                await self._look_at(due)
            elif self._backlog:
                await self._look_at(self._next_backlog())
            else:
                await self._sleep(inbox, now_s)

    async def _sleep(self, inbox: Inbox, now_s: float) -> None:
        times_s = [self._next_identity_s, self._next_scan_s, self._settling.next_look_s() or self._next_scan_s]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(inbox.woken.wait(), max(0.0, min(times_s) - now_s))

    def _take_in(self, events: Sequence[SourceEvent]) -> None:
        now_s = self._clock.boottime_s()
        for event in events:
            match event:
                case Overflowed():
                    log.warning("source.events_lost", next="everything is scanned")
                    self._settling.lose(now_s)
                    self._next_scan_s = now_s
                case WatchLost(reason):
                    self._degrade(reason)
                    self._next_identity_s = now_s
                case _:
                    self._settling.hear(event, now_s)

    # --- the directory itself and its watch ---------------------------------------------------------------------------

    async def _keep_watch(self, inbox: Inbox) -> None:
        """See to it that the directory that is there now is the one that is watched."""
        now_s = self._clock.boottime_s()
        self._next_identity_s = now_s + IDENTITY_EVERY_S
        try:
            identity = await asyncio.to_thread(self._scanner.identity)
        except LocalFault as fault:
            self._say(DIRECTORY, {DIRECTORY: str(fault)})
            return
        if identity is None:
            await self._lose_directory()
        elif identity != self._identity or not (self._degraded or self._watch.alive()) or now_s >= self._next_try_s:
            await self._arm(identity, inbox)

    async def _lose_directory(self) -> None:
        if self._identity is not None or DIRECTORY not in self._refusals:
            log.warning("models_directory.missing", path=str(self._root), next="waiting for it; nothing is withdrawn")
            await asyncio.to_thread(self._watch.stop)
            self._next_scan_s = 0.0
        self._identity, self._degraded = None, False
        self._say(DIRECTORY, {DIRECTORY: "the models directory is not there"})

    async def _arm(self, identity: tuple[int, int], inbox: Inbox) -> None:
        """Watch first, scan then: what arrives in between is seen twice rather than never."""
        now_s = self._clock.boottime_s()
        self._found = "scan" if identity != self._identity else "event"
        self._identity, self._degraded, self._next_try_s = identity, False, math.inf
        self._settling.lose(now_s)
        self._say(DIRECTORY, {})
        try:
            await asyncio.to_thread(self._watch.start, inbox.put)
            log.info("models_directory.watched", path=str(self._root))
        except WatchUnavailable as fault:
            self._degrade(fault.reason)
        self._next_scan_s = 0.0

    def _degrade(self, reason: str) -> None:
        """The watch does not see everything: scan often, and try to watch again at the pace of rescans."""
        self._degraded = True
        now_s = self._clock.boottime_s()
        self._next_try_s = min(self._next_try_s, now_s + self._rescan_s)
        self._next_scan_s = min(self._next_scan_s, now_s + UNWATCHED_SCAN_S)
        self._say(DIRECTORY, {DIRECTORY: f"not watched ({reason}); scanned every {UNWATCHED_SCAN_S:g} s instead"})

    # --- scanning and looking -----------------------------------------------------------------------------------------

    async def _rescan(self) -> None:
        """Begin a scan of everything: list the directory now, look at what is in it piece by piece."""
        every_s = min(self._rescan_s, UNWATCHED_SCAN_S) if self._degraded else self._rescan_s
        self._next_scan_s = self._clock.boottime_s() + every_s
        survey = await self._survey(frozenset())
        if survey is None:
            return
        present = frozenset(entry.path for entry in survey.listing.top)
        for gone in self._refusals.keys() - present - {DIRECTORY}:
            self._say(gone, {})
        self._settling.keep_only(present, MAX_REMEMBERED)
        self._backlog = sorted((name for name in present if self._is_wanted(name)), reverse=True)

    def _next_backlog(self) -> frozenset[str]:
        """A piece of the rescan: small, so that what arrives meanwhile does not wait for all of it."""
        size = max(BACKLOG_PIECE, len(self._backlog) // 8)
        piece, self._backlog = self._backlog[-size:], self._backlog[:-size]
        return frozenset(piece)

    async def _look_at(self, entries: frozenset[str]) -> None:
        for entry in entries:
            self._settling.begin(entry)
        survey = await self._survey(frozenset(entry for entry in entries if self._is_wanted(entry)))
        if survey is None:
            return
        said: dict[str, dict[str, str]] = {entry: {} for entry in entries}
        for path, reason in survey.layout.refusals.items():
            said.setdefault(entry_of(path), {})[path] = reason
        for item in survey.layout.items:
            await self._look_at_item(item, said[entry_of(item.key)])
        for entry in entries:
            self._settling.rest(entry)
            self._say(entry, said.get(entry, {}))
        self._withdraw(entries, survey)

    async def _survey(self, entries: frozenset[str]) -> _Survey | None:
        """Scan and understand, in a thread; None, with the reason among the refusals, where the disk did not answer."""
        try:
            survey = await asyncio.to_thread(self._scan, entries)
        except LocalFault as fault:
            log.warning("models_directory.unreadable", error=str(fault), next="it is scanned again")
            self._say(DIRECTORY, {DIRECTORY: str(fault)})
            self._next_scan_s = self._clock.boottime_s() + UNWATCHED_SCAN_S
            return None
        if survey.listing.identity != self._identity:
            self._next_identity_s = 0.0
        return survey

    def _scan(self, entries: frozenset[str]) -> _Survey:
        listing = self._scanner.scan(entries)
        return _Survey(listing, interpret(listing.top, listing.trees, listing.capacity_bytes))

    async def _look_at_item(self, item: Item, refusals: dict[str, str]) -> None:
        facts = Facts(item.key, item.files, item.newest_ns, item.marked)
        verdict = self._judge(facts, None)
        if isinstance(verdict, Complete):
            try:
                writers = await asyncio.to_thread(self._scanner.writers, item.watched)
            except LocalFault as fault:
                refusals[item.key] = str(fault)
                self._settling.again(item.key, verdict.arrived, self._clock.boottime_s() + UNWATCHED_SCAN_S)
                return
            refusals.update(writers.unreadable)
            if writers.unreadable:
                return
            verdict = self._judge(facts, writers)
        if isinstance(verdict, Complete):
            self._settling.announce(facts)
            await self._hand_out(item, verdict.arrived)
        elif isinstance(verdict, Waiting) and verdict.holder:
            refusals[item.key] = f"not complete: {shown(verdict.holder)} is open for writing"

    def _judge(self, facts: Facts, writers: Writers | None) -> Verdict:
        wall_ns = self._clock.wall_ms() * 1_000_000
        return self._settling.look(facts, writers, self._clock.boottime_s(), wall_ns, self._found)

    async def _hand_out(self, item: Item, arrived: str) -> None:
        root = self._root / item.base
        self._ready.pop(item.key, None)
        self._ready[item.key] = ReadySource(item.model, item.version, root, item.files, arrived, item.key)
        log.debug("source.completed", model=item.model, source=item.key, arrived=arrived, files=len(item.files))
        await self._notify()

    def _withdraw(self, entries: frozenset[str], survey: _Survey) -> None:
        """What vanished before anybody took it cannot be published any more; what was published stays published."""
        present = {entry.path for entry in survey.listing.top}
        for key in [key for key in self._ready if entry_of(key) in entries - present]:
            del self._ready[key]

    async def _notify(self) -> None:
        async with self._has_ready:
            self._has_ready.notify_all()

    # --- small things -------------------------------------------------------------------------------------------------

    def _is_wanted(self, entry: str) -> bool:
        name = model_of(entry) or entry
        included = not self._include or any(fnmatchcase(name, pattern) for pattern in self._include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self._exclude)

    def _say(self, entry: str, refusals: dict[str, str]) -> None:
        """Replace what is refused of one entry, and log what is new."""
        old = self._refusals.pop(entry, {})
        for path, reason in list(refusals.items())[:MAX_REFUSALS]:
            if old.get(path) != reason:
                log.warning("source.refused", source=shown(path), reason=reason, next="looked at again when it changes")
        if refusals:
            self._refusals[entry] = refusals


@dataclass(frozen=True, slots=True)
class _Survey:
    """A listing and what it means."""

    listing: Listing
    layout: Layout
