"""Placements over a membership history, under virtual time: the pure core with nodes, disks and links that are numbers.

What is checked at each step: a model with a living copy is found by whoever looks at the last reports, and no
node lets go of a copy while that would leave fewer than it was told. Every run can be repeated by its seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from modelsync.core.storage import moves, placement
from modelsync.core.storage.placement import Item, Place

STEP_S = 30.0
GRACE_S = 300.0
"""A node that is silent for this long is replaced."""
RATE_BYTES_PER_S = 100 << 20
AT_ONCE_PER_NODE = 4
WEEK_S = 7 * 86400.0


@dataclass
class Outcome:
    """What a run came to. ``unavailable``: steps times models that had a living copy and were not found."""

    seed: int
    steps: int = 0
    deaths: int = 0
    returns: int = 0
    unavailable: int = 0
    last_copies_let_go: int = 0
    without_living_copy: int = 0
    """Steps times models of which every holder was dead: nothing could serve them."""
    moved_bytes: int = 0
    under_replicated_at_end: int = 0
    busiest_at_end: float = 0.0
    under_replicated_most: int = 0


@dataclass
class _Node:
    place: Place
    up: bool = True
    since_s: float = 0.0
    back_at_s: float | None = None


@dataclass
class Fleet:
    """One run."""

    seed: int
    nodes: int
    models: int
    copies: int
    now_s: float = 0.0
    known: dict[str, _Node] = field(default_factory=dict)
    held: dict[str, set[str]] = field(default_factory=dict)
    owners: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pulling: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.outcome = Outcome(self.seed)
        zones = max(1, min(5, self.nodes // self.copies))
        for number in range(self.nodes):
            place = Place(f"node-{number}", self.dice.choice((1.0, 1.0, 2.0)), f"zone-{number % zones}")
            self.known[place.id] = _Node(place)
        sizes = [min(int(self.dice.lognormvariate(19.5, 1.2)), 4 << 30) for _ in range(self.models)]
        self.items = {f"model-{n}": Item(f"model-{n}", size, self.copies) for n, size in enumerate(sizes)}
        self.target = placement.arranged(self.items.values(), self._places(), {})
        self.owners = dict(self.target)
        self.held = {key: set(owners) for key, owners in self.owners.items()}
        self.reports = {key: set(holders) for key, holders in self.held.items()}
        self.members = frozenset(self.known)

    def run(self, steps: int) -> Outcome:
        for _ in range(steps):
            self.now_s += STEP_S
            self._fail_and_return()
            self._check()
            self._place()
            self._pull()
            self._let_go()
            self._report()
            self.outcome.steps += 1
        self._quiet_down()
        return self.outcome

    # --- what happens to nodes ---------------------------------------------------------------------------------------

    def _fail_and_return(self) -> None:
        for node in self.known.values():
            if not node.up and node.back_at_s is not None and self.now_s >= node.back_at_s:
                node.up, node.since_s, node.back_at_s = True, self.now_s, None
                self.outcome.returns += 1
        if self.dice.random() < 0.02:
            zone = self.dice.choice(list(self.known.values())).place.zone
            self._kill(
                (n for n in self.known.values() if n.place.zone == zone and self.dice.random() < 0.2), brief=True
            )
        if self.dice.random() < min(1.0, self.nodes / 2000):
            self._kill([self.dice.choice(list(self.known.values()))], brief=False)

    def _kill(self, nodes: Iterable[_Node], *, brief: bool) -> None:
        for node in nodes:
            if node.up:
                node.up, node.since_s = False, self.now_s
                away_s = self.dice.uniform(60, 1800) if brief else self.dice.choice((600.0, 86400.0, WEEK_S))
                node.back_at_s = self.now_s + away_s
                self.outcome.deaths += 1
                self.pulling = {move: left for move, left in self.pulling.items() if move[1] != node.place.id}

    def _up(self, node: str) -> bool:
        return self.known[node].up

    # --- what the fleet does ----------------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        return [n.place for n in self.known.values() if n.up or self.now_s - n.since_s < GRACE_S]

    def _living(self, key: str) -> set[str]:
        return {node for node in self.held[key] if self._up(node)}

    def _check(self) -> None:
        """Whoever looks for a model asks the nodes that last reported it; one of them must have it and live."""
        short = 0
        for key, holders in self.held.items():
            living = any(self.known[node].up for node in holders)
            found = any(self.known[node].up and node in holders for node in self.reports[key])
            self.outcome.unavailable += living and not found
            self.outcome.without_living_copy += not living
            short += len(self._living(key)) < self.copies
        self.outcome.under_replicated_most = max(self.outcome.under_replicated_most, short)

    def _place(self) -> None:
        places = self._places()
        members = frozenset(place.id for place in places)
        living = {key: {n for n in holders if n in members and self._up(n)} for key, holders in self.reports.items()}
        if members != self.members:
            self.members = members
            self.target = placement.arranged(self.items.values(), places, self.owners, living)
        at_once = AT_ONCE_PER_NODE * len(members)
        changes = moves.next_owners(self.items.values(), self.owners, self.target, living, at_once)
        self.owners.update(changes)

    def _pull(self) -> None:
        """Each living owner receives what it lacks, at the rate of its link, from any living holder."""
        budget = {node: RATE_BYTES_PER_S * STEP_S for node, state in self.known.items() if state.up}
        for move in moves.missing_copies(self.items.values(), self.owners, self.held):
            if budget.get(move.target, 0) <= 0 or not self._living(move.key):
                continue
            left = self.pulling.get((move.key, move.target), float(move.size_bytes))
            taken = min(left, budget[move.target])
            budget[move.target] -= taken
            self.pulling[move.key, move.target] = left - taken
            if left <= taken:
                del self.pulling[move.key, move.target]
                self.held[move.key].add(move.target)
                self.outcome.moved_bytes += move.size_bytes

    def _let_go(self) -> None:
        for key, holders in self.held.items():
            extra = [node for node in holders if node not in self.owners[key] and self._up(node)]
            for node in extra:
                # A dead node's last report still says that it holds: whoever reads reports sees that it is silent.
                reported = {other for other in self.reports[key] if self._up(other)}
                if moves.may_let_go(node, self.owners[key], reported):
                    holders.discard(node)
                    self.outcome.last_copies_let_go += not self._living(key)

    def _report(self) -> None:
        for key, holders in self.held.items():
            if holders != self.reports[key]:
                self.reports[key] = {n for n in holders if self._up(n)} | {
                    n for n in self.reports[key] if not self._up(n)
                }

    def _quiet_down(self) -> None:
        """Without further faults, everything is replicated again."""
        for _ in range(200):
            self.now_s += STEP_S
            self._place()
            self._pull()
            self._let_go()
            self._report()
        living = {key: self._living(key) for key in self.items}
        lost = sum(not nodes for nodes in living.values())
        short = moves.under_replicated(self.items.values(), living, len(self._places()))
        self.outcome.under_replicated_at_end = len(short) - lost
        places = self._places()
        self.outcome.busiest_at_end = placement.balance(self.items.values(), places, self.target).busiest


def run(seed: int, *, nodes: int = 1000, models: int = 10_000, copies: int = 2, steps: int = 200) -> Outcome:
    """One history."""
    return Fleet(seed, nodes, models, copies).run(steps)
