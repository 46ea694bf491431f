"""The election: one node's state machine from replica to primary and back. DESIGN section 6.

``step(state, event, now_s)`` returns the next state and what has to be done. It reads no clock, throws no dice and
waits for nothing; runtime.elector does the waiting. The table at the end names every (role, event) pair, so that
"nothing happens" is a decision that can be read. The handlers are in watching and holding.

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
from dataclasses import replace

from modelsync.core.election import holding, watching
from modelsync.core.election import messages as msg
from modelsync.core.election.candidacy import watch_every_s
from modelsync.core.election.state import Role, State, Step


def step(state: State, event: msg.Event, now_s: float) -> Step:
    """Take one event.

    Args:
        now_s: this node's CLOCK_BOOTTIME at which the event is taken, not that at which it was sent.
    """
    return TABLE[state.role, type(event)](state, event, now_s)


def tick_every_s(state: State) -> float:
    """How long after a tick the next one is due, if nothing wakes the node before."""
    if state.authority is not None or state.claim is not None:
        return state.timing.heartbeat_s
    return watch_every_s(state.node, state.lease.holder, state.eligibility, state.timing)


def wake_at_s(state: State) -> float | None:
    """When something is due that no reply will bring: not to wait for the next heartbeat with it."""
    if state.role is Role.ESTABLISHING and state.round is not None and not state.preparing:
        return state.round_began_s + state.timing.grace_s
    return watching.acts_at_s(state)


def _eligibility(state: State, event: msg.EligibilityChanged, now_s: float) -> Step:
    return replace(state, eligibility=event.eligibility), ()


def _ignored(state: State, event: msg.Event, now_s: float) -> Step:
    """A reply to something that no longer matters."""
    return state, ()


_WATCHING: Mapping[type, Callable[..., Step]] = {
    msg.Ticked: watching.read,
    msg.LeaseRead: watching.lease_read,
    msg.ReadFailed: watching.read_failed,
    msg.Granted: watching.granted,
    msg.AcquireRefused: watching.lease_read,
    msg.AcquireFailed: watching.acquire_failed,
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
    msg.EpochSeen: holding.epoch_seen,
    msg.EligibilityChanged: _eligibility,
    msg.ReleaseAsked: watching.leave_alone,
}

_HOLDING: Mapping[type, Callable[..., Step]] = {
    msg.LeaseRead: _ignored,
    msg.ReadFailed: _ignored,
    msg.Granted: _ignored,
    msg.AcquireRefused: _ignored,
    msg.AcquireFailed: _ignored,
    msg.Renewed: holding.renewed,
    msg.RenewRefused: holding.renew_refused,
    msg.ReassertRefused: holding.reassert_refused,
    msg.RenewFailed: _ignored,
    msg.EpochSeen: holding.epoch_seen,
    msg.EligibilityChanged: _eligibility,
    msg.ReleaseAsked: holding.released,
}

_BY_ROLE: Mapping[Role, Mapping[type, Callable[..., Step]]] = {
    Role.REPLICA: _WATCHING,
    Role.CANDIDATE: _WATCHING,
    Role.ESTABLISHING: {
        **_HOLDING,
        msg.Ticked: holding.establish,
        msg.GrantPersisted: holding.persisted,
        msg.GrantNotPersisted: holding.not_persisted,
        msg.Promised: holding.promised,
        msg.PeerSilent: holding.silent,
        msg.Prepared: holding.prepared,
        msg.PrepareFailed: holding.prepare_failed,
    },
    Role.PRIMARY: {
        **_HOLDING,
        msg.Ticked: holding.renew,
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
