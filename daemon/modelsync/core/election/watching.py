"""The election while this node holds nothing: it reads the lease, and takes it when the time has come."""

from __future__ import annotations

from dataclasses import replace

from modelsync.core.election import messages as msg
from modelsync.core.election.candidacy import ripe_at_s
from modelsync.core.election.lease import (
    HELD,
    Authority,
    LeaseView,
    observation_after_failed_read,
    observed,
    writing_deadline_s,
)
from modelsync.core.election.state import Claim, Role, State, Step, contested, min_epoch


def read(state: State, event: msg.Ticked, now_s: float) -> Step:
    return state, (msg.ReadLease(),)


def lease_read(state: State, event: msg.LeaseRead | msg.AcquireRefused, now_s: float) -> Step:
    lease, claim = event.lease, state.claim
    if claim is not None and lease.state == HELD and (lease.holder, lease.nonce) == (state.node, claim.nonce):
        return granted(state, msg.Granted(lease.epoch, lease.nonce), now_s)
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
    ripe_s = acts_at_s(state)
    if ripe_s is None or now_s < ripe_s:
        return replace(state, role=Role.REPLICA, predecessor=None), ()
    assert state.watch is not None
    nonce = f"{state.incarnation}.{state.attempts}"
    effect = msg.AcquireLease(state.watch.lease, nonce, min_epoch(state))
    claiming = replace(
        state, role=Role.CANDIDATE, predecessor=None, claim=Claim(nonce, now_s), attempts=state.attempts + 1
    )
    return claiming, (effect,)


def acts_at_s(state: State) -> float | None:
    if state.watch is None or state.authority is not None:
        return None
    return ripe_at_s(
        state.node,
        state.watch,
        state.eligibility,
        state.timing,
        highest=state.highest,
        predecessor=state.predecessor,
        not_before_s=state.not_before_s,
    )


def read_failed(state: State, event: msg.ReadFailed, now_s: float) -> Step:
    return replace(state, role=Role.REPLICA, watch=observation_after_failed_read(state.watch)), ()


def acquire_failed(state: State, event: msg.AcquireFailed, now_s: float) -> Step:
    return replace(state, watch=observation_after_failed_read(state.watch)), ()


def granted(state: State, event: msg.Granted, now_s: float) -> Step:
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


def leave_alone(state: State, event: msg.ReleaseAsked, now_s: float) -> Step:
    """Nothing is held; what an acquire on its way may bring is not wanted either."""
    return replace(state, claim=None, role=Role.REPLICA, not_before_s=now_s + state.timing.backoff_s), ()
