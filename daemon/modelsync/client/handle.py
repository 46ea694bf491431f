"""What an application holds: a model by its name, whatever version it is now.

The path of a request that finds its model in memory is ``Handle.predict`` and nothing else: no lock, no system call,
two integer adds. What it relies on, in CPython with its global lock: between the bytecodes of ``x.n += 1`` on a slot no
other thread runs (the interpreter switches at calls and backward jumps only), and a model cannot be freed while a call
holds a reference to it. So the integers decide only what is evicted, never what is freed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modelsync.client.backoff import Failure
from modelsync.client.counting import VersionCounts
from modelsync.client.offers import Offer
from modelsync.core.errors import NotPredicting

if TYPE_CHECKING:
    from modelsync.client.client import Client

_ALWAYS_TIMED_S = 0.002
"""Requests of one model further apart than this are all timed; above 500 a second, a burst now and then."""
_BURST = 8
"""Requests timed one after another before timing pauses until the client's thread arms it again."""


class Entry:
    """One loaded version of one model, or what stands in for one that is not in memory.

    It is freed the moment the last call or lease lets go of it, so nothing it refers to may refer back to it.
    """

    __slots__ = (
        "__weakref__",
        "call",
        "counts",
        "direct",
        "ended",
        "loaded_s",
        "model",
        "offer",
        "seen_started",
        "size_bytes",
        "stamp",
        "started",
        "timer",
    )

    def __init__(
        self,
        offer: Offer | None,
        model: Any,
        direct: Callable[[Any], Any],
        counts: VersionCounts | None,
        size_bytes: int,
    ) -> None:
        self.offer = offer
        self.model = model
        self.counts = counts
        self.size_bytes = size_bytes
        self.started = 0
        self.ended = 0
        self.stamp = 0
        self.seen_started = 0
        self.loaded_s = time.monotonic()
        self.direct = direct
        self.call = direct
        self.timer: Timer | None = None
        if counts is not None:
            counts.entries.add(self)

    def __del__(self) -> None:
        if self.counts is not None:
            self.counts.ended_requests += self.started

    @property
    def in_use(self) -> bool:
        """Whether a call or lease of it has begun and not ended."""
        return self.started != self.ended

    def swept(self, number: int) -> int:
        """Note whether it was used since the sweep before; returns how often."""
        uses = self.started - self.seen_started
        if uses or self.in_use:
            self.stamp, self.seen_started = number, self.started
        return uses


class Timer:
    """Times requests of an entry while it is armed, by standing in the place of its ``call``.

    A model that is asked seldom has every request timed. One that is asked often disarms its timer after a few, so that
    its requests pay nothing, and the client's thread arms it again; each of them then stands for those between.
    """

    __slots__ = ("_burst", "_counts", "_direct", "_entry", "_last_s", "_paused_at", "_weight")

    def __init__(self, entry: Entry) -> None:
        assert entry.counts is not None
        self._entry = weakref.ref(entry)
        self._direct = entry.direct
        self._counts = entry.counts
        self._paused_at = entry.started
        self._last_s = 0.0
        self.arm()

    def arm(self) -> None:
        """Have the next requests timed."""
        entry = self._entry()
        if entry is not None:
            self._weight = 1 + (entry.started - self._paused_at) // _BURST
            self._burst = _BURST
            entry.call = self._timed

    def paused(self) -> bool:
        """Whether it is disarmed and requests have come since."""
        entry = self._entry()
        return entry is not None and entry.call is self._direct

    def _timed(self, X: Any) -> Any:
        started_s = time.perf_counter()
        try:
            return self._direct(X)
        finally:
            self._counts.latency.add(time.perf_counter() - started_s, self._weight)
            seldom = started_s - self._last_s > _ALWAYS_TIMED_S
            self._last_s = started_s
            self._burst = _BURST if seldom else self._burst - 1
            if seldom:
                self._weight = 1
            if self._burst <= 0:
                self._disarm()

    def _disarm(self) -> None:
        entry = self._entry()
        if entry is not None:
            self._paused_at = entry.started
            entry.call = self._direct


