"""The path of a request that finds its model in memory, and nothing else: no lock, no system call, one integer add.

Each handle gets functions of its own that share three cells: the version that answers, what is called of it, and how
many requests came. What they rely on, in CPython with its global lock (3.11 to 3.13): no other thread runs between
bytecodes that neither call nor jump back. So a request is counted and finds its version in one step, a switch replaces
the version and reads the count in one step, and every request is counted for the version that answered it. That a model
cannot be freed while it answers is Python's own promise: the call holds a reference. Figures: decision 9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from modelsync.client.entry import Entry

Call = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class HitPath:
    """What one handle is asked by, and switched by. Only ``predict`` and ``hold`` are for any thread at any time."""

    predict: Call
    hold: Callable[[], Entry]
    """Counts a request, like ``predict``, and returns the version that would have answered it."""
    switch: Callable[[Entry], int]
    """Lets another version answer from now on; returns how many requests came before it."""
    divert: Callable[[Entry, Call], None]
    """Has requests call something else as long as this version answers; does nothing when it no longer does."""
    count: Callable[[], int]
    """Requests since the handle was made, those that found nothing in memory among them."""


def hit_path(first: Entry) -> HitPath:
    """The functions of one handle, to begin with over ``first``."""
    entry, call, requests = first, first.direct, 0

    def predict(X: Any) -> Any:
        """Call the active version's ``predict``. A model that was evicted is loaded first.

        Raises: what the model raises; NotPredicting; what ``Client.load`` raises when it must be loaded.
        """
        nonlocal requests
        requests += 1
        held = entry  # noqa: F841  until this call returns: memory knows by it that the version is in use
        return call(X)

    def hold() -> Entry:
        nonlocal requests
        requests += 1
        return entry

    def switch(version: Entry) -> int:
        nonlocal entry, call
        direct = version.direct
        entry = version
        call = direct
        return requests

    def divert(version: Entry, instead: Call) -> None:
        nonlocal call
        if entry is version:
            call = instead

    return HitPath(_with_code_of_its_own(predict), hold, switch, divert, lambda: requests)


def _with_code_of_its_own(function: Call) -> Call:
    """A copy that specialises to the model that it calls: CPython keeps that in the code, which closures share."""
    made = cast(FunctionType, function)
    copy = FunctionType(made.__code__.replace(), made.__globals__, made.__name__, None, made.__closure__)
    copy.__qualname__ = "Handle.predict"
    return copy
