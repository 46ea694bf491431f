"""One load, from the name to the object: find, choose, ask for trust, verify, deserialise, warm up. It blocks.

This file alone decides in which order that happens; where the object goes is the client's question.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from modelsync.client.counting import LoadTimes
from modelsync.client.loaders import choose
from modelsync.client.loaders.contract import LoadContext, Loader, Progress
from modelsync.client.offers import Offer
from modelsync.client.pacing import Pace
from modelsync.core.errors import ModelFileRefused, ModelsyncError, PickleNotTrusted, WarmUpFailed

WarmUp = Callable[[Any, LoadContext], object]
"""Called with a loaded model before anybody else sees it; what it raises refuses the version."""
Trusted = Collection[str] | Literal["all"]
Verify = Literal["sizes", "digests"]
Reserve = Callable[[int], None]
"""Makes room for so many bytes, or raises BudgetExceeded."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to answer."""

    offer: Offer
    model: Any
    loader: Loader
    size_bytes: int
    times: LoadTimes


@dataclass(frozen=True, slots=True)
class Loading:
    """How a client loads."""

    loaders: Sequence[Loader] = ()
    trusted: Trusted = ()
    warm_up: WarmUp | None = None
    verify: Verify = "sizes"

    def run(self, offer: Offer, found_s: float, progress: Progress, reserve: Reserve, pace: Pace) -> Loaded:
        """Load a version.

        Args:
            found_s: what finding it took; it counts as reading.
            reserve: called once, as soon as the size is known.
            pace: of this thread, beside requests.
        Raises: FileNotFoundError: it was removed meanwhile; PickleNotTrusted; LoaderUnavailable; ModelFileRefused;
            WarmUpFailed; BudgetExceeded; RemoteFault, DigestMismatch: what lies elsewhere cannot be had.
        """
        trusted = self.trusted == "all" or offer.name in self.trusted
        fetch = offer.fetched.fetch if offer.fetched is not None else None
        context = LoadContext(
            offer.name, offer.version, offer.metadata, offer.files, progress, trusted, fetch, pace.stand_back
        )
        loader = choose(self.loaders, offer.path, context)
        if loader.runs_code and not trusted:
            raise _untrusted(offer, loader)
        times = LoadTimes(read_s=found_s)
        if fetch is None:
            times.verify_s = _timed(lambda: self._verified(offer, loader, pace))
        elif not getattr(loader, "fetches", False):
            times.read_s += _timed(lambda: _all_fetched(context))
        size_bytes = _guarded(lambda: loader.size_bytes(offer.path, context), offer, loader)
        reserve(size_bytes)
        started_s = time.perf_counter()
        model = _guarded(lambda: loader.load(offer.path, context), offer, loader)
        times.deserialise_s = max(0.0, time.perf_counter() - started_s - context.read_s)
        times.read_s += context.read_s
        progress(offer.size_bytes, offer.size_bytes)
        times.warm_up_s = _timed(lambda: self._warmed_up(model, context))
        return Loaded(offer, model, loader, size_bytes, times)

    def _verified(self, offer: Offer, loader: Loader, pace: Pace) -> None:
        """The daemon verified every byte before it made the tree; here the sizes are looked at, or all of it again."""
        for path, size_bytes in offer.files.items():
            file = offer.path / path
            found_bytes = os.stat(file).st_size
            if found_bytes != size_bytes:
                reason = f"{found_bytes:,} bytes, the manifest says {size_bytes:,}"
                raise ModelFileRefused(path=str(file), loader=loader.name, reason=reason)
            if self.verify == "digests" and path in offer.digests and _digest(file, pace) != offer.digests[path]:
                reason = "its bytes are not those of the manifest: run `modelsync verify`"
                raise ModelFileRefused(path=str(file), loader=loader.name, reason=reason)

    def _warmed_up(self, model: Any, context: LoadContext) -> None:
        if self.warm_up is None:
            return
        try:
            self.warm_up(model, context)
        except Exception as error:
            raise WarmUpFailed(model=context.name, version=context.version, reason=_said(error)) from error


def _all_fetched(context: LoadContext) -> None:
    for path in context.files:
        context.need(path)


def _untrusted(offer: Offer, loader: Loader) -> PickleNotTrusted:
    return PickleNotTrusted(
        reason=f"{offer.name} ({offer.path}) is a {loader.name} file: loading it runs code of whoever published it. "
        f"If you trust them, say so: Client(…, trust_pickle=[{offer.name!r}]), or modelsync-serve --trust-pickle"
    )


def _guarded(work: Callable[[], Any], offer: Offer, loader: Loader) -> Any:
    """Translate whatever a format's library raises over a damaged file."""
    try:
        return work()
    except (ModelsyncError, FileNotFoundError):
        raise
    except MemoryError as error:
        reason = "not enough memory, or a header that claims more than there is"
        raise ModelFileRefused(path=str(offer.path), loader=loader.name, reason=reason) from error
    except Exception as error:
        raise ModelFileRefused(path=str(offer.path), loader=loader.name, reason=_said(error)) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:400]


def _timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _digest(file: Path, pace: Pace) -> bytes:
    hasher, buffer = blake3(), bytearray(1 << 20)
    view = memoryview(buffer)
    with open(file, "rb", buffering=0) as opened:
        while size := opened.readinto(buffer):
            hasher.update(view[:size])
            pace.stand_back()
    return hasher.digest()
