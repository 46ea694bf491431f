"""The lease and its time rules: whose it is, until when its holder may write, when an observer may take it.

This file alone decides how time turns into the right to write. It reads no clock: every time is handed in, in seconds
of the node's own CLOCK_BOOTTIME, which goes on while the machine is suspended and which no operator can set. Times of
two nodes are never compared, and Redis's clock is never asked.

Why no two nodes may write at once while Redis keeps its data: a renewal that was sent at ``s`` was executed at or
after ``s``. The holder stops at ``s + ttl - margin``. An observer that has seen the result returned at some ``r >= s``
and takes the lease at ``r + ttl`` or later, by a compare-and-set which fails if another renewal came between.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core.ids import NodeId

HELD, RELEASED, HANDOFF = "held", "released", "handoff"
LEASE_STATES = (HELD, RELEASED, HANDOFF)

MARGIN_SHARE = 0.1
"""Of the ttl: what the holder gives up for clocks that do not run equally fast. Crystals differ by 1e-4 at most
(NTP's slew limit is 5e-4), so a tenth also covers the time between a check and the write that follows it."""

GAP_SHARE = 0.5
"""Of the ttl: an observer that has not read for this long has not observed, whether its reads failed or it slept."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The right to write, as one grant gave it; every write carries it and every receiver checks it."""

    epoch: int
    holder: NodeId
    nonce: str


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The lease as one successful read saw it. ``epoch`` 0 and an empty holder mean that there is none."""

    epoch: int = 0
    holder: str = ""
    nonce: str = ""
    seq: int = 0
    state: str = ""
    successor: str = ""
    url: str = ""


NO_LEASE = LeaseView()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, in seconds."""

    ttl_s: float = 3.0
    """From the last heartbeat an observer saw until it may take the lease."""
    heartbeat_s: float = 0.25

    @property
    def margin_s(self) -> float:
        return MARGIN_SHARE * self.ttl_s

    @property
    def grace_s(self) -> float:
        """How long a winner waits for the members beyond its majority: they may hold something newer."""
        return self.heartbeat_s

    @property
    def establish_s(self) -> float:
        """How long a winner may look for its majority before it gives the lease back."""
        return self.ttl_s

    @property
    def backoff_s(self) -> float:
        """How long a node that gave the lease back, or lost it, leaves it to the others."""
        return self.ttl_s


@dataclass(frozen=True, slots=True)
class Watch:
    """One unbroken observation: this lease was seen, unchanged, from ``since_s`` to ``last_s``."""

    lease: LeaseView
    since_s: float
    last_s: float


def same_grant(authority: Authority, epoch: int, holder: str, nonce: str) -> bool:
    """Whether two grants are one. The nonce tells apart two processes that use one node id, and two grants of one
    epoch to one node, of which Redis forgot the first."""
    return authority.epoch == epoch and authority.holder == holder and authority.nonce == nonce


def writing_deadline_s(sent_s: float, now_s: float, timing: Timing) -> float:
    """Until when a renewal lets its holder write: counted from before it was sent, not from ``now_s``, its answer."""
    return sent_s + timing.ttl_s - timing.margin_s


def may_write(deadline_s: float, now_s: float) -> bool:
    """Whether the holder is still within what its last good renewal gave it."""
    return now_s < deadline_s


def observed(watch: Watch | None, lease: LeaseView, now_s: float, timing: Timing) -> Watch:
    """The observation after one more successful read: it goes on only if nothing moved and no gap was left."""
    if watch is None or _moved(watch.lease, lease) or now_s - watch.last_s > GAP_SHARE * timing.ttl_s:
        return Watch(lease, now_s, now_s)
    return Watch(lease, watch.since_s, now_s)


def observation_after_failed_read(watch: Watch | None) -> Watch | None:
    """A read that failed tells nothing of the holder, who may be unable to renew for the same reason: start again."""
    return None


def _moved(before: LeaseView, after: LeaseView) -> bool:
    return (
        before.epoch != after.epoch
        or before.seq != after.seq
        or before.nonce != after.nonce
        or before.holder != after.holder
        or before.state != after.state
    )
