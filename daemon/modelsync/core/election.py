"""The election: one node's state machine from replica to primary and back. DESIGN section 6.

``step(state, event, now_s)`` returns the next state and what has to be done. It reads no clock, throws no dice and
waits for nothing; runtime.elector does the waiting. The table at the end names every (role, event) pair, so that
"nothing happens" is a decision that can be read.

    REPLICA ------ lease ripe ------> CANDIDATE ---- granted, persisted ----> ESTABLISHING
       ^                                  |                                        |
       |<---------- somebody else --------+            majority promised, prepared |
       |<---------- no majority, lease lost, higher epoch -------------------------+
       |<---------- higher epoch, lease lost, release ------- PRIMARY <------------+

A primary whose lease ran out because Redis is away stays primary and may not write: ``writing_authority`` is None
until a renewal succeeds, in the same epoch. Nothing but a release or somebody else's higher epoch ends its term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from modelsync.core import election_messages as msg
from modelsync.core import promise as promises
from modelsync.core.candidacy import FIT, Eligibility, ripe_at_s
from modelsync.core.ids import ZERO_ID, EntryId, NodeId
from modelsync.core.lease import (
    HELD,
    NO_LEASE,
    Authority,
    LeaseView,
    Timing,
    Watch,
    may_write,
    observation_after_failed_read,
    observed,
    same_grant,
    writing_deadline_s,
)
from modelsync.core.promise import Round, Verdict


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


def step(state: State, event: msg.Event, now_s: float) -> Step:
    """Take one event.

    Args:
        now_s: this node's CLOCK_BOOTTIME at which the event is taken, not that at which it was sent.
    """
    return TABLE[state.role, type(event)](state, event, now_s)


def writing_authority(state: State, now_s: float) -> Authority | None:
    """The right to write at this instant: established by a majority, and within the lease."""
    established = state.role is Role.PRIMARY or (state.role is Role.ESTABLISHING and state.preparing)
    return state.authority if established and may_write(state.deadline_s, now_s) else None


def wake_at_s(state: State) -> float | None:
    """When something is due that no reply will bring: not to wait for the next heartbeat with it."""
    if state.role is Role.ESTABLISHING and state.round is not None and not state.preparing:
        return state.round_began_s + state.timing.grace_s
    return _ripe_at_s(state)


# --- safeguards, each by itself -------------------------------------------------------------------------------------


def min_epoch(state: State) -> int:
    """What an acquire has to go above, whatever Redis remembers."""
    return state.highest


def must_step_down(authority: Authority, epoch: int) -> bool:
    """Whether a term is over because somebody used this epoch."""
    return epoch > authority.epoch


def contested(authority: Authority, epoch: int, holder: str, nonce: str) -> bool:
    """Whether somebody was granted our epoch as well: Redis forgot one of the two grants.

    At most one of them has its majority, but a member that promised the other can never follow this one. So whoever
    learns of it goes on under a higher epoch.
    """
    return (
        epoch == authority.epoch
        and holder != ""
        and (holder, nonce or authority.nonce)
        != (
            authority.holder,
            authority.nonce,
        )
    )


# --- watching: REPLICA and CANDIDATE --------------------------------------------------------------------------------


def _read(state: State, event: msg.Ticked, now_s: float) -> Step:
    return state, (msg.ReadLease(),)


def _lease_read(state: State, event: msg.LeaseRead | msg.AcquireRefused, now_s: float) -> Step:
    lease, claim = event.lease, state.claim
    if claim is not None and lease.state == HELD and (lease.holder, lease.nonce) == (state.node, claim.nonce):
        return _granted(state, msg.Granted(lease.epoch, lease.nonce), now_s)
    watch = observed(state.watch, lease, now_s, state.timing)
    accepted = event.accepted if isinstance(event, msg.LeaseRead) else None
    highest = max(state.highest, lease.epoch, accepted.epoch if accepted else 0)
    state, effects = _claimed(replace(state, watch=watch, lease=lease, highest=highest), now_s)
    if accepted is not None and _cannot_follow(state, lease, accepted):
        return state, (msg.ShowGrant(lease.holder, accepted), *effects)
    return state, effects


def _cannot_follow(state: State, lease: LeaseView, accepted: Authority) -> bool:
    """Whether the lease's holder does not know of a grant that was accepted here: then it must be told, since this
    node refuses all that it writes."""
    if lease.state != HELD or lease.holder == state.node:
        return False
    return lease.epoch < accepted.epoch or contested(accepted, lease.epoch, lease.holder, lease.nonce)


def _claimed(state: State, now_s: float) -> Step:
    """Acquire, if the time for it has come; else go on watching, as candidate where the lease is nobody's."""
    ripe_s = _ripe_at_s(state)
    if ripe_s is None or now_s < ripe_s:
        return replace(state, role=Role.REPLICA, predecessor=None), ()
    assert state.watch is not None
    nonce = f"{state.incarnation}.{state.attempts}"
    effect = msg.AcquireLease(state.watch.lease, nonce, min_epoch(state))
    claiming = replace(
        state, role=Role.CANDIDATE, predecessor=None, claim=Claim(nonce, now_s), attempts=state.attempts + 1
    )
    return claiming, (effect,)


