"""Which models leave memory so that another can come in. Pure: recency is handed in, nothing is freed here.

Least recently used, by stamps that the cache sets when a miss looks at the hit counters (see decision 9): among models
that were used since the same miss the one with the fewest uses goes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Resident(Generic[Key]):
    """One model in memory."""

    key: Key
    size_bytes: int
    stamp: int
    """The number of the miss before which it was last seen used."""
    uses: int
    """How often, since the stamp before."""
    held: bool
    """Leased, in a call, or pinned: never a victim."""


@dataclass(frozen=True, slots=True)
class Verdict(Generic[Key]):
    """What to do with a model that wants to come in."""

    victims: tuple[Key, ...]
    short_bytes: int
    """By how much the budget would be exceeded even so; 0: it fits."""


def admit(
    residents: Iterable[Resident[Key]], occupied_bytes: int, needed_bytes: int, budget_bytes: int
) -> Verdict[Key]:
    """Decide who leaves.

    Args:
        occupied_bytes: everything in memory: residents, models being loaded, old versions still leased.
        needed_bytes: what wants to come in.
    """
    surplus = occupied_bytes + needed_bytes - budget_bytes
    victims: list[Key] = []
    for each in sorted((r for r in residents if not r.held), key=lambda r: (r.stamp, r.uses)):
        if surplus <= 0:
            break
        victims.append(each.key)
        surplus -= each.size_bytes
    return Verdict(tuple(victims), max(0, surplus))
