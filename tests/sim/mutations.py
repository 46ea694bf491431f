"""Each safeguard removed by itself, and the directed schedule that shows what it is there for.

A safeguard is one named function of the product (or, for what lies outside the core, of the model of it). Removing it
means replacing that function for one run. Every schedule must pass with the product as it is, and must be caught with
the one safeguard gone: a safeguard without such a schedule would be a belief.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from modelsync.core.election import candidacy, lease, promise
from modelsync.core.election import holding as election_holding
from modelsync.core.election import state as election_state
from modelsync.core.election import watching as election_watching
from modelsync.core.election.lease import NO_LEASE
from modelsync.core.election.promise import Verdict
from modelsync.core.election.state import Role
from tests.sim import redis_model, schedule
from tests.sim.oracle import Violation
from tests.sim.redis_model import EMPTY, RedisModel
from tests.sim.world import TIMING, Link, Node, World

CUT = Link(cut=True)


@dataclass(frozen=True, slots=True)
class Mutation:
    """``patches``: (where, name, what stands there instead)."""

    name: str
    without: str
    patches: tuple[tuple[Any, str, Any], ...]
    scenario: Callable[[], tuple[Violation, ...]]
    caught_by: tuple[str, ...]


@contextlib.contextmanager
def removed(mutation: Mutation) -> Iterator[None]:
    """The product without one safeguard, for as long as the block runs."""
    kept = [(where, name, getattr(where, name)) for where, name, _ in mutation.patches]
    try:
        for where, name, instead in mutation.patches:
            setattr(where, name, instead)
        yield
    finally:
        for where, name, original in kept:
            setattr(where, name, original)


# --- directed schedules ---------------------------------------------------------------------------------------------


def _fleet(seed: int = 1, names: tuple[str, ...] = ("a", "b", "c"), first: str = "a") -> World:
    """A fleet in which ``first`` is primary of epoch 1 or 2 and has published."""
    world = World(names, seed)
    _until(world, lambda: len(world.holders()) == 1 and world.nodes[world.holders()[0][0]].office is not None)
    if (holder := world.holders()[0][0]) != first:
        world.nodes[holder].release(first)
        _until(world, lambda: [key for key, _ in world.holders()] == [first] and world.nodes[first].office is not None)
    world.run(world.now_s + 0.6)
    return world


def _until(world: World, done: Callable[[], bool], within_s: float = 10.0) -> None:
    assert world.run(world.now_s + within_s, done) or world.oracle.violations, "the schedule did not come to its point"


def _isolate(world: World, *keys: str) -> None:
    """Cut each of these from every other node, both ways."""
    for key in keys:
        world.cuts |= {(key, other) for other in world.nodes} | {(other, key) for other in world.nodes}


def _join(world: World, *keys: str) -> None:
    """Take back cuts among these."""
    world.cuts -= {(x, y) for x in keys for y in keys}


def _one_epoch_twice() -> tuple[Violation, ...]:
    """The primary dies; a Sentinel split gives two candidates, who cannot reach anyone, one epoch each."""
    world = _fleet(first="c")
    world.nodes["c"].crash()
    _isolate(world, "a", "b")
    assert world.redis is not None
    world.other_redis["b"] = RedisModel(world.redis.data)
    world.oracle.intact = False
    world.run(world.now_s + 4)
    return tuple(world.oracle.violations)


def _asked_again(*, restart: bool) -> tuple[Violation, ...]:
    """c promises a's epoch; Redis forgets it and grants it to b; c is asked again."""
    world = _fleet(first="c")
    assert world.redis is not None
    _isolate(world, "b")
    world.links["b"] = CUT
    world.nodes["c"].release("a")
    data = world.redis.data
    _until(world, lambda: world.nodes["a"].office is not None)
    world.run(world.now_s + 1)
    world.nodes["a"].crash()
    if restart:
        world.nodes["c"].crash()
        world.nodes["c"].start()
    world.nodes["c"].set_eligibility(excluded="nofailover")
    world.redis_loses(data)
    world.links.clear()
    _join(world, "b", "c")
    world.run(world.now_s + 4)
    return tuple(world.oracle.violations)


