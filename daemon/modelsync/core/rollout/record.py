"""What a rollout is: the fleet's plan to bring one version onto its hosts, as it stands in the model's record.

Everything here is durable and therefore holds no clock: how long a soak has lasted is counted by whoever holds the
lease, on its own boottime, and begins anew with a new holder (``steps``). Which hosts it covers, and what may
follow what, is decided here. PROTOCOL.md section 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import Digest, EntryId, Version, node_id, version

EACH, TOGETHER, WAVES = "each", "together", "waves"
STRATEGIES = (EACH, TOGETHER, WAVES)

STAGING, MOVING, WAVE, SOAKING = "staging", "moving", "wave", "soaking"
DONE, ABORTED, ROLLED_BACK = "done", "aborted", "rolled_back"
OPEN = frozenset({STAGING, MOVING, WAVE, SOAKING})
TRANSITIONS: Mapping[str, frozenset[str]] = {
    STAGING: frozenset({MOVING, ABORTED}),
    MOVING: frozenset({DONE, ROLLED_BACK, ABORTED}),
    WAVE: frozenset({SOAKING, ABORTED, ROLLED_BACK}),
    SOAKING: frozenset({WAVE, DONE, ABORTED, ROLLED_BACK}),
    DONE: frozenset(),
    ABORTED: frozenset(),
    ROLLED_BACK: frozenset(),
}
"""From each state, what may follow. MOVING is past the decision: its abort means only that nobody waits any more."""

MAX_MEMBERS = 10_000
MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class Gate:
    """A question to Prometheus: the version is healthy while the query's every value is at most ``max_value``."""

    url: str
    query: str
    max_value: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is rolled out, as the configuration says."""

    strategy: str = EACH
    straggler_s: float = 120.0
    """How long a host may take to stage, or to switch, before the rollout gives it up."""
    soak_s: float = 300.0
    """How long a wave runs before the next one."""
    canaries: tuple[str, ...] = ()
    """Patterns over ids or labels of nodes: the first wave."""
    waves_percent: tuple[int, ...] = (10, 50)
    """Shares of the hosts, cumulative, that each further wave reaches before the last one, everybody."""
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout. The model's record keeps the last one; the log has all."""

    id: EntryId
    """Of the entry that began it."""
    version: Version
    digest: Digest
    """Nobody switches to anything else under this number."""
    strategy: str
    state: str
    members: tuple[str, ...]
    """The hosts that were alive and follow the fleet when it began; who was away catches up."""
    before: Version | None = None
    """What the fleet wanted until then."""
    waves: tuple[tuple[str, ...], ...] = ()
    """Whom each wave adds; the last one is everybody, whatever it names."""
    wave: int = 0
    plan: Plan = field(default_factory=Plan)
    by: str = ""
    reason: str = ""
    since_ms: int = 0
    """Wall clock, for people: nothing is decided by it."""

    @property
    def open(self) -> bool:
        return self.state in OPEN

    def covers(self, node: str) -> bool:
        """Whether a host is to run the version although the fleet as a whole does not want it yet."""
        if self.strategy != WAVES or not self.open:
            return False
        return self.wave >= len(self.waves) - 1 or any(node in wave for wave in self.waves[: self.wave + 1])

    def covered(self) -> tuple[str, ...]:
        """The members that the waves so far have reached."""
        return tuple(node for node in self.members if self.covers(node))


def moved(rollout: Rollout, state: str, reason: str = "", **changes: Any) -> Rollout:
    """The rollout in its next state. A transition that is not in the table is our own bug."""
    assert state in TRANSITIONS[rollout.state], f"{rollout.state} to {state}"
    return replace(rollout, state=state, reason=reason[:MAX_REASON_CHARS], **changes)


def superseded(rollout: Rollout | None, reason: str) -> Rollout | None:
    """What is left of a rollout when something else is wanted."""
    return rollout if rollout is None or not rollout.open else moved(rollout, ABORTED, reason)


def is_signal(
    rollout: Rollout | None, desired: Version | None, pinned: Version | None, staged: EntryId, digest: Digest
) -> bool:
    """Whether a record, as it was just read, tells a host that has staged a rollout to switch to it now."""
    if rollout is None or pinned is not None or rollout.strategy != TOGETHER or desired != rollout.version:
        return False
    return rollout.state in (MOVING, DONE) and (rollout.id, rollout.digest) == (staged, digest)


