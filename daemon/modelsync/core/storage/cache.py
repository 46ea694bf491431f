"""What a bounded cache of versions gives up: the least recently used, never what is protected. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modelsync.core.ids import Digest


@dataclass(frozen=True, slots=True)
class Cached:
    """A version that lies here without having to."""

    digest: Digest
    size_bytes: int
    used_s: float
    """When it was last used, in any monotonic time."""


def kept(entries: Iterable[Cached], budget_bytes: int) -> frozenset[Digest]:
    """The most recently used that fit together; 0 means no limit.

    One that does not fit is skipped rather than ending the search: a large old version must not empty the cache.
    """
    result, left = set(), budget_bytes
    for entry in sorted(entries, key=lambda entry: (-entry.used_s, entry.digest)):
        if not budget_bytes or entry.size_bytes <= left:
            left -= entry.size_bytes
            result.add(entry.digest)
    return frozenset(result)