def _stopped_with_an_answer_on_its_way() -> tuple[Violation, ...]:
    """A renewal is executed, its sender stops, goes on 0.9 s later with the answer in its hands, and is cut off."""
    world = _fleet()
    a = world.nodes["a"]
    world.links["a"] = Link(delay_s=0.02)
    _until(world, lambda: a.busy == 0 and a.state.seq > 0)
    seq = a.state.seq
    _until(world, lambda: a.state.seq > seq and world.redis is not None and world.redis.data.lease.seq == a.state.seq)
    if a.busy:
        a.stop()
    world.run(world.now_s + 0.9)
    world.links["a"] = CUT
    _isolate(world, "a")
    a.go_on()
    world.run(world.now_s + 2)
    return tuple(world.oracle.violations)


def _suspended() -> tuple[Violation, ...]:
    """The primary's machine sleeps for 3 s and wakes up without a network."""
    world = _fleet()
    world.nodes["a"].stop(suspend=True)
    world.run(world.now_s + 3)
    world.links["a"] = CUT
    _isolate(world, "a")
    world.nodes["a"].go_on()
    world.run(world.now_s + 1)
    return tuple(world.oracle.violations)


def _wall_clock_set_back() -> tuple[Violation, ...]:
    """An hour back on the primary, which is then cut off."""
    world = _fleet()
    world.links["a"] = CUT
    _isolate(world, "a")
    world.nodes["a"].wall_jump_s -= 3600
    world.run(world.now_s + 3)
    return tuple(world.oracle.violations)


def _cut_off() -> tuple[Violation, ...]:
    """The primary is cut from everything, and goes on."""
    world = _fleet()
    world.links["a"] = CUT
    _isolate(world, "a")
    world.run(world.now_s + 3)
    return tuple(world.oracle.violations)


def _redis_flaps() -> tuple[Violation, ...]:
    """Redis answers for a moment every other heartbeat, and never when the primary asks."""
    world = _fleet()
    server, terms = world.redis, len(world.oracle.terms)
    a = world.nodes["a"]
    for turn in range(20):
        world.redis = None
        _until(world, lambda seq=a.state.seq: a.state.seq > seq or len(world.oracle.terms) > terms)  # type: ignore[misc]
        if turn % 2:  # the primary's heartbeat was lost; until it tries again, others get an answer
            world.run(world.now_s + 0.005)
            world.redis = server
            world.run(world.now_s + 0.9 * TIMING.heartbeat_s)
            world.redis = None
    world.redis = server
    world.run(world.now_s + 1)
    return _no_new_term(world, terms)


def _asleep_through_an_outage() -> tuple[Violation, ...]:
    """An observer is stopped, Redis goes away and comes back, and the observer asks first."""
    world = _fleet()
    world.nodes["c"].set_eligibility(excluded="nofailover")
    server, terms = world.redis, len(world.oracle.terms)
    _until(world, lambda: world.nodes["b"].state.lease.seq == world.nodes["a"].state.seq)
    world.nodes["b"].stop()
    world.redis = None
    world.run(world.now_s + 2)
    world.redis, world.links["a"] = server, CUT
    world.nodes["b"].go_on()
    world.run(world.now_s + 0.25)
    world.links.clear()
    world.run(world.now_s + 1)
    return _no_new_term(world, terms)


def _no_new_term(world: World, terms: int) -> tuple[Violation, ...]:
    if len(world.oracle.terms) > terms:
        world.oracle.violated("outage", f"a Redis outage changed the primary: {world.oracle.terms[terms:]}")
    return tuple(world.oracle.violations)


def _flushed_and_dead() -> tuple[Violation, ...]:
    """Redis forgets everything and the primary dies."""
    world = _fleet(first="b")
    world.nodes["b"].crash()
    world.redis_loses(EMPTY)
    world.run(world.now_s + 4)
    return tuple(world.oracle.violations)


def _two_of_one_name() -> tuple[Violation, ...]:
    """A second machine was set up with the id of the first; a Sentinel split grants both one epoch."""
    world = _fleet(first="b")
    twin = world.nodes["x"] = Node(world, "x", ("a", "b", "c"), name="a")
    twin.start()
    world.run(world.now_s + 1)
    world.nodes["b"].crash()
    world.nodes["c"].set_eligibility(excluded="nofailover")
    assert world.redis is not None
    world.cuts |= {("a", "x"), ("x", "a")}
    world.other_redis["x"] = RedisModel(world.redis.data)
    world.oracle.intact = False
    world.run(world.now_s + 4)
    return tuple(world.oracle.violations)


