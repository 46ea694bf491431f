"""From a seed to a schedule: which faults strike whom and when; then healing, and what must be true after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from modelsync.core.election.lease import NO_LEASE
from tests.sim.oracle import Violation
from tests.sim.redis_model import EMPTY, RedisModel
from tests.sim.world import TIMING, Link, Node, World

FAULTY_S = 9.0
HEAL_S = 14.0
"""Enough for: an observation (ttl), the longest start delay, one failed attempt with its back-off, and the repeat."""


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    violations: tuple[Violation, ...]
    virtual_s: float
    steps: int
    terms: int
    publishes: int
    acknowledged: int
    redis_lost_data: bool
    lines: tuple[str, ...] = ()


def run(seed: int, *, trace: bool = False) -> Outcome:
    """One schedule, the same for the same seed."""
    names = ("a", "b", "c") if seed % 4 else ("a", "b", "c", "d", "e")
    world = World(names, seed, trace=trace)
    world.at(0.5, lambda: _snapshot(world))
    _plan(world)
    world.run(FAULTY_S)
    if not world.oracle.violations:
        _heal(world)
        if not world.run(FAULTY_S + HEAL_S, lambda: converged(world)) and not world.oracle.violations:
            world.oracle.violated("heals", f"no primary with everything after {HEAL_S} s without faults")
        _check_end(world)
    oracle = world.oracle
    return Outcome(
        seed=seed,
        violations=tuple(oracle.violations),
        virtual_s=world.now_s,
        steps=world.steps,
        terms=len(oracle.terms),
        publishes=oracle.publishes,
        acknowledged=len(oracle.acknowledged),
        redis_lost_data=not oracle.intact,
        lines=tuple(world.lines or ()),
    )


def converged(world: World) -> bool:
    """One writer, and everybody on its term."""
    holders = world.holders()
    if len(holders) != 1:
        return False
    leader = world.nodes[holders[0][0]]
    if leader.office != holders[0][1]:
        return False
    return all(
        node.grant == leader.office and node.disk.applied.epoch == holders[0][1].epoch for node in world.nodes.values()
    )


def _check_end(world: World) -> None:
    for key, _ in world.holders():
        if world.nodes[key].office is not None:
            world.oracle.kept(key, world.nodes[key].disk.record.versions)


def _snapshot(world: World) -> None:
    world.keep_history()
    world.at(world.now_s + 0.5, lambda: _snapshot(world))


# --- faults ---------------------------------------------------------------------------------------------------------


def _plan(world: World) -> None:
    dice = world.dice
    lossy = dice.random() < 0.6
    faults = _WITH_DATA_LOSS if lossy else _WITHOUT_DATA_LOSS
    for _ in range(dice.randint(2, 9)):
        fault = dice.choice(faults)
        world.at(dice.uniform(0.3, FAULTY_S - 0.5), lambda fault=fault: fault(world))  # type: ignore[misc]


def _length_s(world: World) -> float:
    """Often about as long as a lease, where it matters most; sometimes very short or long."""
    return world.dice.choice((world.dice.uniform(0.05, 0.5), world.dice.uniform(0.7, 1.6), world.dice.uniform(1.5, 5)))


def _node(world: World) -> Node:
    """More often whoever may write."""
    holders = world.holders()
    if holders and world.dice.random() < 0.6:
        return world.nodes[holders[0][0]]
    return world.nodes[world.dice.choice(list(world.nodes))]


def _power_cut(world: World) -> None:
    node = _node(world)
    if node.alive:
        node.crash()
        world.at(world.now_s + _length_s(world), lambda: node.alive or node.start())


def _disk_lost(world: World) -> None:
    node = _node(world)
    if node.alive and world.oracle.whole:
        node.crash(disk_lost=True)
        world.at(world.now_s + _length_s(world), lambda: node.alive or node.start())


def _process_killed(world: World) -> None:
    """SIGKILL and a prompt restart: the next process finds its predecessor's grant on disk."""
    node = _node(world)
    if node.alive:
        node.crash()
        world.at(world.now_s + world.dice.uniform(0.01, 0.3), lambda: node.alive or node.start())


def _stopped(world: World) -> None:
    node = _node(world)
    node.stop(suspend=world.dice.random() < 0.5)
    world.at(world.now_s + _length_s(world), node.go_on)


def _clocks_jump(world: World) -> None:
    _node(world).wall_jump_s += world.dice.choice((-3600.0, 3600.0, 3e8, -3e8))


