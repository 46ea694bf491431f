"""How a rollout goes on: what its holder does next, from what the hosts report and how long it has watched.

``step`` is the whole of it. Time is handed in, is the holder's own boottime, and is never written down: a holder that
takes over watches each phase from its own beginning, so that no clock that was set, and no suspend, shortens a soak.
An acknowledgement counts only for this rollout's id and this digest. What is decided takes effect when its fenced
write succeeds, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from modelsync.core.ids import Digest, EntryId, Version
from modelsync.core.rollout.record import (
    ABORTED,
    DONE,
    MOVING,
    ROLLED_BACK,
    SOAKING,
    STAGING,
    TOGETHER,
    WAVE,
    Gate,
    Rollout,
    moved,
)

GATE_EVERY_S = 5.0
"""A failing gate is noticed this soon; Prometheus itself looks every 15 s or so."""
SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class Said:
    """What one host reports of the model."""

    node: str
    lost: bool = False
    follows: bool = True
    """False: the host takes no part: it has a pin of its own for the model, or need not hold it."""
    active: Version | None = None
    acked: EntryId | None = None
    """The rollout that the next three speak of."""
    digest: Digest | None = None
    staged: bool = False
    """Held, built and validated: a switch needs no more than a rename."""
    refused: str = ""
    """Why the version will not run there: a validation or health check has failed, or it was rejected before."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What a holder knows of a rollout beside the durable record; it is lost with the holder."""

    rollout: Rollout
    since_s: float
    """When it first saw this state and wave."""
    asked_s: float = float("-inf")
    """When it last asked the gate."""
    answered_s: float = float("-inf")
    """When it asked what was answered last; earlier than ``asked_s`` while an answer is awaited."""
    passed_s: float = float("-inf")
    """When it asked what the gate last answered with yes."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The reports of all hosts were read."""

    said: Mapping[str, Said]


@dataclass(frozen=True, slots=True)
class GateAnswered:
    """The gate said something; ``healthy`` None: it could not be asked, or had no data, which is no health."""

    healthy: bool | None
    reason: str
    asked_s: float


@dataclass(frozen=True, slots=True)
class Write:
    """Write the rollout, and what the fleet wants where that changes with it, in one fenced entry."""

    rollout: Rollout
    event: str
    decided_on: Rollout
    """The rollout as it was; where it has moved on since, the decision is void."""
    desired: Version | None = None
    """None: what the fleet wants stays."""
    restore: bool = False
    """What the fleet wants is again what it wanted before."""


@dataclass(frozen=True, slots=True)
class AskGate:
    gate: Gate


Effect = Write | AskGate
Outcome = tuple[Watch, tuple[Effect, ...]]


def watched(rollout: Rollout, before: Watch | None, now_s: float) -> Watch:
    """The watch over a rollout as it was just read: kept while its phase is the same, begun anew otherwise."""
    if before is not None:
        old = before.rollout
        if (old.id, old.state, old.wave) == (rollout.id, rollout.state, rollout.wave):
            return replace(before, rollout=rollout)
    return Watch(rollout, now_s)


def step(watch: Watch, event: Looked | GateAnswered, now_s: float) -> Outcome:
    """One event. At most one ``Write`` follows; the watch that comes with it holds once it has been written."""
    if not watch.rollout.open:
        return watch, ()
    if isinstance(event, GateAnswered):
        return _gate_answered(watch, event)
    return _ON_LOOK[watch.rollout.state](watch, event, now_s)


def _written(watch: Watch, rollout: Rollout, event: str, desired: Version | None = None) -> Outcome:
    restore = rollout.state == ROLLED_BACK and watch.rollout.state == MOVING
    return watch, (Write(rollout, event, watch.rollout, desired, restore),)


# --- staging, and the one decision of a `together` -------------------------------------------------------------------


def _staging(watch: Watch, event: Looked, now_s: float) -> Outcome:
    rollout = watch.rollout
    said = _required(rollout.members, event)
    refused = [f"{host.node}: {host.refused}" for host in said if _speaks_of(host, rollout) and host.refused]
    if refused:
        return _written(watch, moved(rollout, ABORTED, _list(refused)), "rollout.aborted")
    waiting = [host.node for host in said if host.lost or not (_speaks_of(host, rollout) and host.staged)]
    if not waiting:
        return _written(watch, moved(rollout, MOVING), "rollout.flipped", rollout.version)
    if now_s - watch.since_s >= rollout.plan.straggler_s:
        reason = f"not staged within {rollout.plan.straggler_s:g} s: {_list(waiting)}"
        return _written(watch, moved(rollout, ABORTED, reason), "rollout.aborted")
    return watch, ()


