"""Which nodes own which models: weighted rendezvous hashing with a bound on every node's load. DESIGN section 8.

This file alone decides placements; how one follows another is ``moves``. It must not know where a placement is
recorded, who is alive, or how bytes move: membership, sizes and what is held are handed in. Plain rendezvous over a
hundred models leaves the busiest node a third above the mean, and a new node's share is luck; so the hash only
proposes, the load disposes, and what already lies somewhere stays there unless it must move. decisions/: "The primary
places, the hash proposes".
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

TOLERANCE = 0.10
"""Loads within a tenth of the fair share are left alone: below the bar of 1.25, and a move costs more than it evens."""
TOO_FULL = 0.20
"""Above this a node that others have joined gives to any of them, not to idle ones alone: still below the bar."""
COLDEST = 8
"""Nodes that a move off the busiest may go to: with more of them an arrangement of 1,000 nodes would take minutes."""

Owners = Mapping[str, tuple[str, ...]]
"""Item to the nodes that shall hold it; the first is where others look first."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node as a placement sees it."""

    id: str
    weight: float = 1.0
    """Its share, in any unit that all nodes use: the size of its disk."""
    zone: str = ""
    """Copies go to different zones while there are enough of them."""
    accepting: bool = True
    """False: its disk is full or failing. It keeps what it holds, and is given nothing."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is placed: a model, or one file of a model that is split."""

    key: str
    size_bytes: int
    copies: int