def _redis_down(world: World) -> None:
    if world.redis is None:
        return
    server, world.redis = world.redis, None
    world.trace("Redis is down")
    world.at(world.now_s + _length_s(world), lambda: _redis_up(world, server))


def _redis_up(world: World, server: RedisModel) -> None:
    if world.redis is None:
        world.trace("Redis is up")
        world.redis = server


def _redis_down_and_older(world: World) -> None:
    if world.redis is None:
        return
    server, world.redis = world.redis, None
    world.trace("Redis is down")

    def back() -> None:
        _redis_up(world, server)
        _rolled_back(world)

    world.at(world.now_s + _length_s(world), back)


def _rolled_back(world: World) -> None:
    if world.redis is not None and world.redis.history:
        at_s, data = world.dice.choice(world.redis.history[-8:])
        world.trace(f"Redis goes back to {at_s:.1f} s")
        world.redis_loses(data)


def _flushed(world: World) -> None:
    world.trace("Redis is flushed")
    world.redis_loses(EMPTY)


def _lease_deleted(world: World) -> None:
    if world.redis is not None:
        data = world.redis.data
        world.trace("the lease is deleted")
        world.redis_loses(replace(data, lease=NO_LEASE))


def _two_masters(world: World) -> None:
    """A Sentinel failover to a replica that lags; some nodes stay with the old master for a while."""
    if world.redis is None or world.other_redis:
        return
    old = world.redis
    world.redis = RedisModel(world.dice.choice(old.history[-4:])[1] if old.history else EMPTY)
    world.redis.history = list(old.history)
    world.oracle.intact = False
    stay = [name for name in world.nodes if world.dice.random() < 0.5]
    world.other_redis = dict.fromkeys(stay, old)
    world.trace(f"Redis fails over to an older replica; {stay} stay with the old master")
    world.at(world.now_s + _length_s(world), world.other_redis.clear)


def _link_fault(world: World) -> None:
    node, dice = _node(world), world.dice
    link = dice.choice(
        (Link(cut=True), Link(answers_lost=True), Link(delay_s=0.08), Link(delay_s=0.3), Link(delay_s=3))
    )
    world.links[node.key] = link
    world.trace(f"{node.key} to Redis: {link}")
    world.at(world.now_s + _length_s(world), lambda: world.links.pop(node.key, None))


def _partition(world: World) -> None:
    names = list(world.nodes)
    side = set(world.dice.sample(names, world.dice.randint(1, len(names) - 1)))
    both = world.dice.random() < 0.6
    cuts = {(x, y) for x in names for y in names if x in side and y not in side}
    cuts |= {(y, x) for x, y in cuts} if both else set()
    world.cuts |= cuts
    world.trace(f"{sorted(side)} cannot reach the others{'' if both else ' (one way)'}")
    if world.dice.random() < 0.3:
        for name in side:
            world.links[name] = Link(cut=True)
            world.at(world.now_s + _length_s(world), lambda name=name: world.links.pop(name, None))  # type: ignore[misc]
    world.at(world.now_s + _length_s(world), lambda: world.cuts.difference_update(cuts))


def _switchover(world: World) -> None:
    node = _node(world)
    node.release(world.dice.choice(["", *world.nodes]))


def _fitness(world: World) -> None:
    node, dice = _node(world), world.dice
    node.set_eligibility(excluded=dice.choice(("", "stale", "stale")), paused=dice.random() < 0.2)
    world.at(world.now_s + _length_s(world), node.set_eligibility)


_COMMON: tuple[Callable[[World], None], ...] = (
    _power_cut, _power_cut, _process_killed, _stopped, _stopped, _clocks_jump, _redis_down, _link_fault, _link_fault,
    _partition, _partition, _switchover, _fitness,
)  # fmt: skip
_WITHOUT_DATA_LOSS = (*_COMMON, _disk_lost)
_WITH_DATA_LOSS = (*_COMMON, _redis_down_and_older, _rolled_back, _rolled_back, _flushed, _lease_deleted, _two_masters)


def _heal(world: World) -> None:
    world.trace("everything heals")
    if world.redis is None:
        world.redis = RedisModel(EMPTY)
        world.oracle.intact = False
    world.other_redis.clear()
    world.links.clear()
    world.cuts.clear()
    for node in world.nodes.values():
        node.set_eligibility()
        if not node.alive:
            node.start()
        node.go_on()


__all__ = ["TIMING", "Outcome", "converged", "run"]
