"""One loaded version of one model, and what is asked of it. Made by a load, freed by whoever lets go of it last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelsync.client.counting import VersionCounts
from modelsync.client.hit import Call
from modelsync.client.offers import Offer
from modelsync.core.errors import NotPredicting

if TYPE_CHECKING:
    from modelsync.client.timing import Timer


class Entry:
    """A loaded version, or what stands in for one that is not in memory.

    It is freed the moment the last call or lease lets go of it, so once it answers no more, nothing that it refers to
    may refer back to it.
    """

    __slots__ = (
        "__weakref__",
        "_begun_at",
        "_count",
        "_seen",
        "counts",
        "direct",
        "leases",
        "loaded_s",
        "model",
        "offer",
        "size_bytes",
        "stamp",
        "timer",
    )

    def __init__(
        self, offer: Offer | None, model: Any, direct: Call, counts: VersionCounts | None, size_bytes: int
    ) -> None:
        self.offer = offer
        self.model = model
        self.direct = direct
        self.counts = counts
        self.size_bytes = size_bytes
        self.leases = 0
        self.stamp = 0
        self.loaded_s = time.monotonic()
        self.timer: Timer | None = None
        self._count: Callable[[], int] | None = None
        self._begun_at = self._seen = 0

    def begin(self, count: Callable[[], int], begun_at: int) -> None:
        """It answers from now on: requests are its own from ``begun_at`` on."""
        self._count, self._begun_at, self._seen = count, begun_at, begun_at
        if self.counts is not None:
            self.counts.answering.add(self)

    def end(self, ended_at: int) -> None:
        """It answers no more."""
        self._count = None
        if self.counts is not None:
            self.counts.ended_requests += ended_at - self._begun_at
            self.counts.answering.discard(self)

    @property
    def requests(self) -> int:
        """How many it was asked since it began to answer; 0 when it does not."""
        return self._count() - self._begun_at if self._count is not None else 0

    def swept(self, number: int) -> int:
        """Note whether it was used since the sweep before; returns how often."""
        now = self._begun_at + self.requests
        uses, self._seen = now - self._seen, now
        if uses or self.leases:
            self.stamp = number
        return uses


def predicting(name: str, model: Any) -> Call:
    """What ``handle.predict`` calls: the model's ``predict``, or the model itself where it is a function."""
    found: Call | None = getattr(model, "predict", None)
    if found is None and callable(model):
        found = model
    if found is not None and callable(found):
        return found

    def refuse(X: Any) -> Any:
        raise NotPredicting(model=name, type=type(model).__qualname__)

    return refuse