def first_state(strategy: str) -> str:
    return {EACH: MOVING, TOGETHER: STAGING, WAVES: WAVE}[strategy]


def planned_waves(
    plan: Plan, members: Sequence[str], labels: Mapping[str, Iterable[str]]
) -> tuple[tuple[str, ...], ...]:
    """Whom each wave adds, in a fixed order: the canaries, then shares of the rest, then everybody else.

    Args:
        labels: node to its labels.
    Without canaries among the members the first share is the first wave; no wave is empty.
    """

    def is_canary(node: str) -> bool:
        names = (node, *labels.get(node, ()))
        return any(fnmatchcase(name, pattern) for name in names for pattern in plan.canaries)

    waves = [tuple(node for node in members if is_canary(node))]
    rest = [node for node in members if node not in waves[0]]
    reached = len(waves[0])
    for percent in sorted(plan.waves_percent):
        goal = -(-len(members) * percent // 100)
        added, rest = rest[: max(0, goal - reached)], rest[max(0, goal - reached) :]
        reached += len(added)
        waves.append(tuple(added))
    waves.append(tuple(rest))
    return tuple(wave for wave in waves if wave) or ((),)


# --- the field, in Redis and on disk ---------------------------------------------------------------------------------


def to_text(rollout: Rollout | None) -> str:
    """The ``rollout`` field of a model's record; empty for none."""
    if rollout is None:
        return ""
    plan, gate = rollout.plan, rollout.plan.gate
    value = {
        "id": str(rollout.id),
        "version": rollout.version,
        "digest": str(rollout.digest),
        "strategy": rollout.strategy,
        "state": rollout.state,
        "members": list(rollout.members),
        "before": rollout.before,
        "waves": [list(wave) for wave in rollout.waves],
        "wave": rollout.wave,
        "straggler_ms": round(1000 * plan.straggler_s),
        "soak_ms": round(1000 * plan.soak_s),
        "gate": None if gate is None else {"url": gate.url, "query": gate.query, "max": repr(gate.max_value)},
        "by": rollout.by,
        "reason": rollout.reason,
        "since_ms": rollout.since_ms,
    }
    return canonical.encode(value).decode()


def from_text(text: str) -> Rollout | None:
    """Parse the field as hostile input. Raises MalformedMessage."""
    if not text:
        return None
    value = canonical.decode(text.encode(errors="surrogatepass"), "rollout", max_bytes=1 << 20)
    try:
        return _parsed(value)
    except (BadName, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(what="rollout", reason=str(error)[:200]) from error


def _parsed(value: dict[str, Any]) -> Rollout:
    strategy, state = value["strategy"], value["state"]
    if strategy not in STRATEGIES or state not in TRANSITIONS:
        raise ValueError("an unknown strategy or state")
    members = _names(value["members"])
    waves = tuple(_names(wave) for wave in value["waves"][:MAX_MEMBERS])
    wave = _natural(value["wave"])
    if strategy == WAVES and wave >= len(waves):
        raise ValueError("a wave that the plan does not have")
    gate = value["gate"]
    return Rollout(
        id=EntryId.parse(value["id"]),
        version=version(value["version"]),
        digest=Digest.parse(value["digest"]),
        strategy=strategy,
        state=state,
        members=members,
        before=version(value["before"]) if value["before"] is not None else None,
        waves=waves,
        wave=wave,
        plan=Plan(
            strategy=strategy,
            straggler_s=_natural(value["straggler_ms"]) / 1000,
            soak_s=_natural(value["soak_ms"]) / 1000,
            gate=None if gate is None else Gate(_text(gate["url"]), _text(gate["query"]), float(_text(gate["max"]))),
        ),
        by=_text(value["by"]),
        reason=_text(value["reason"]),
        since_ms=_natural(value["since_ms"]),
    )


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_MEMBERS:
        raise ValueError("not a list of nodes")
    return tuple(node_id(name) for name in value)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a natural number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text belongs")
    return value
