"""What one node knows and holds in the election, and the rules about it that are each one line.

Every rule that keeps two nodes from writing is a function of its own here, in lease.py or in promise.py, so that a
test can take it away and see what it was there for (tests/sim/mutations.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from modelsync.core.election import messages as msg
from modelsync.core.election.candidacy import FIT, Eligibility
from modelsync.core.election.lease import NO_LEASE, Authority, LeaseView, Timing, Watch, may_write
from modelsync.core.election.promise import Round
from modelsync.core.ids import ZERO_ID, EntryId, NodeId


class Role(Enum):
    """``establishing`` is shown to people as ``candidate``: it may not write yet."""

    REPLICA = "replica"
    CANDIDATE = "candidate"
    ESTABLISHING = "establishing"
    PRIMARY = "primary"


@dataclass(frozen=True, slots=True)
class Claim:
    """An acquire that was sent. Where its answer was lost, the nonce in the lease tells that it was granted."""

    nonce: str
    sent_s: float


@dataclass(frozen=True, slots=True)
class State:
    """One node's side of the election. ``authority`` is set exactly in ESTABLISHING and PRIMARY."""

    node: NodeId
    incarnation: str
    """A token no other process has: what nonces begin with."""
    timing: Timing
    role: Role = Role.REPLICA
    highest: int = 0
    """The highest epoch on disk or heard of, ever. An acquire goes above it."""
    applied: EntryId = ZERO_ID
    predecessor: Authority | None = None
    """The grant on disk at the start, until the first read: see candidacy.ripe_at_s."""
    eligibility: Eligibility = FIT
    lease: LeaseView = NO_LEASE
    """The last one seen."""
    watch: Watch | None = None
    not_before_s: float = 0.0
    attempts: int = 0
    claim: Claim | None = None
    authority: Authority | None = None
    deadline_s: float = 0.0
    seq: int = 0
    round: Round | None = None
    round_began_s: float = 0.0
    preparing: bool = False


Step = tuple[State, tuple[msg.Effect, ...]]


def writing_authority(state: State, now_s: float) -> Authority | None:
    """The right to write at this instant: established by a majority, and within the lease."""
    established = state.role is Role.PRIMARY or (state.role is Role.ESTABLISHING and state.preparing)
    return state.authority if established and may_write(state.deadline_s, now_s) else None


def min_epoch(state: State) -> int:
    """What an acquire has to go above, whatever Redis remembers."""
    return state.highest


def must_step_down(authority: Authority, epoch: int) -> bool:
    """Whether a term is over because somebody used this epoch."""
    return epoch > authority.epoch


def contested(authority: Authority, epoch: int, holder: str, nonce: str) -> bool:
    """Whether somebody was granted our epoch as well: Redis forgot one of the two grants.

    At most one of them has its majority, but a member that promised the other can never follow this one. So whoever
    learns of it goes on under a higher epoch. Where no nonce is given nothing is known of a grant: every request
    carries its sender's epoch, and a follower's is ours.
    """
    return epoch == authority.epoch and nonce != "" and (holder, nonce) != (authority.holder, authority.nonce)