@lru_cache(maxsize=1 << 16)
def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def score(key: str, place: Place) -> float:
    """A node's rank for an item: the highest wins, and a node of twice the weight wins twice as often.

    Source: weighted rendezvous hashing, -weight / ln(hash in (0, 1)).
    """
    mixed = (_seed(key) ^ (_seed(place.id) * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF  # splitmix64's finalizer
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    mixed ^= mixed >> 31
    return -place.weight / math.log((mixed + 1) / 18446744073709551618.0)


def ranked(key: str, places: Iterable[Place]) -> list[Place]:
    """Nodes by their rank for an item, the best first."""
    return sorted(places, key=lambda place: (-score(key, place), place.id))


def arranged(
    items: Collection[Item],
    places: Collection[Place],
    before: Owners,
    held: Mapping[str, Collection[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Where everything shall lie, as near to where it lies as the loads allow.

    Args:
        before: the owners so far; those that are not among ``places`` are gone.
        held: nodes that hold an item, verified; None: all of ``before`` do. An owner that accepts nothing and
            does not hold what it owns is replaced.
    Returns:
        ``min(copies, nodes)`` owners an item; fewer only where too few nodes accept.
    """
    table = _Table(items, places)
    for item in table.by_size:
        table.keep(item, before.get(item.key, ()), held)
    table.share_out()
    for item in table.by_size:
        table.fill(item)
    table.level(TOO_FULL if before else TOLERANCE)
    return {key: tuple(owners) for key, owners in table.owners.items()}


@dataclass
class _Table:
    """An arrangement while it is made. ``load`` is bytes by node."""

    items: Collection[Item]
    places: Collection[Place]
    by_size: list[Item] = field(init=False)
    nodes: dict[str, Place] = field(init=False)
    owners: dict[str, list[str]] = field(default_factory=dict)
    load: dict[str, int] = field(init=False)
    owned: dict[str, set[Item]] = field(init=False)
    open_zones: set[str] = field(init=False)
    """With a node that accepts."""
    given: dict[str, float] = field(init=False)
    """By node, the bytes that it was given to receive, over its share of all that is to be received."""
    part: dict[str, float] = field(init=False)
    """That share, in bytes."""

    def __post_init__(self) -> None:
        self.by_size = sorted(self.items, key=lambda item: (-item.size_bytes, item.key))
        self.nodes = {place.id: place for place in self.places}
        self.load = dict.fromkeys(self.nodes, 0)
        self.owned = {node: set() for node in self.nodes}
        self.open_zones = {place.zone for place in self.places if place.accepting}
        total = sum(item.size_bytes * min(item.copies, len(self.nodes)) for item in self.items)
        weights = sum(place.weight for place in self.places if place.accepting) or 1.0
        self.fair = {node: max(1.0, total * place.weight / weights) for node, place in self.nodes.items()}

    def relative(self, node: str, more_bytes: int = 0) -> float:
        """A node's load over its fair share."""
        return (self.load[node] + more_bytes) / self.fair[node]

    def give(self, item: Item, node: str) -> None:
        self.owners[item.key].append(node)
        self.load[node] += item.size_bytes
        self.owned[node].add(item)

    def take(self, item: Item, node: str) -> None:
        self.owners[item.key].remove(node)
        self.load[node] -= item.size_bytes
        self.owned[node].discard(item)

    def keep(self, item: Item, before: Sequence[str], held: Mapping[str, Collection[str]] | None) -> None:
        """Let owners go on; of more than ``copies`` those that add a zone, then those that hold it, stay.

        A second one in a zone goes where a zone without any could take it: one that joined after all was placed.
        """
        self.owners[item.key] = []
        holders = set(before) if held is None else set(held.get(item.key, ()))
        left = [n for n in before if n in self.nodes and (n in holders or self.nodes[n].accepting)]
        while left and len(self.owners[item.key]) < item.copies:
            zones = self._zones_of(item)
            best = min(left, key=lambda n: (self.nodes[n].zone in zones, n not in holders, left.index(n)))
            lacking = item.copies - len(self.owners[item.key])
            if self.nodes[best].zone in zones and lacking <= len(self.open_zones - zones):
                return
            left.remove(best)
            self.give(item, best)

    def _zones_of(self, item: Item) -> set[str]:
        return {self.nodes[node].zone for node in self.owners[item.key]}

    def share_out(self) -> None:
        """What lost its owners is to come back through every node's link, and not through those with the most room."""
        nodes = len(self.nodes)
        lacking = sum(i.size_bytes * max(0, min(i.copies, nodes) - len(self.owners[i.key])) for i in self.items)
        weights = sum(place.weight for place in self.places if place.accepting) or 1.0
        self.given = dict.fromkeys(self.nodes, 0.0)
        self.part = {node: max(1.0, lacking * place.weight / weights) for node, place in self.nodes.items()}

    def fill(self, item: Item) -> None:
        """Find owners for copies that have none: by rank, past nodes that have or were given their share already."""
        if len(self.owners[item.key]) >= min(item.copies, len(self.nodes)):
            return
        order = [place.id for place in ranked(item.key, self.places) if place.accepting]
        while len(self.owners[item.key]) < item.copies:
            free = [node for node in order if node not in self.owners[item.key]]
            if not free:
                return
            zones = self._zones_of(item)
            apart = [node for node in free if self.nodes[node].zone not in zones] or free
            best = (n for n in apart if self._within(item, n) and self.relative(n, item.size_bytes) <= 1 + TOLERANCE)
            node = next(best, None) or self._least(item, apart)
            self.given[node] += item.size_bytes / self.part[node]
            self.give(item, node)

    def _within(self, item: Item, node: str) -> bool:
        """Whether a node would receive no more than its share of all that is to be received, and a bit."""
        return self.given[node] + item.size_bytes / self.part[node] <= 1 + TOLERANCE

    def _least(self, item: Item, nodes: Sequence[str]) -> str:
        """Of those with room for it the one that was given least, else the one with the most room."""
        room = [node for node in nodes if self.relative(node, item.size_bytes) <= 1 + TOLERANCE]
        if room:
            return min(room, key=lambda node: self.given[node])
        return min(nodes, key=lambda node: self.relative(node, item.size_bytes))

    def level(self, too_full: float) -> None:
        """Move copies off nodes above ``too_full`` and onto nodes below the tolerance.

        Each move lowers the higher of the two, so this ends; a node whose one item is above its share stays above.
        """
        hot = [(-self.relative(node), node) for node in self.nodes]
        heapq.heapify(hot)
        while hot:
            load, node = heapq.heappop(hot)
            if -load != self.relative(node):
                heapq.heappush(hot, (-self.relative(node), node))
                continue
            cold = self._coldest(node)
            if -load <= 1 + too_full:
                cold = [other for other in cold if self.relative(other) < 1 - TOLERANCE]
            if -load <= 1 or not cold:
                return
            if self._relieve(node, cold):
                heapq.heappush(hot, (-self.relative(node), node))

    def _coldest(self, node: str) -> list[str]:
        others = (other for other, place in self.nodes.items() if other != node and place.accepting)
        return heapq.nsmallest(COLDEST, others, key=lambda other: (self.relative(other), other))

    def _relieve(self, node: str, cold: Sequence[str]) -> bool:
        """Move the one item that fits best from ``node`` to the first of ``cold`` that can take one."""
        for other in cold:
            even = (self.relative(node) - self.relative(other)) / (1 / self.fair[node] + 1 / self.fair[other])
            short = (1.0 - self.relative(other)) * self.fair[other]  # no more than it lacks: every byte is a transfer
            wanted = min(even, short) if short > 0 else even
            movable = [item for item in self.owned[node] if self._improves(item, node, other)]
            if movable:
                best = min(movable, key=lambda item: (abs(item.size_bytes - wanted), item.key))
                self.take(best, node)
                self.give(best, other)
                return True
        return False

    def _improves(self, item: Item, node: str, other: str) -> bool:
        """Whether a move evens: neither of the two may end where the other began, nor lose a zone."""
        if not item.size_bytes or other in self.owners[item.key]:
            return False
        after, now = self.relative(other, item.size_bytes), self.relative(node)
        if after >= now or self.relative(node, -item.size_bytes) < min(1 - TOLERANCE, after):
            return False  # a giver that falls below its share is given to in turn: two transfers for one
        rest = {self.nodes[owner].zone for owner in self.owners[item.key] if owner != node}
        return self.nodes[other].zone not in rest or self.nodes[node].zone in rest


@dataclass(frozen=True, slots=True)
class Balance:
    """How even an arrangement is. ``busiest`` is the highest load over its fair share."""

    busiest: float
    idlest: float
    total_bytes: int
    most_bytes: int
    """On one node."""


def balance(items: Iterable[Item], places: Collection[Place], owners: Owners) -> Balance:
    """Loads relative to each node's fair share by weight."""
    load = {place.id: 0 for place in places}
    for item in items:
        for owner in owners.get(item.key, ()):
            load[owner] += item.size_bytes
    total, weights = sum(load.values()), sum(place.weight for place in places)
    shares = [load[place.id] / (total * place.weight / weights) if total else 1.0 for place in places]
    return Balance(max(shares, default=1.0), min(shares, default=1.0), total, max(load.values(), default=0))
