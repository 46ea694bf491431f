"""What an order about rollouts makes of a model's record: begin one, stop one, take its next step.

Each function returns the record as it will be, like those of ``catalog``; how a rollout goes on is ``steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from modelsync.core import catalog
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.errors import BadName, PolicyRefusal
from modelsync.core.ids import Digest, EntryId, Version
from modelsync.core.rollout import record as rollout
from modelsync.core.rollout.record import WAVES, Plan, Rollout
from modelsync.core.rollout.steps import Said, Write
from modelsync.core.status import NodeReport

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Start:
    """All that begins a rollout beside its version."""

    plan: Plan
    members: Sequence[str]
    labels: Mapping[str, Iterable[str]] = field(default_factory=dict)
    by: str = ""
    since_ms: int = 0


def begun(record: ModelRecord, target: int | str, start: Start, at: EntryId) -> ModelRecord:
    """Begin to bring a version onto the fleet; a rollout that was under way ends here.

    Raises: NoSuchVersion; PolicyRefusal while the fleet is pinned.
    """
    if record.pinned is not None:
        raise PolicyRefusal(reason=f"{record.name} is pinned to version {record.pinned}: unpin it before a rollout")
    number = catalog.resolve(record, target)
    return _rolling(record, number, start, at)


def published(record: ModelRecord, number: Version, entry: VersionRecord, start: Start) -> ModelRecord:
    """Add a version that a rollout is to bring onto the fleet. Raises VersionConflict, PolicyRefusal.

    While the fleet is pinned nothing begins, and the fleet does not want the version when it is unpinned either: it
    waits for somebody to ask for its rollout.
    """
    after = catalog.published(record, number, entry, held_back=True)
    return after if record.pinned is not None else _rolling(after, number, start, entry.id)


def _rolling(record: ModelRecord, number: Version, start: Start, at: EntryId) -> ModelRecord:
    strategy = start.plan.strategy
    waves = rollout.planned_waves(start.plan, start.members, start.labels) if strategy == WAVES else ()
    new = Rollout(
        id=at,
        version=number,
        digest=record.require(number).digest,
        strategy=strategy,
        state=rollout.first_state(strategy),
        members=tuple(start.members),
        before=record.wanted,
        waves=waves,
        plan=start.plan,
        by=start.by,
        since_ms=start.since_ms,
    )
    desired = number if strategy == rollout.EACH else record.wanted
    return replace(record, id=at, rollout=new, desired=desired)


def stopped(record: ModelRecord, by: str, at: EntryId) -> ModelRecord:
    """Stop a rollout: hosts that its waves had reached return. Raises PolicyRefusal: there is none to stop."""
    under_way = record.rollout
    if under_way is None or not under_way.open:
        raise PolicyRefusal(reason=f"no rollout of {record.name} is under way")
    if under_way.state == rollout.MOVING:
        raise PolicyRefusal(
            reason=f"the hosts were told to switch to version {under_way.version} already: `rollback {record.name}`"
        )
    return replace(record, id=at, rollout=rollout.moved(under_way, rollout.ABORTED, f"stopped by {by}"))


def advanced(record: ModelRecord, write: Write, at: EntryId) -> ModelRecord:
    """Take a step that ``steps`` has decided on. Raises PolicyRefusal: the rollout has moved on meanwhile."""
    now, then = record.rollout, write.decided_on
    if now is None or (now.id, now.state, now.wave) != (then.id, then.state, then.wave):
        raise PolicyRefusal(reason=f"the rollout of {record.name} is not what it was when this was decided")
    desired = write.desired or (now.before if write.restore else record.desired)
    return replace(record, id=at, rollout=write.rollout, desired=desired)


def said(report: NodeReport, record: ModelRecord) -> Said:
    """What a host's report says of a model, read as the hint that it is: what does not parse was not said."""
    line = report.models.get(record.name, {})
    ack = line.get("rollout")
    ack = ack if isinstance(ack, dict) else {}
    return Said(
        node=report.id,
        lost=report.lost,
        follows=not line.get("apart"),
        active=None if line.get("trial") else line.get("active"),  # a `together` that has ended takes nobody back
        acked=_parsed(EntryId.parse, ack.get("id")),
        digest=_parsed(Digest.parse, ack.get("digest")),
        staged=ack.get("staged") is True,
        refused=str(ack.get("refused") or "")[: rollout.MAX_REASON_CHARS],
    )


def _parsed(parse: Callable[[object], Value], value: object) -> Value | None:
    try:
        return parse(value)
    except BadName:
        return None