def _stopped_before_the_write() -> tuple[Violation, ...]:
    """Stopped between the check and the write; another has the lease, but has written nothing, when it goes on."""
    world = _fleet()
    a, b, c = (world.nodes[key] for key in "abc")
    c.set_eligibility(excluded="nofailover")
    while not a.catalog_busy:  # right after a heartbeat, so that the write is the first thing it does when it goes on
        _until(world, lambda seq=a.state.seq: a.state.seq > seq)  # type: ignore[misc]
        world.run(world.now_s + 0.5 * TIMING.heartbeat_s, lambda: a.catalog_busy)
    a.stop()
    _isolate(world, "b")
    _until(world, lambda: b.state.role is Role.ESTABLISHING)
    a.go_on()
    world.run(world.now_s + 0.05)
    return tuple(world.oracle.violations)


def _only_peers_know() -> tuple[Violation, ...]:
    """The primary is cut from Redis; another takes over and asks it, too, for a promise."""
    world = _fleet()
    world.links["a"] = CUT
    world.run(world.now_s + 3)
    return tuple(world.oracle.violations)


def _written_after_a_rollback() -> tuple[Violation, ...]:
    """Redis loses acknowledged entries; the primary publishes on; then it dies."""
    world = _fleet()
    assert world.redis is not None
    data = world.redis.data
    _until(world, lambda: len(world.oracle.acknowledged) > len(data.record.versions) + 1)
    world.redis_loses(redis_model.replace(data, lease=world.redis.data.lease))
    world.run(world.now_s + 1)
    world.nodes["a"].crash()
    world.run(world.now_s + 4)
    return tuple(world.oracle.violations)


def _refused_after_its_answer_was_lost() -> tuple[Violation, ...]:
    """A write is executed and its answer lost; tried again, it is refused, since the lease is gone for a moment."""
    world = _fleet()
    a = world.nodes["a"]
    world.links["a"] = Link(answers_lost=True)
    _until(world, lambda: world.redis is not None and world.redis.data.tail > a.disk.applied)
    world.links.clear()
    assert world.redis is not None

    def gone_again() -> bool:
        assert world.redis is not None
        world.redis.data = redis_model.replace(world.redis.data, lease=NO_LEASE)
        return False

    world.run(world.now_s + 0.6, gone_again)
    world.run(world.now_s + 1)
    a.crash()
    world.run(world.now_s + 4)
    return tuple(world.oracle.violations)


def _promised_to_the_loser() -> tuple[Violation, ...]:
    """One epoch is granted twice; its loser, who has promised it to itself, is to follow the winner."""
    world = _fleet(first="c")
    c = world.nodes["c"]
    assert world.redis is not None
    c.set_eligibility(excluded="nofailover")
    _isolate(world, "b")
    world.other_redis["b"] = RedisModel(world.redis.data)
    world.oracle.intact = False
    c.release("a")
    for role in (Role.ESTABLISHING, Role.REPLICA):
        _until(world, lambda role=role: world.nodes["b"].state.role is role)  # type: ignore[misc]
    world.other_redis.clear()
    world.cuts.clear()
    if not world.run(world.now_s + 10, lambda: schedule.converged(world)):
        world.oracle.violated("heals", "not everybody follows the primary")
    return tuple(world.oracle.violations)


# --- the safeguards -------------------------------------------------------------------------------------------------


def _without_nonce(authority: Any, epoch: int, holder: str, nonce: str) -> bool:
    return bool(authority.epoch == epoch and authority.holder == holder)


def _from_the_answer(sent_s: float, now_s: float, timing: lease.Timing) -> float:
    return now_s + timing.ttl_s - timing.margin_s


