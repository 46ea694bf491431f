"""Brings a handle to the version that it should be now: finds it, makes room, loads it, lets it answer.

This file alone decides what is tried again: a version that vanished meanwhile at once, one that failed by `backoff`.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

from modelsync.client import backoff, switching
from modelsync.client.entry import Entry, predicting
from modelsync.client.handle import Handle
from modelsync.client.ledger import Ledger
from modelsync.client.loaders.contract import Progress
from modelsync.client.loading import Loaded, Loading
from modelsync.client.memory import Memory
from modelsync.client.offers import Offer, Offers
from modelsync.client.pacing import UNWAITED_REST, WAITED_REST
from modelsync.client.swaps import Swap
from modelsync.client.timing import Timer
from modelsync.core.errors import ModelFileRefused, ModelsyncError

log = logging.getLogger("modelsync.client")
"""The standard library's: structlog, unconfigured, would print into the application's output."""

_ATTEMPTS = 5
"""At a version that vanished while it was loaded: each finds a newer one, so more than two are hardly ever needed."""


class Renewal:
    """Loads for the handles of one client, on whichever thread asks; `flights` sees to it that one does at a time.

    Args:
        lock: the client's; never held while a model is loaded.
        replaces: when memory is short, the old version leaves before the new one is loaded.
    """

    def __init__(
        self,
        lock: threading.Condition,
        offers: Offers,
        loading: Loading,
        memory: Memory,
        ledger: Ledger,
        replaces: bool,
    ) -> None:
        self._lock = lock
        self._offers, self._loading = offers, loading
        self._memory, self._ledger = memory, ledger
        self._replaces = replaces

    def run(self, handle: Handle, progress: Progress) -> tuple[Entry, Swap | None]:
        """Load what the handle should be now; the swap, if it was another version before.

        Raises: ModelsyncError: remembered, and repeated without another try until its pause is over.
        """
        identity = self._offers.identity(handle.name) if handle.wanted is None else str(handle.wanted)
        failure = handle._failure
        if failure is not None and not backoff.may_try(failure, identity, time.monotonic()):
            raise replace(failure.error)
        try:
            with switching.eager():
                done = self._once_there(handle, progress)
        except ModelsyncError as error:
            handle._failure = backoff.failed(failure, identity, error, time.monotonic())
            self._ledger.of(handle.name).failures += 1
            log.warning("version.not_loaded model=%s, %s: %s", handle.name, _meanwhile(handle), error)
            raise
        handle._failure, handle._identity = None, identity
        return done

    def may_try(self, handle: Handle, identity: str) -> bool:
        """Whether what a handle offers now is worth a load: it did not fail, or its pause is over."""
        return backoff.may_try(handle._failure, identity, time.monotonic())

    def _once_there(self, handle: Handle, progress: Progress) -> tuple[Entry, Swap | None]:
        for _ in range(_ATTEMPTS):
            try:
                started_s = time.perf_counter()
                offer = self._find(handle)
                return self._load(handle, progress, offer, time.perf_counter() - started_s)
            except FileNotFoundError as error:
                vanished = error
        reason = f"its files were removed {_ATTEMPTS} times while it was loaded"
        raise ModelFileRefused(path=str(vanished.filename), loader="a version", reason=reason) from vanished

    def _find(self, handle: Handle) -> Offer:
        if handle.wanted is None:
            return self._offers.current(handle.name)
        return self._offers.version(handle.name, handle.wanted)

    def _load(self, handle: Handle, progress: Progress, offer: Offer, found_s: float) -> tuple[Entry, Swap | None]:
        same = _same(handle._entry, offer)
        if same is not None:
            return same, None
        reserved: list[int] = []

        def reserve(needed_bytes: int) -> None:
            self._memory.reserve(handle, needed_bytes, replace=self._replaces)
            reserved.append(needed_bytes)

        try:
            pace = self._memory.pace(UNWAITED_REST if handle.resident else WAITED_REST)
            return self._put(handle, self._loading.run(offer, found_s, progress, reserve, pace))
        finally:
            self._memory.unreserve(sum(reserved))

    def _put(self, handle: Handle, loaded: Loaded) -> tuple[Entry, Swap | None]:
        """Let a loaded version answer."""
        offer, before = loaded.offer, handle._offer
        with self._lock:
            model = self._ledger.of(handle.name)
            counts = model.of(offer.version)
            counts.digest = offer.digest
            entry = Entry(offer, loaded.model, predicting(handle.name, loaded.model), counts, loaded.size_bytes)
            entry.timer = Timer(entry, handle._path)
            swap = None
            if before is not None and (before.version, before.digest) != (offer.version, offer.digest):
                swap = Swap(handle.name, before.version, offer.version, offer.digest)
                model.swaps += 1
                model.of(before.version).swapped_out += 1
            self._memory.put(handle, entry)
            handle._offer = offer
            counts.loaded(loaded.times, loaded.loader.name, loaded.loader.maps, loaded.size_bytes)
        return entry, swap


def _meanwhile(handle: Handle) -> str:
    return "the one before is served on" if handle.resident else "requests for it fail until it is tried again"


def _same(entry: Entry, offer: Offer) -> Entry | None:
    """The entry, if it is of that very version."""
    # A function of its own, so that no variable holds the old version while the new one is loaded.
    return entry if entry.offer is not None and offer.digest and entry.offer.digest == offer.digest else None
