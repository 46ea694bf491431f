"""The election while this node holds a grant: it collects promises, takes office, keeps the lease, and steps down."""

from __future__ import annotations

from dataclasses import replace

from modelsync.core.election import messages as msg
from modelsync.core.election import promise as promises
from modelsync.core.election.lease import HELD, LeaseView, same_grant, writing_deadline_s
from modelsync.core.election.promise import Verdict
from modelsync.core.election.state import Role, State, Step, contested, must_step_down


def renew(state: State, event: msg.Ticked, now_s: float) -> Step:
    assert state.authority is not None
    seq = state.seq + 1
    return replace(state, seq=seq), (msg.RenewLease(state.authority, seq),)


def renewed(state: State, event: msg.Renewed, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    deadline_s = max(state.deadline_s, writing_deadline_s(event.sent_s, now_s, state.timing))
    lease = LeaseView(event.authority.epoch, state.node, event.authority.nonce, state.seq, HELD)
    return replace(state, deadline_s=deadline_s, lease=lease), ()


def renew_refused(state: State, event: msg.RenewRefused, now_s: float) -> Step:
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


def reassert_refused(state: State, event: msg.ReassertRefused, now_s: float) -> Step:
    if state.authority is None or event.authority != state.authority:
        return state, ()
    state = replace(state, lease=event.lease, highest=max(state.highest, event.lease.epoch))
    return _stepped_down(state, "Redis remembers a higher epoch than this node's lease", now_s)


def epoch_seen(state: State, event: msg.EpochSeen, now_s: float) -> Step:
    state = replace(state, highest=max(state.highest, event.epoch))
    if state.authority is not None and must_step_down(state.authority, event.epoch):
        return _stepped_down(state, f"{event.node or 'another node'} uses epoch {event.epoch}", now_s)
    if state.authority is not None and contested(state.authority, event.epoch, event.node, event.nonce):
        return _moved_up(state, event.node, now_s)
    return state, ()


def _moved_up(state: State, other: str, now_s: float) -> Step:
    """Leave a contested epoch by a handover to ourselves, which the next read finds and takes with a higher one."""
    alarm = msg.RaiseAlarm("epoch.two_holders", state.highest, (state.node, other))
    state, effects = _given_up(state, f"{other} was granted this epoch too", now_s, successor=state.node)
    return state, (alarm, *effects)


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


def released(state: State, event: msg.ReleaseAsked, now_s: float) -> Step:
    return _given_up(state, "released", now_s, event.successor)


# --- establishing ---------------------------------------------------------------------------------------------------


def persisted(state: State, event: msg.GrantPersisted, now_s: float) -> Step:
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


def not_persisted(state: State, event: msg.GrantNotPersisted, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    return _given_up(state, event.reason, now_s)


def promised(state: State, event: msg.Promised, now_s: float) -> Step:
    if state.round is None or event.authority != state.authority:
        return state, ()
    promise = event.promise
    state = replace(state, round=promises.answered(state.round, promise), highest=max(state.highest, promise.epoch))
    if must_step_down(event.authority, promise.epoch):
        return _given_up(state, f"{promise.node} has accepted epoch {promise.epoch}", now_s)
    if not promise.granted and contested(event.authority, promise.epoch, promise.holder, promise.nonce):
        return _moved_up(state, promise.holder, now_s)
    return _weighed(state, now_s)


def silent(state: State, event: msg.PeerSilent, now_s: float) -> Step:
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


def establish(state: State, event: msg.Ticked, now_s: float) -> Step:
    state, effects = _weighed(state, now_s)
    if state.authority is None:
        return state, effects
    state, renewal = renew(state, event, now_s)
    return state, (*effects, *renewal)


def prepared(state: State, event: msg.Prepared, now_s: float) -> Step:
    if not state.preparing or event.authority != state.authority:
        return state, ()
    return replace(state, role=Role.PRIMARY, preparing=False, round=None), ()


def prepare_failed(state: State, event: msg.PrepareFailed, now_s: float) -> Step:
    if event.authority != state.authority:
        return state, ()
    return _given_up(state, f"could not take office: {event.reason}", now_s)
