"""Who may take the lease, and when: exclusions, the order among candidates, and the moment an observation is ripe.

The order is a courtesy that saves a fetch; nothing depends on it. Two candidates that act at once are told apart by
the compare-and-set in Redis, and whoever wins fetches what another has ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelsync.core.election.lease import HANDOFF, HELD, RELEASED, Authority, Timing, Watch, same_grant
from modelsync.core.ids import ZERO_ID, EntryId

SELDOM = 0.4
"""Of a ttl: observations further apart than half of one begin anew."""
MAX_RANKS = 8
"""Later ranks start together with the eighth, so that in a large fleet the last does not wait for minutes."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A member as a candidate, ourselves included. The best: highest applied, then priority, then lowest id."""

    id: str
    applied: EntryId = ZERO_ID
    priority: int = 0
    eligible: bool = True


@dataclass(frozen=True, slots=True)
class Eligibility:
    """What the rest of the node knows about its fitness."""

    excluded: str = ""
    """Why this node must not be primary (replica by configuration, nofailover, stale, failing disk). Empty: fit."""
    paused: bool = False
    """An operator has stopped promotions; one that an operator asks for by name goes on."""
    rivals: Sequence[Rival] = ()


FIT = Eligibility()


def start_delay_s(node: str, last_holder: str, eligibility: Eligibility, timing: Timing) -> float:
    """How long this node lets better candidates go first: one heartbeat for each, at most ``MAX_RANKS`` of them."""
    return min(_rank(node, last_holder, eligibility), MAX_RANKS) * timing.heartbeat_s


def _rank(node: str, last_holder: str, eligibility: Eligibility) -> int:
    """How many candidates are better; all of them for one that is none itself."""
    ranked = sorted(
        (rival for rival in eligibility.rivals if rival.eligible and rival.id != last_holder),
        key=lambda rival: (-rival.applied.epoch, -rival.applied.seq, -rival.priority, rival.id),
    )
    return next((index for index, rival in enumerate(ranked) if rival.id == node), len(ranked))


def watch_every_s(node: str, last_holder: str, eligibility: Eligibility, timing: Timing) -> float:
    """How often a node that holds nothing looks at the lease: with each heartbeat, if its turn could come soon.

    In a large fleet all others look just often enough for an observation to count (``lease.observed``): a thousand
    nodes that read the lease four times a second would be most of what Redis has to do.
    """
    soon = not eligibility.excluded and _rank(node, last_holder, eligibility) < MAX_RANKS
    if soon or len(eligibility.rivals) <= MAX_RANKS:
        return timing.heartbeat_s
    return max(timing.heartbeat_s, SELDOM * timing.ttl_s)


def ripe_at_s(
    node: str,
    watch: Watch,
    eligibility: Eligibility,
    timing: Timing,
    *,
    highest: int,
    predecessor: Authority | None,
    not_before_s: float,
) -> float | None:
    """From when on this node may acquire, if what it observes does not change. None: never.

    Args:
        highest: the highest epoch this node has on disk or was told of; 0 only in a fleet that begins.
        predecessor: the grant on this node's disk when it started, before its first read; None later.
        not_before_s: the end of this node's back-off, which counts only where nobody asked for it by name.
    """
    lease = watch.lease
    if eligibility.excluded:
        return None
    if _was_ours(node, predecessor, watch):
        return watch.since_s
    if lease.state == HANDOFF and lease.successor == node:
        return watch.since_s
    if eligibility.paused:
        return None
    delay_s = start_delay_s(node, lease.holder, eligibility, timing)
    return max(not_before_s, watch.since_s + _silence_s(watch, highest, timing) + delay_s)


def _silence_s(watch: Watch, highest: int, timing: Timing) -> float:
    """How long the lease must stay as it is before it counts as nobody's."""
    lease = watch.lease
    if lease.state == RELEASED or (lease.epoch == 0 and highest == 0):
        return 0.0
    return timing.ttl_s  # held, handed to another, or lost by Redis: its holder gets the time to write it back


def _was_ours(node: str, predecessor: Authority | None, watch: Watch) -> bool:
    """Whether the holder was this node's former process. It is dead, since we hold its state directory's lock; a
    second node with our id has a state directory of its own, and so another grant on disk."""
    lease = watch.lease
    return (
        predecessor is not None
        and lease.state == HELD
        and predecessor.holder == node
        and same_grant(predecessor, lease.epoch, lease.holder, lease.nonce)
    )