def _ripe_at_s(state: State) -> float | None:
    if state.watch is None or state.authority is not None:
        return None
    ripe_s = ripe_at_s(
        state.node,
        state.watch,
        state.eligibility,
        state.timing,
        highest=state.highest,
        predecessor=state.predecessor,
    )
    return None if ripe_s is None else max(ripe_s, state.not_before_s)


def _read_failed(state: State, event: msg.ReadFailed, now_s: float) -> Step:
    return replace(state, role=Role.REPLICA, watch=observation_after_failed_read(state.watch)), ()


def _acquire_failed(state: State, event: msg.AcquireFailed, now_s: float) -> Step:
    return replace(state, watch=observation_after_failed_read(state.watch)), ()


def _granted(state: State, event: msg.Granted, now_s: float) -> Step:
    claim = state.claim
    if claim is None or claim.nonce != event.nonce:
        # Asked for before something else was wanted: nobody shall wait for it to run out.
        return state, (msg.ReleaseLease(Authority(event.epoch, state.node, event.nonce)),)
    authority = Authority(event.epoch, state.node, event.nonce)
    holding = replace(
        state,
        role=Role.ESTABLISHING,
        authority=authority,
        deadline_s=writing_deadline_s(claim.sent_s, now_s, state.timing),
        seq=0,
        claim=None,
        watch=None,
        round=None,
        round_began_s=now_s,
        preparing=False,
        lease=LeaseView(event.epoch, state.node, event.nonce, 0, HELD),
    )
    return holding, (msg.PersistGrant(authority),)


# --- holding: ESTABLISHING and PRIMARY ------------------------------------------------------------------------------


def _renew(state: State, event: msg.Ticked, now_s: float) -> Step:
    assert state.authority is not None
    seq = state.seq + 1
    return replace(state, seq=seq), (msg.RenewLease(state.authority, seq),)


