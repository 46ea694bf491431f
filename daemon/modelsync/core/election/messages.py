"""What goes into the election's state machine and what comes out of it.

Events are past tense and carry what was seen; effects are imperative. A reply names the authority it was asked under,
since what it answers may no longer matter when it arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core.election.candidacy import Eligibility
from modelsync.core.election.lease import Authority, LeaseView
from modelsync.core.election.promise import Ahead, Promise
from modelsync.core.ids import EntryId

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticked:
    """A heartbeat is due."""


@dataclass(frozen=True, slots=True)
class LeaseRead:
    """``accepted``: the highest grant on this node's disk when the read returned."""

    lease: LeaseView
    accepted: Authority | None = None


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """Redis did not answer a read, or with nothing that could be understood."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Redis granted the acquire that this nonce was sent with."""

    epoch: int
    nonce: str


@dataclass(frozen=True, slots=True)
class AcquireRefused:
    lease: LeaseView


@dataclass(frozen=True, slots=True)
class AcquireFailed:
    """No answer: it may have been granted, or may yet be."""


@dataclass(frozen=True, slots=True)
class GrantPersisted:
    """The grant is on this node's disk. ``members`` and ``applied``: those known there."""

    authority: Authority
    members: frozenset[str]
    applied: EntryId


@dataclass(frozen=True, slots=True)
class GrantNotPersisted:
    authority: Authority
    reason: str


@dataclass(frozen=True, slots=True)
class Renewed:
    """Redis wrote the heartbeat, or wrote the lost lease back, for a request sent at ``sent_s``."""

    authority: Authority
    sent_s: float


@dataclass(frozen=True, slots=True)
class RenewRefused:
    authority: Authority
    lease: LeaseView


@dataclass(frozen=True, slots=True)
class ReassertRefused:
    authority: Authority
    lease: LeaseView


@dataclass(frozen=True, slots=True)
class RenewFailed:
    """No answer to a heartbeat or a reassertion."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class Promised:
    """A member answered, with its promise or its refusal."""

    authority: Authority
    promise: Promise


@dataclass(frozen=True, slots=True)
class PeerSilent:
    authority: Authority
    node: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The node has fetched what was ahead and stands ready to publish."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    authority: Authority
    reason: str


@dataclass(frozen=True, slots=True)
class EpochSeen:
    """Somebody used this epoch: a peer's request or answer, a catalog entry, a promise that was asked of us."""

    epoch: int
    node: str = ""
    """Who used it; with a nonce, whom it was granted to."""
    nonce: str = ""
    """Empty where no grant is known, but only the epoch."""


@dataclass(frozen=True, slots=True)
class EligibilityChanged:
    eligibility: Eligibility


@dataclass(frozen=True, slots=True)
class ReleaseAsked:
    """The daemon stops, or an operator wants ``successor`` (empty: anyone) to be primary."""

    successor: str = ""


Event = (
    Ticked | LeaseRead | ReadFailed | Granted | AcquireRefused | AcquireFailed | GrantPersisted | GrantNotPersisted
    | Renewed | RenewRefused | ReassertRefused | RenewFailed | Promised | PeerSilent | Prepared | PrepareFailed
    | EpochSeen | EligibilityChanged | ReleaseAsked
)  # fmt: skip

# --- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadLease:
    """Answered by LeaseRead or ReadFailed."""


@dataclass(frozen=True, slots=True)
class AcquireLease:
    """Answered by Granted, AcquireRefused or AcquireFailed."""

    observed: LeaseView
    nonce: str
    min_epoch: int


@dataclass(frozen=True, slots=True)
class PersistGrant:
    """Write the grant to disk and fsync it. Answered by GrantPersisted or GrantNotPersisted."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class RenewLease:
    """Answered by Renewed, RenewRefused or RenewFailed."""

    authority: Authority
    seq: int


@dataclass(frozen=True, slots=True)
class ReassertLease:
    """Answered by Renewed, ReassertRefused or RenewFailed."""

    authority: Authority
    seq: int


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    authority: Authority
    successor: str = ""


@dataclass(frozen=True, slots=True)
class CollectPromises:
    """Ask each of these members, again while it does not answer. Each answer is a Promised or a PeerSilent."""

    authority: Authority
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class BecomePrimary:
    """Fetch what is ahead, then take up the work. Answered by Prepared or PrepareFailed."""

    authority: Authority
    ahead: Ahead | None


@dataclass(frozen=True, slots=True)
class StepDown:
    """Stop what the authority allowed: collecting, preparing, or being primary."""

    authority: Authority
    reason: str
    was_established: bool


@dataclass(frozen=True, slots=True)
class ShowGrant:
    """Let the holder of the lease see what was promised here, which keeps this node from following it."""

    holder: str
    accepted: Authority


@dataclass(frozen=True, slots=True)
class RaiseAlarm:
    """Something that a correct Redis cannot show. ``kind`` is an event's name."""

    kind: str
    epoch: int
    holders: tuple[str, ...]


Effect = (
    ReadLease | AcquireLease | PersistGrant | RenewLease | ReassertLease | ReleaseLease | CollectPromises
    | BecomePrimary | StepDown | ShowGrant | RaiseAlarm
)  # fmt: skip
