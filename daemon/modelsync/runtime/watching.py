"""Keeping a watch on the models directory that is there now: made late, deleted, unmounted, replaced, made again.

This file alone decides when the watch is started and stopped, and when the directory is scanned as a whole. What is in
it is none of its business.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import structlog

from modelsync.core.errors import LocalFault, WatchUnavailable
from modelsync.core.sources.events import SourceEvent
from modelsync.ports import Scanner, Watch
from modelsync.runtime.refusals import DIRECTORY, Refusals

log = structlog.get_logger()

IDENTITY_EVERY_S = 1.0
"""How often the directory itself is looked at: whether it is still the one that is watched. One stat(2)."""
UNWATCHED_SCAN_S = 2.0
"""How often it is scanned while the kernel gives no watch, or the disk no answer."""

Identity = tuple[int, int]


class Watching:
    """The watch, which directory it is on, and when the next look at that and the next full scan are due."""

    def __init__(self, root: Path, rescan_s: float, scanner: Scanner, watch: Watch, refusals: Refusals) -> None:
        self._root = root
        self._rescan_s = rescan_s
        self._scanner = scanner
        self._watch = watch
        self._refusals = refusals
        self._degraded = False
        self._next_try_s = math.inf
        self.identity: Identity | None = None
        """The directory that is watched, or scanned where it cannot be; None: there is none."""
        self.check_s = 0.0
        """When ``keep`` is due."""
        self.scan_s = math.inf
        """When a scan of everything is due."""

    async def keep(self, hear: Callable[[SourceEvent], None], now_s: float) -> bool:
        """See to it that the directory that is there now is watched; True: it has just begun to be."""
        self.check_s = now_s + IDENTITY_EVERY_S
        try:
            identity = await asyncio.to_thread(self._scanner.identity)
        except LocalFault as fault:
            self.fail(fault, now_s)
            return False
        if identity is None:
            await self._lose(now_s)
            return False
        deaf = not self._degraded and not self._watch.alive()
        if identity == self.identity and not deaf and now_s < self._next_try_s:
            return False
        self.identity = identity
        await self._arm(hear, now_s)
        return True

    async def _arm(self, hear: Callable[[SourceEvent], None], now_s: float) -> None:
        """Watch first, scan then: what arrives in between is seen twice rather than never."""
        self._degraded, self._next_try_s = False, math.inf
        self._refusals.say(DIRECTORY, {})
        self.scan_s = now_s
        try:
            await asyncio.to_thread(self._watch.start, hear)
        except WatchUnavailable as fault:
            self.degrade(fault.reason, now_s)
            self.scan_s = now_s
        else:
            log.info("models_directory.watched", path=str(self._root))

    async def _lose(self, now_s: float) -> None:
        """No directory: nothing is withdrawn, and the scan that follows finds nothing to publish."""
        if self.identity is not None or not self._refusals.of(DIRECTORY):
            log.warning("models_directory.missing", path=str(self._root), next="waited for; nothing is withdrawn")
            await asyncio.to_thread(self._watch.stop)
            self.scan_s = now_s
        self.identity, self._degraded = None, False
        self._refusals.say(DIRECTORY, {DIRECTORY: "the models directory is not there"})

    def degrade(self, reason: str, now_s: float) -> None:
        """The watch does not see everything: scan often, and try to watch again at the pace of rescans."""
        self._degraded = True
        self._next_try_s = min(self._next_try_s, now_s + self._rescan_s)
        self.scan_s = min(self.scan_s, now_s + UNWATCHED_SCAN_S)
        self._refusals.say(
            DIRECTORY, {DIRECTORY: f"not watched ({reason}); scanned every {UNWATCHED_SCAN_S:g} s instead"}
        )

    def fail(self, fault: LocalFault, now_s: float) -> None:
        """The disk did not answer: say so, and ask again soon."""
        self._refusals.say(DIRECTORY, {DIRECTORY: f"it cannot be scanned: {fault}"})
        self.scan_s = now_s + UNWATCHED_SCAN_S
        self._next_try_s = min(self._next_try_s, self.scan_s)

    def scanned(self, now_s: float) -> None:
        """A scan of everything begins: when is the next?"""
        self.scan_s = now_s + (min(self._rescan_s, UNWATCHED_SCAN_S) if self._degraded else self._rescan_s)

    async def stop(self) -> None:
        await asyncio.to_thread(self._watch.stop)