def _moving(watch: Watch, event: Looked, now_s: float) -> Outcome:
    """Past the decision: who is late catches up by itself. Only a refusal takes a `together` back, for everybody."""
    rollout = watch.rollout
    said = _required(rollout.members, event)
    refused = [f"{host.node}: {host.refused}" for host in said if _speaks_of(host, rollout) and host.refused]
    if refused and rollout.strategy == TOGETHER:
        return _written(watch, moved(rollout, ROLLED_BACK, _list(refused)), "rollout.rolled_back")
    missing = [host.node for host in said if host.active != rollout.version]
    late = now_s - watch.since_s >= rollout.plan.straggler_s
    if not missing or late or all(host.active == rollout.version or host.refused for host in said):
        reason = f"not there yet: {_list(missing)}" if missing else ""
        return _written(watch, moved(rollout, DONE, reason), "rollout.done")
    return watch, ()


# --- waves -----------------------------------------------------------------------------------------------------------


def _wave(watch: Watch, event: Looked, now_s: float) -> Outcome:
    rollout = watch.rollout
    back = _wave_refused(watch, event)
    if back is not None:
        return back
    missing = _unhealthy(rollout, event)
    if not missing:
        return _written(watch, moved(rollout, SOAKING), "rollout.soaking")
    if now_s - watch.since_s >= rollout.plan.straggler_s:
        reason = f"wave {rollout.wave + 1}: not active within {rollout.plan.straggler_s:g} s: {_list(missing)}"
        return _written(watch, moved(rollout, ROLLED_BACK, reason), "rollout.rolled_back")
    return watch, ()


def _soaking(watch: Watch, event: Looked, now_s: float) -> Outcome:
    rollout, plan = watch.rollout, watch.rollout.plan
    back = _wave_refused(watch, event)
    if back is not None:
        return back
    missing = _unhealthy(rollout, event)
    soaked_s = now_s - watch.since_s
    if soaked_s >= plan.soak_s + plan.straggler_s:
        what = f"away or not active: {_list(missing)}" if missing else "the gate gave no answer"
        reason = f"wave {rollout.wave + 1}: {what}"
        return _written(watch, moved(rollout, ROLLED_BACK, reason), "rollout.rolled_back")
    if watch.asked_s > watch.answered_s:
        return watch, ()  # what is being said of it now counts before anything is decided
    over = soaked_s >= plan.soak_s
    if over and not missing and (plan.gate is None or watch.passed_s >= watch.since_s + plan.soak_s):
        return _next_wave(watch)
    due = now_s - watch.asked_s >= GATE_EVERY_S or (over and watch.asked_s < watch.since_s + plan.soak_s)
    if plan.gate is not None and due:
        return replace(watch, asked_s=now_s), (AskGate(plan.gate),)
    return watch, ()


def gate_answered(gate: Gate, worst: float | None, asked_s: float) -> GateAnswered:
    """What the largest value of a gate's query says of the version; without one it says nothing."""
    healthy = None if worst is None else worst <= gate.max_value
    reason = f"the gate's query gave {worst:g}, above {gate.max_value:g}" if healthy is False else ""
    return GateAnswered(healthy, reason, asked_s)


def _gate_answered(watch: Watch, event: GateAnswered) -> Outcome:
    """A no ends the rollout at once. A yes counts for the next look, where every host must be well, too."""
    rollout = watch.rollout
    if rollout.state != SOAKING or event.asked_s < watch.since_s:
        return watch, ()  # an answer about an earlier phase says nothing of this one
    if event.healthy is False:
        reason = f"wave {rollout.wave + 1}: {event.reason}"
        return _written(watch, moved(rollout, ROLLED_BACK, reason), "rollout.rolled_back")
    watch = replace(watch, answered_s=max(watch.answered_s, event.asked_s))
    return (replace(watch, passed_s=event.asked_s) if event.healthy else watch), ()


def _next_wave(watch: Watch) -> Outcome:
    rollout = watch.rollout
    if rollout.wave + 1 < len(rollout.waves):
        return _written(watch, moved(rollout, WAVE, wave=rollout.wave + 1), "rollout.advanced")
    return _written(watch, moved(rollout, DONE), "rollout.done", rollout.version)


def _wave_refused(watch: Watch, event: Looked) -> Outcome | None:
    rollout = watch.rollout
    said = _required(rollout.covered(), event)
    refused = [f"{host.node}: {host.refused}" for host in said if _speaks_of(host, rollout) and host.refused]
    if not refused:
        return None
    reason = f"wave {rollout.wave + 1}: {_list(refused)}"
    return _written(watch, moved(rollout, ROLLED_BACK, reason), "rollout.rolled_back")


def _unhealthy(rollout: Rollout, event: Looked) -> list[str]:
    said = _required(rollout.covered(), event)
    return [host.node for host in said if host.lost or host.active != rollout.version]


# --- reports ---------------------------------------------------------------------------------------------------------


def _required(members: Iterable[str], event: Looked) -> list[Said]:
    """The members that take part; one that has vanished from the reports is away."""
    said = (event.said.get(node, Said(node, lost=True)) for node in members)
    return [host for host in said if host.follows]


def _speaks_of(host: Said, rollout: Rollout) -> bool:
    return host.acked == rollout.id and host.digest == rollout.digest


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


_ON_LOOK: Mapping[str, Callable[[Watch, Looked, float], Outcome]] = {
    STAGING: _staging,
    MOVING: _moving,
    WAVE: _wave,
    SOAKING: _soaking,
}
