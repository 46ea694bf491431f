"""Redis goes away for 1 to 600 s, again and again, with a healthy primary: nobody else may become primary.

A third of the outages end with a Redis that has lost everything, or its last second.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.redis_model import EMPTY
from tests.sim.world import Link, World

PER_WORLD = 20


@dataclass(frozen=True, slots=True)
class OutageOutcome:
    seed: int
    outages: int
    longest_s: float
    leader_changes: int
    not_resumed: int
    """Outages after which the same primary could not publish again within 3 s, in the same epoch."""
    virtual_s: float


def run(seed: int) -> OutageOutcome:
    """``PER_WORLD`` outages of one fleet. Lengths are spread evenly over the orders of magnitude."""
    world = World(("a", "b", "c"), seed)
    world.run(3.0, lambda: bool(world.oracle.terms))
    longest_s, not_resumed = 0.0, 0
    for _ in range(PER_WORLD):
        world.run(world.now_s + world.dice.uniform(0.5, 2))
        length_s = 600 ** world.dice.random()
        longest_s = max(longest_s, length_s)
        _outage(world, length_s)
        not_resumed += not _resumed(world)
    changes = len(world.oracle.terms) - 1 + len(world.oracle.violations)
    return OutageOutcome(seed, PER_WORLD, longest_s, changes, not_resumed, world.now_s)


def _outage(world: World, length_s: float) -> None:
    kind = world.dice.choice(("dead", "dead", "unreachable", "silent", "empty", "older"))
    server = world.redis
    assert server is not None
    before = server.data
    if kind in ("unreachable", "silent"):
        for key in world.nodes:
            world.links[key] = Link(cut=kind == "unreachable", answers_lost=kind == "silent", delay_s=0.01)
    else:
        world.redis = None
    world.run(world.now_s + length_s)
    if kind in ("empty", "older"):
        server.data = EMPTY if kind == "empty" else before
        world.oracle.intact = False
    world.redis = server
    world.links.clear()


def _resumed(world: World) -> bool:
    key = world.oracle.terms[0][2]
    node, epoch = world.nodes[key], world.oracle.terms[0][1]
    published = world.oracle.publishes
    return world.run(
        world.now_s + 3,
        lambda: world.oracle.publishes > published and (a := node.authority()) is not None and a.epoch == epoch,
    )