def predicting(name: str, model: Any) -> Callable[[Any], Any]:
    """What ``handle.predict`` calls: the model's ``predict``, or the model itself where it is a function."""
    found: Callable[[Any], Any] | None = getattr(model, "predict", None)
    if found is None and callable(model):
        found = model
    if found is not None and callable(found):
        return found

    def refuse(X: Any) -> Any:
        raise NotPredicting(model=name, type=type(model).__qualname__)

    return refuse


class Lease:
    """One version across several calls: ``with handle.lease() as model``. It may be entered once."""

    __slots__ = ("_entry", "_handle")

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._entry: Entry | None = None

    def __enter__(self) -> Any:
        entry = self._handle._hold()
        self._entry = entry
        return entry.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.ended += 1

    @property
    def version(self) -> int:
        """The version that is leased. Raises RuntimeError outside of ``with``."""
        if self._entry is None or self._entry.offer is None:
            raise RuntimeError("the lease has not begun, or has ended")
        return self._entry.offer.version


class Handle:
    """A model by its name. Made by ``Client.load``; valid as long as the client is open."""

    __slots__ = ("__weakref__", "_client", "_cold", "_entry", "_failure", "_identity", "_offer", "name", "wanted")

    def __init__(self, client: Client, name: str, wanted: int | None) -> None:
        self.name = name
        self.wanted = wanted
        """The version asked for; None follows ``current``."""
        self._client = client
        self._offer: Offer | None = None
        self._identity = ""
        """Of what LIVE offered when ``_offer`` was loaded."""
        self._failure: Failure | None = None
        self._cold = Entry(None, None, self._predict_cold, None, 0)
        self._entry = self._cold

    def predict(self, X: Any) -> Any:
        """Call the active version's ``predict``. A model that was evicted is loaded first.

        Raises: what the model raises; NotPredicting; what ``Client.load`` raises when it must be loaded.
        """
        entry = self._entry
        entry.started += 1
        call = entry.call  # on a line of its own: CPython 3.11 has a fast way to read a slot, and none to call one
        try:
            return call(X)
        finally:
            entry.ended += 1

    def lease(self) -> Lease:
        """Hold one version for several calls, whatever is swapped meanwhile; it is neither evicted nor released."""
        return Lease(self)

    @property
    def model(self) -> Any:
        """The loaded object. Whoever keeps it keeps its memory; prefer ``lease``."""
        with self.lease() as model:
            return model

    @property
    def version(self) -> int:
        """The version that answers now, or answered last if it is evicted; 0 for a directory that nobody manages."""
        return self._known().version

    @property
    def digest(self) -> str:
        """Its manifest's digest; empty for a directory that nobody manages."""
        return self._known().digest

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What its publisher said of it: class, parameters, schema (see ``modelsync.publish``)."""
        return self._known().metadata

    @property
    def resident(self) -> bool:
        """Whether it is in memory."""
        return self._entry is not self._cold

    def __repr__(self) -> str:
        known = self._offer
        return f"<Handle {self.name} version {known.version if known else '?'}>"

    # --- for the client ---------------------------------------------------------------------------------------------

    def _known(self) -> Offer:
        offer = self._offer
        if offer is None:
            raise RuntimeError("this handle was never loaded")
        return offer

    def _hold(self) -> Entry:
        entry = self._entry
        entry.started += 1
        if entry.offer is None:
            entry.ended += 1
            entry = self._client._missed(self)
        return entry

    def _predict_cold(self, X: Any) -> Any:
        started_s = time.perf_counter()
        entry = self._client._missed(self)
        try:
            return entry.direct(X)
        finally:
            entry.ended += 1
            if entry.counts is not None:
                entry.counts.latency.add(time.perf_counter() - started_s)