def _renewed(state: State, event: msg.Renewed, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    deadline_s = max(state.deadline_s, writing_deadline_s(event.sent_s, now_s, state.timing))
    lease = LeaseView(event.authority.epoch, state.node, event.authority.nonce, state.seq, HELD)
    return replace(state, deadline_s=deadline_s, lease=lease), ()


def _renew_refused(state: State, event: msg.RenewRefused, now_s: float) -> Step:
    authority, lease = state.authority, event.lease
    if authority is None or event.authority != authority:
        return state, ()
    state = replace(state, lease=lease, highest=max(state.highest, lease.epoch))
    if must_step_down(authority, lease.epoch):
        return _stepped_down(state, f"{lease.holder} holds epoch {lease.epoch}", now_s)
    if lease.epoch < authority.epoch:  # Redis lost our lease, or went back to an older one
        return state, (msg.ReassertLease(authority, state.seq),)
    if same_grant(authority, lease.epoch, lease.holder, lease.nonce):
        return _stepped_down(state, f"the lease was {lease.state} for this node", now_s)
    alarm = msg.RaiseAlarm("epoch.two_holders", lease.epoch, (state.node, lease.holder))
    state, effects = _stepped_down(state, f"{lease.holder} holds epoch {lease.epoch} too", now_s)
    return state, (alarm, *effects)


def _reassert_refused(state: State, event: msg.ReassertRefused, now_s: float) -> Step:
    if state.authority is None or event.authority != state.authority:
        return state, ()
    state = replace(state, lease=event.lease, highest=max(state.highest, event.lease.epoch))
    return _stepped_down(state, "Redis remembers a higher epoch than this node's lease", now_s)


def _epoch_seen(state: State, event: msg.EpochSeen, now_s: float) -> Step:
    state = replace(state, highest=max(state.highest, event.epoch))
    if state.authority is not None and must_step_down(state.authority, event.epoch):
        return _stepped_down(state, f"{event.holder or 'another node'} uses epoch {event.epoch}", now_s)
    if state.authority is not None and contested(state.authority, event.epoch, event.holder, event.nonce):
        return _moved_up(state, event.holder, now_s)
    return state, ()


def _moved_up(state: State, other: str, now_s: float) -> Step:
    """Leave a contested epoch by a handover to ourselves, which the next read finds and takes with a higher one."""
    alarm = msg.RaiseAlarm("epoch.two_holders", state.highest, (state.node, other))
    state, effects = _given_up(state, f"{other} was granted this epoch too", now_s, successor=state.node)
    return replace(state, not_before_s=now_s), (alarm, *effects)


def _stepped_down(state: State, reason: str, now_s: float) -> Step:
    assert state.authority is not None
    effect = msg.StepDown(state.authority, reason, state.role is Role.PRIMARY or state.preparing)
    return _as_replica(state, now_s), (effect,)


def _as_replica(state: State, now_s: float) -> State:
    return replace(
        state,
        role=Role.REPLICA,
        authority=None,
        deadline_s=0.0,
        watch=None,
        round=None,
        preparing=False,
        not_before_s=now_s + state.timing.backoff_s,
    )


def _given_up(state: State, reason: str, now_s: float, successor: str = "") -> Step:
    assert state.authority is not None
    released = msg.ReleaseLease(state.authority, successor)
    state, effects = _stepped_down(state, reason, now_s)
    return state, (*effects, released)


def _released(state: State, event: msg.ReleaseAsked, now_s: float) -> Step:
    return _given_up(state, "released", now_s, event.successor)


# --- establishing ---------------------------------------------------------------------------------------------------


def _persisted(state: State, event: msg.GrantPersisted, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    round_ = promises.opened(event.authority, event.members)
    state = replace(
        state,
        round=round_,
        round_began_s=now_s,
        applied=event.applied,
        highest=max(state.highest, event.authority.epoch),
    )
    state, effects = _weighed(state, now_s)
    return state, (msg.CollectPromises(event.authority, round_.members), *effects)


def _not_persisted(state: State, event: msg.GrantNotPersisted, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    return _given_up(state, event.reason, now_s)


def _promised(state: State, event: msg.Promised, now_s: float) -> Step:
    if state.round is None or event.authority != state.authority:
        return state, ()
    promise = event.promise
    state = replace(state, round=promises.answered(state.round, promise), highest=max(state.highest, promise.epoch))
    if must_step_down(event.authority, promise.epoch):
        return _given_up(state, f"{promise.node} has accepted epoch {promise.epoch}", now_s)
    if not promise.granted and contested(event.authority, promise.epoch, promise.holder, promise.nonce):
        return _moved_up(state, promise.holder, now_s)
    return _weighed(state, now_s)


def _silent(state: State, event: msg.PeerSilent, now_s: float) -> Step:
    if state.round is None or event.authority != state.authority:
        return state, ()
    return _weighed(replace(state, round=promises.unanswered(state.round, event.node)), now_s)


def _weighed(state: State, now_s: float) -> Step:
    """Become primary, give up, or wait, by what the round has come to."""
    round_ = state.round
    if round_ is None or state.preparing or state.role is not Role.ESTABLISHING:
        return state, ()
    verdict, waited_s = promises.verdict(round_), now_s - state.round_began_s
    if verdict is Verdict.IMPOSSIBLE:
        return _given_up(state, "a majority promised this epoch to another", now_s)
    if verdict is Verdict.OPEN:
        if waited_s < state.timing.establish_s:
            return state, ()
        return _given_up(state, "no majority of the members answered", now_s)
    if not promises.everyone_was_asked(round_) and waited_s < state.timing.grace_s:
        return state, ()
    effect = msg.BecomePrimary(round_.authority, promises.ahead(round_, state.applied))
    return replace(state, preparing=True), (effect,)


def _establish(state: State, event: msg.Ticked, now_s: float) -> Step:
    state, effects = _weighed(state, now_s)
    if state.authority is None:
        return state, effects
    state, renewal = _renew(state, event, now_s)
    return state, (*effects, *renewal)


def _prepared(state: State, event: msg.Prepared, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    return replace(state, role=Role.PRIMARY, preparing=False, round=None), ()


def _prepare_failed(state: State, event: msg.PrepareFailed, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    return _given_up(state, f"could not take office: {event.reason}", now_s)


# --- any role -------------------------------------------------------------------------------------------------------


def _eligibility(state: State, event: msg.EligibilityChanged, now_s: float) -> Step:
    return replace(state, eligibility=event.eligibility), ()


def _leave_alone(state: State, event: msg.ReleaseAsked, now_s: float) -> Step:
    """Nothing is held; what an acquire on its way may bring is not wanted either."""
    return replace(state, claim=None, role=Role.REPLICA, not_before_s=now_s + state.timing.backoff_s), ()


def _ignored(state: State, event: msg.Event, now_s: float) -> Step:
    """A reply to something that no longer matters."""
    return state, ()


_WATCHING: Mapping[type, Callable[..., Step]] = {
    msg.Ticked: _read,
    msg.LeaseRead: _lease_read,
    msg.ReadFailed: _read_failed,
    msg.Granted: _granted,
    msg.AcquireRefused: _lease_read,
    msg.AcquireFailed: _acquire_failed,
    msg.GrantPersisted: _ignored,
    msg.GrantNotPersisted: _ignored,
    msg.Renewed: _ignored,
    msg.RenewRefused: _ignored,
    msg.ReassertRefused: _ignored,
    msg.RenewFailed: _ignored,
    msg.Promised: _ignored,
    msg.PeerSilent: _ignored,
    msg.Prepared: _ignored,
    msg.PrepareFailed: _ignored,
    msg.EpochSeen: _epoch_seen,
    msg.EligibilityChanged: _eligibility,
    msg.ReleaseAsked: _leave_alone,
}

_HOLDING: Mapping[type, Callable[..., Step]] = {
    msg.LeaseRead: _ignored,
    msg.ReadFailed: _ignored,
    msg.Granted: _ignored,
    msg.AcquireRefused: _ignored,
    msg.AcquireFailed: _ignored,
    msg.Renewed: _renewed,
    msg.RenewRefused: _renew_refused,
    msg.ReassertRefused: _reassert_refused,
    msg.RenewFailed: _ignored,
    msg.EpochSeen: _epoch_seen,
    msg.EligibilityChanged: _eligibility,
    msg.ReleaseAsked: _released,
}

_BY_ROLE: Mapping[Role, Mapping[type, Callable[..., Step]]] = {
    Role.REPLICA: _WATCHING,
    Role.CANDIDATE: _WATCHING,
    Role.ESTABLISHING: {
        **_HOLDING,
        msg.Ticked: _establish,
        msg.GrantPersisted: _persisted,
        msg.GrantNotPersisted: _not_persisted,
        msg.Promised: _promised,
        msg.PeerSilent: _silent,
        msg.Prepared: _prepared,
        msg.PrepareFailed: _prepare_failed,
    },
    Role.PRIMARY: {
        **_HOLDING,
        msg.Ticked: _renew,
        msg.GrantPersisted: _ignored,
        msg.GrantNotPersisted: _ignored,
        msg.Promised: _ignored,
        msg.PeerSilent: _ignored,
        msg.Prepared: _ignored,
        msg.PrepareFailed: _ignored,
    },
}

TABLE: Mapping[tuple[Role, type], Callable[..., Step]] = {
    (role, event): handler for role, handlers in _BY_ROLE.items() for event, handler in handlers.items()
}
