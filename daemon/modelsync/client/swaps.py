"""What an application is told when a model answers with another version than before."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("modelsync.client")


@dataclass(frozen=True, slots=True)
class Swap:
    """A model answers with another version than before."""

    name: str
    before: int
    version: int
    digest: str


class Listeners:
    """Those who asked to be told of swaps."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Swap], object]] = []

    def add(self, callback: Callable[[Swap], object]) -> Callable[[], None]:
        """Tell one more, until what is returned is called."""
        self._callbacks.append(callback)

        def end() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return end

    def tell(self, swap: Swap) -> None:
        """Tell all, one after another; what they raise is theirs, and is logged."""
        for callback in list(self._callbacks):
            try:
                callback(swap)
            except Exception:
                log.exception("callback.failed model=%s version=%d", swap.name, swap.version)
