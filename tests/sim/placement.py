"""Placements over a membership history, under virtual time: the pure core with nodes, disks and links that are numbers.

Hosts and whole zones die and return after minutes or a week, some with an empty disk; disks fill up; hosts leave on
purpose; a part of the fleet is cut off from the primary and goes on by itself. What is checked at each step: a share
of a model with a living copy is found by whoever looks at the last reports, on either side of a cut; and no node lets
go of a copy while that would leave none. Every run can be repeated by its seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from modelsync.core.storage import moves, placement
from modelsync.core.storage.placement import Item, Place

STEP_S = 30.0
GRACE_S = 300.0
"""A node that is silent for this long is replaced."""
RATE_BYTES_PER_S = 100 << 20
AT_ONCE_PER_NODE = 4
WEEK_S = 7 * 86400.0
SPLIT_BYTES = 2 << 30


@dataclass
class Outcome:
    """What a run came to. ``unavailable``: steps times models that had a living copy and were not found."""

    seed: int
    steps: int = 0
    deaths: int = 0
    returns: int = 0
    disks_lost: int = 0
    disks_full: int = 0
    cuts: int = 0
    leavers: int = 0
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
    cut: bool = False
    """It runs, and neither the primary nor most others reach it."""
    leaving: bool = False
    full_until_s: float = 0.0
    loses_disk: bool = False


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
        self.items = {item.key: item for n, size in enumerate(sizes) for item in self._shares(f"model-{n}", size)}
        self.target = placement.arranged(self.items.values(), self._places(), {})
        self.owners = dict(self.target)
        self.held = {key: set(owners) for key, owners in self.owners.items()}
        self.reports = {key: set(holders) for key, holders in self.held.items()}
        self.members: frozenset[tuple[str, bool]] = frozenset()
        self.told_before: dict[str, set[str]] = {}
        """What was reported when a part of the fleet was cut off: all that it knows of the others, and of itself."""

    def _shares(self, name: str, size_bytes: int) -> list[Item]:
        """A model in one piece, or in parts if it is a big one."""
        count = -(-size_bytes // SPLIT_BYTES)
        return [Item(f"{name}#{part}", size_bytes // count, self.copies) for part in range(count)]

    def run(self, steps: int) -> Outcome:
        for _ in range(steps):
            self.now_s += STEP_S
            self._fail_and_return()
            self._check()
            self._place()
            self._let_go()  # before anything could be pulled: whoever lets go too early is seen
            self._pull()
            self._report()
            self.outcome.steps += 1
        self._quiet_down()
        return self.outcome

    # --- what happens to nodes ---------------------------------------------------------------------------------------

    def _fail_and_return(self) -> None:
        for node in self.known.values():
            if (not node.up or node.cut) and node.back_at_s is not None and self.now_s >= node.back_at_s:
                self._return(node)
        self._cut_and_fill()
        if self.dice.random() < 0.02:
            zone = self.dice.choice(list(self.known.values())).place.zone
            self._kill(
                (n for n in self.known.values() if n.place.zone == zone and self.dice.random() < 0.2), brief=True
            )
        if self.dice.random() < min(1.0, self.nodes / 2000):
            self._kill([self.dice.choice(list(self.known.values()))], brief=False)

    def _return(self, node: _Node) -> None:
        if node.loses_disk:
            for holders in self.held.values():
                holders.discard(node.place.id)
        node.up, node.cut, node.loses_disk = True, False, False
        node.since_s, node.back_at_s = self.now_s, None
        self.outcome.returns += 1

    def _cut_and_fill(self) -> None:
        nodes = [node for node in self.known.values() if node.up and not node.cut]
        if self.dice.random() < 0.01 and not any(node.cut for node in self.known.values()):
            self.outcome.cuts += 1
            self.told_before = {key: set(holders) for key, holders in self.reports.items()}
            healed_s = self.now_s + self.dice.choice((120.0, 1200.0))
            for node in nodes:
                if self.dice.random() < 0.1:
                    node.cut, node.since_s, node.back_at_s = True, self.now_s, healed_s
        if nodes and self.dice.random() < min(1.0, self.nodes / 5000):
            self.dice.choice(nodes).full_until_s = self.now_s + self.dice.uniform(300, 7200)
            self.outcome.disks_full += 1
        if nodes and self.dice.random() < max(0.02, min(0.2, self.nodes / 20_000)):
            node = self.dice.choice(nodes)  # one that was to leave may be wanted again
            node.leaving = not node.leaving and sum(n.leaving for n in nodes) < len(nodes) / 4
            self.outcome.leavers += node.leaving

    def _kill(self, nodes: Iterable[_Node], *, brief: bool) -> None:
        for node in nodes:
            if node.up:
                node.up, node.since_s = False, self.now_s
                away_s = self.dice.uniform(60, 1800) if brief else self.dice.choice((600.0, 86400.0, WEEK_S))
                node.back_at_s = self.now_s + away_s
                node.loses_disk = not brief and self.dice.random() < 0.1
                self.outcome.disks_lost += node.loses_disk
                self.outcome.deaths += 1
                self.pulling = {move: left for move, left in self.pulling.items() if move[1] != node.place.id}

    def _up(self, node: str) -> bool:
        """Whether the primary's side reaches it."""
        return self.known[node].up and not self.known[node].cut

    def _up_now(self) -> set[str]:
        return {name for name, node in self.known.items() if node.up and not node.cut}

    def _takes(self, node: _Node) -> bool:
        return node.up and not node.cut and self.now_s >= node.full_until_s

    # --- what the fleet does ----------------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        present = (n for n in self.known.values() if self._up(n.place.id) or self.now_s - n.since_s < GRACE_S)
        return [replace(n.place, accepting=self._takes(n)) for n in present if not n.leaving]

    def _living(self, key: str) -> set[str]:
        return {node for node in self.held[key] if self._up(node)}

    def _check(self) -> None:
        """Whoever looks for a model asks the nodes that last reported it; one of them must have it and live."""
        short, up = 0, self._up_now()
        cut = {name for name, node in self.known.items() if node.up and node.cut}
        nothing: set[str] = set()
        for key, holders in self.held.items():
            living = holders & up
            found = living & self.reports[key]
            apart = holders & cut  # the other side of a cut knows what was told before it
            found_apart = apart & self.told_before.get(key, nothing)
            self.outcome.unavailable += bool(living and not found) + bool(apart and not found_apart)
            self.outcome.without_living_copy += not living and not apart
            short += len(living) < self.copies
        self.outcome.under_replicated_most = max(self.outcome.under_replicated_most, short)

    def _place(self) -> None:
        places = self._places()
        members = frozenset((place.id, place.accepting) for place in places)
        up = self._up_now()
        living = {key: holders & up for key, holders in self.reports.items()}
        if members != self.members:
            self.members = members
            self.target = placement.arranged(self.items.values(), places, self.owners, living)
        at_once = AT_ONCE_PER_NODE * len(members)
        changes = moves.next_owners(self.items.values(), self.owners, self.target, living, at_once)
        self.owners.update(changes)

    def _pull(self) -> None:
        """Each living owner receives what it lacks, at the rate of its link, from any living holder."""
        budget = {node: RATE_BYTES_PER_S * STEP_S for node, state in self.known.items() if self._takes(state)}
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
        up = self._up_now()
        for key, holders in self.held.items():
            for node in holders.difference(self.owners[key]) & up:
                # A dead node's last report still says that it holds: whoever reads reports sees that it is silent.
                reported = self.reports[key] & up
                if moves.may_let_go(node, self.owners[key], reported):
                    holders.discard(node)
                    self.outcome.last_copies_let_go += not self._living(key)

    def _report(self) -> None:
        up = self._up_now()
        for key, holders in self.held.items():
            if holders != self.reports[key]:
                self.reports[key] = (holders & up) | (self.reports[key] - up)

    def _quiet_down(self) -> None:
        """Without further faults, everything is replicated again."""
        for node in self.known.values():
            if node.cut:
                self._return(node)
            node.full_until_s = 0.0
        still = 0
        for _ in range(200):
            before = (dict(self.owners), self.outcome.moved_bytes, bool(self.pulling))
            self.now_s += STEP_S
            self._place()
            self._pull()
            self._let_go()
            self._report()
            still = still + 1 if before == (self.owners, self.outcome.moved_bytes, False) else 0
            if still * STEP_S > 2 * GRACE_S:
                break  # nor would anything happen later
        living = {key: self._living(key) for key in self.items}
        short = moves.under_replicated(self.items.values(), living, len(self._places()))
        # Of what nobody living holds, and where nobody is left, nothing can be copied.
        self.outcome.under_replicated_at_end = sum(bool(living[key]) for key in short)
        places = self._places()
        self.outcome.busiest_at_end = placement.balance(self.items.values(), places, self.target).busiest


def run(seed: int, *, nodes: int = 1000, models: int = 10_000, copies: int = 2, steps: int = 200) -> Outcome:
    """One history."""
    return Fleet(seed, nodes, models, copies).run(steps)
