"""From one arrangement to the next: which copies are missing, which are made now, which may go. DESIGN section 8.

This file alone decides the order of moves, and when a copy may be let go. Where things shall lie is ``placement``'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelsync.core.storage.placement import Item, Owners


@dataclass(frozen=True, slots=True)
class Move:
    """One copy that has to be made before a node may let go of another."""

    key: str
    size_bytes: int
    target: str
    living: int
    """How many living nodes hold it now."""


def missing_copies(items: Iterable[Item], owners: Owners, held: Mapping[str, Collection[str]]) -> list[Move]:
    """Copies that owners lack, the least replicated first: what is under way or has to be."""
    moves = []
    for item in items:
        holders = held.get(item.key, ())
        moves += [
            Move(item.key, item.size_bytes, owner, len(holders))
            for owner in owners.get(item.key, ())
            if owner not in holders
        ]
    return sorted(moves, key=lambda move: (move.living, move.size_bytes, move.key, move.target))


def next_owners(
    items: Collection[Item], before: Owners, target: Owners, held: Mapping[str, Collection[str]], at_once: int
) -> dict[str, tuple[str, ...]]:
    """The changes towards ``target`` to be made now, so that at most ``at_once`` copies are under way.

    What has lost copies, or an owner that never got its own, goes first and waits for nothing; evening out goes on as
    earlier moves end. An owner that is replaced is not waited for: what it lacks is not under way. What no living node
    holds stays with its owners: nothing could be copied, and they are who may bring it back.
    """
    staying = {key: [node for node in owners if node in target.get(key, ())] for key, owners in before.items()}
    under_way = len(missing_copies(items, {key: tuple(owners) for key, owners in staying.items()}, held))
    changes: dict[str, tuple[str, ...]] = {}
    for item in sorted(items, key=lambda item: (len(held.get(item.key, ())), item.key)):
        old, new = before.get(item.key, ()), target.get(item.key, ())
        if set(old) == set(new) or (old and not held.get(item.key)):
            continue
        to_copy = len([node for node in new if node not in held.get(item.key, ())])
        lacking = [node for node in old if node not in new and node not in held.get(item.key, ())]
        urgent = lacking or len(held.get(item.key, ())) < min(item.copies, len(new))
        if not to_copy or urgent or under_way + to_copy <= max(at_once, 1):
            changes[item.key] = new
            under_way += to_copy
    return changes


def may_let_go(node: str, owners: Sequence[str], holders: Collection[str]) -> bool:
    """Whether a node that is no owner may remove its copy: only when every owner has reported it verified."""
    return node not in owners and bool(owners) and all(owner in holders for owner in owners)


def under_replicated(items: Iterable[Item], living: Mapping[str, Collection[str]], nodes: int) -> dict[str, int]:
    """Item to the number of its living copies, where that is fewer than asked for (or than there are nodes)."""
    counts = {item.key: (len(living.get(item.key, ())), min(item.copies, nodes)) for item in items}
    return {key: count for key, (count, wanted) in counts.items() if count < wanted}


def moved_bytes(items: Iterable[Item], before: Owners, after: Owners) -> int:
    """Bytes of the copies that nodes have to receive."""
    return sum(item.size_bytes * len(set(after.get(item.key, ())) - set(before.get(item.key, ()))) for item in items)