MUTATIONS = (
    Mutation(
        "majority-promise",
        "a grant of Redis alone makes a primary",
        ((promise, "verdict", lambda round_: Verdict.ENOUGH),),
        _one_epoch_twice,
        ("one-writer", "one-promise"),
    ),
    Mutation(
        "disk-persistence",
        "promises are kept in memory only",
        ((Node, "persist", lambda self, grant: None),),
        lambda: _asked_again(restart=True),
        ("one-promise", "one-writer", "epochs-rise"),
    ),
    Mutation(
        "receiver-check",
        "every grant is accepted",
        ((promise, "grant_refusal", lambda accepted, epoch, holder, nonce: None),),
        lambda: _asked_again(restart=False),
        ("one-promise", "one-writer", "epochs-rise"),
    ),
    Mutation(
        "before-send-deadline",
        "the lease counts from the answer, not from before the request",
        tuple((module, "writing_deadline_s", _from_the_answer) for module in (election_watching, election_holding)),
        _stopped_with_an_answer_on_its_way,
        ("one-holder",),
    ),
    Mutation(
        "deadline",
        "a primary may write until somebody tells it not to",
        ((election_state, "may_write", lambda deadline_s, now_s: True),),
        _cut_off,
        ("one-holder",),
    ),
    Mutation(
        "boottime",
        "CLOCK_MONOTONIC, which stands still while the machine sleeps",
        ((Node, "clock_s", lambda self: self.boottime_s() - self.suspended_s),),
        _suspended,
        ("one-holder",),
    ),
    Mutation(
        "not-wall-time",
        "the wall clock, which anybody may set",
        ((Node, "clock_s", lambda self: self.boottime_s() + self.wall_jump_s),),
        _wall_clock_set_back,
        ("one-holder",),
    ),
    Mutation(
        "failed-read-restart",
        "an observation goes on over reads that failed",
        ((election_watching, "observation_after_failed_read", lambda watch: watch),),
        _redis_flaps,
        ("outage",),
    ),
    Mutation(
        "gap-restart",
        "an observation goes on over time in which nothing was read",
        ((lease, "GAP_SHARE", 1e9),),
        _asleep_through_an_outage,
        ("outage",),
    ),
    Mutation(
        "min-epoch",
        "Redis alone counts the epochs",
        ((election_watching, "min_epoch", lambda state: 0),),
        _flushed_and_dead,
        ("grants-rise",),
    ),
    Mutation(
        "nonce",
        "grants are told apart by epoch and holder only",
        tuple((module, "same_grant", _without_nonce) for module in (lease, promise, candidacy, election_holding)),
        _two_of_one_name,
        ("one-promise", "one-writer"),
    ),
    Mutation(
        "publish-fence",
        "Redis takes any write",
        ((redis_model, "fenced", lambda view, authority: True),),
        _stopped_before_the_write,
        ("fenced",),
    ),
    Mutation(
        "step-down-on-higher-epoch",
        "a primary goes on although a higher epoch is in use",
        ((election_holding, "must_step_down", lambda authority, epoch: False),),
        _only_peers_know,
        ("steps-down",),
    ),
    Mutation(
        "contested-epoch",
        "whoever holds an epoch that was granted twice stays in it",
        tuple((module, "contested", lambda *grants: False) for module in (election_watching, election_holding)),
        _promised_to_the_loser,
        ("heals",),
    ),
    Mutation(
        "grant-shown",
        "a member that cannot follow the primary keeps that to itself",
        ((election_watching, "_cannot_follow", lambda state, lease, accepted: False),),
        _promised_to_the_loser,
        ("heals",),
    ),
    Mutation(
        "log-chain",
        "a write does not name the entry that it follows",
        ((redis_model, "follows", lambda after, tail: True),),
        _written_after_a_rollback,
        ("none-lost",),
    ),
    Mutation(
        "unsettled-writes",
        "a refused retry frees the id that an earlier try used, and Redis takes any write under it for that try",
        ((Node, "may_stand", lambda self, refusal: False), (redis_model, "repeats", lambda entry, offered: True)),
        _refused_after_its_answer_was_lost,
        ("none-lost", "one-content"),
    ),
)


def outcome(mutation: Mutation) -> tuple[tuple[Violation, ...], tuple[Violation, ...]]:
    """What the mutation's own schedule shows with the product whole, and without the safeguard."""
    whole = mutation.scenario()
    with removed(mutation):
        return whole, mutation.scenario()


def caught_at_random(mutation: Mutation, count: int) -> int:
    """How many of the first random schedules notice that the safeguard is gone."""
    with removed(mutation):
        return sum(bool(schedule.run(seed).violations) for seed in range(1, count + 1))
