"""What an application holds: a model by its name, whatever version it is now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modelsync.client.backoff import Failure
from modelsync.client.entry import Entry
from modelsync.client.hit import hit_path
from modelsync.client.offers import Offer

if TYPE_CHECKING:
    from modelsync.client.client import Client


class Lease:
    """One version across several calls: ``with handle.lease() as model``. It may be entered once."""

    __slots__ = ("_entry", "_handle")

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._entry: Entry | None = None

    def __enter__(self) -> Any:
        entry = self._entry = self._handle._hold()
        entry.leases += 1
        return entry.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry, self._entry = self._entry, None
        if entry is not None and entry.leases:  # a child forked inside of it has forgotten all leases
            entry.leases -= 1

    @property
    def version(self) -> int:
        """The version that is leased. Raises RuntimeError outside of ``with``."""
        if self._entry is None or self._entry.offer is None:
            raise RuntimeError("the lease has not begun, or has ended")
        return self._entry.offer.version


class Handle:
    """A model by its name. Made by ``Client.load``; valid as long as the client is open."""

    __slots__ = (
        "__weakref__",
        "_client",
        "_cold",
        "_entry",
        "_failure",
        "_identity",
        "_offer",
        "_path",
        "name",
        "predict",
        "wanted",
    )

    predict: Callable[[Any], Any]
    """``predict(X)`` calls the active version's ``predict``; it may be kept, and follows switches like the handle.

    A model that was evicted is loaded first. Raises: what the model raises; NotPredicting; what ``Client.load`` raises
    when it must be loaded. Each handle has a function of its own: see ``hit``.
    """

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
        self._path = hit_path(self._cold)
        self.predict = self._path.predict

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

    def _switch(self, entry: Entry) -> None:
        """Let another version answer. The caller holds the client's lock."""
        before, self._entry = self._entry, entry
        requests = self._path.switch(entry)
        before.end(requests)
        entry.begin(self._path.count, requests)
        if entry.timer is not None:
            entry.timer.arm()

    def _empty(self) -> None:
        """Let nothing answer until it is loaded again."""
        self._switch(self._cold)

    def _known(self) -> Offer:
        offer = self._offer
        if offer is None:
            raise RuntimeError("this handle was never loaded")
        return offer

    def _hold(self) -> Entry:
        entry = self._path.hold()
        if self._client._following.waits:
            self._client._following.asked()
        return entry if entry.offer is not None else self._client._missed(self)

    def _predict_cold(self, X: Any) -> Any:
        started_s = time.perf_counter()
        entry = self._client._missed(self)
        try:
            return entry.direct(X)
        finally:
            if entry.counts is not None:
                entry.counts.latency.add(time.perf_counter() - started_s)
