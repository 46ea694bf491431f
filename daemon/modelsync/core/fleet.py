"""What the fleet knows of itself beside its models: whether promotion is paused, who was primary when and why, and
what a switchover has come to. One record, changed only by the primary. PROTOCOL.md section 4, ``fleet``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage, PolicyRefusal, TargetBehind
from modelsync.core.ids import ZERO_ID, EntryId, node_id, same_command
from modelsync.core.status import NodeReport, iso_time

MAX_ASKS = 50
MAX_TERMS = 100
"""Changes of primary that are kept; the log in Redis holds more."""
HANDING_OVER, DONE, FAILED = "handing over", "done", "failed"


@dataclass(frozen=True, slots=True)
class Term:
    """One time as primary: from when, and why it began."""

    epoch: int
    node: str
    since_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Switchover:
    """A planned change of primary, as it can be asked for while it goes on and afterwards."""

    source: str
    target: str
    """Empty: whoever is next."""
    by: str
    since_ms: int
    state: str = HANDING_OVER
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """The record. ``terms`` is newest first."""

    id: EntryId = ZERO_ID
    paused_by: str = ""
    """Who paused promotions; empty: nobody has."""
    terms: tuple[Term, ...] = ()
    switchover: Switchover | None = None
    forgotten: frozenset[str] = frozenset()
    """Nodes that are gone for good: no majority counts them."""
    asks: tuple[str, ...] = ()
    """Under which names the newest commands were heard on ``control``; newest last."""

    @property
    def paused(self) -> bool:
        return bool(self.paused_by)


def asked(record: FleetRecord, ask: str) -> FleetRecord:
    """Remember a command that was heard on ``control``, in the change that it causes."""
    return replace(record, asks=(*record.asks, ask)[-MAX_ASKS:]) if ask else record


def carried_out(record: FleetRecord, ask: str) -> bool:
    """Whether a command that was heard under these names has been carried out."""
    return any(same_command(ask, other) for other in record.asks)


def paused(record: FleetRecord, by: str, at: EntryId) -> FleetRecord:
    """No promotion by itself until ``resumed``; an operator's own switchover goes on."""
    return replace(record, id=at, paused_by=by or "somebody")


def resumed(record: FleetRecord, at: EntryId) -> FleetRecord:
    return replace(record, id=at, paused_by="")


def forgot(record: FleetRecord, node: str, at: EntryId) -> FleetRecord:
    """Count a node that is gone for good no longer."""
    return replace(record, id=at, forgotten=record.forgotten | {node})


def remembered(record: FleetRecord, nodes: Iterable[str], at: EntryId) -> FleetRecord:
    """Count nodes again that have come back."""
    return replace(record, id=at, forgotten=record.forgotten - set(nodes))


def forgettable(node: str, nodes: Sequence[NodeReport]) -> None:
    """Whether a node may be forgotten. Raises PolicyRefusal: it is alive, or nobody knows it."""
    report = next((report for report in nodes if report.id == node), None)
    if report is None:
        raise PolicyRefusal(reason=f"no node is called {node}")
    if not report.lost:
        raise PolicyRefusal(reason=f"{node} was alive {report.last_seen_s:.0f} s ago: stop its daemon first")


def handing_over(record: FleetRecord, job: Switchover, at: EntryId) -> FleetRecord:
    """Written by the old primary before it lets go."""
    return replace(record, id=at, switchover=job)


def switchover_target(asked: str, source: str, nodes: Sequence[NodeReport]) -> str:
    """The node that takes over: the one asked for, or the best candidate: highest applied, then priority, then id.

    Raises:
        PolicyRefusal: there is none, or it is not alive or may not be primary.
        TargetBehind: it has not reported that it follows this term.
    """
    fit = [node for node in nodes if node.id != source and not node.lost and node.eligible]
    newest = max((node.applied for node in nodes if not node.lost), default=ZERO_ID)
    if asked:
        chosen = next((node for node in fit if node.id == asked), None)
        if chosen is None:
            names = ", ".join(node.id for node in fit) or "nobody"
            raise PolicyRefusal(reason=f"{asked} cannot take over: it is away or may not be primary; who can: {names}")
        if chosen.applied.epoch < newest.epoch:
            raise TargetBehind(reason=f"{asked} is behind: it has applied {chosen.applied} of {newest}")
        return asked
    if not fit:
        raise PolicyRefusal(reason="there is no other node that could take over")
    return min(fit, key=lambda node: (-node.applied.epoch, -node.applied.seq, -node.priority, node.id)).id


def took_office(record: FleetRecord, term: Term, at: EntryId) -> FleetRecord:
    """A new primary's first entry; it also says what became of a switchover that was under way."""
    job = record.switchover
    if job is not None and job.state == HANDING_OVER:
        job = _ended(job, term.node)
    return replace(record, id=at, terms=(term, *record.terms)[:MAX_TERMS], switchover=job)


def _ended(job: Switchover, node: str) -> Switchover:
    if node == job.source:
        return replace(job, state=FAILED, reason=f"{job.target or 'nobody else'} did not take over; {node} is back")
    if job.target and node != job.target:
        return replace(job, state=FAILED, reason=f"{node} took over instead of {job.target}")
    return replace(job, state=DONE, target=node)


def why_term(record: FleetRecord, node: str) -> str:
    """Why a node takes office now, in words."""
    job = record.switchover
    if job is not None and job.state == HANDING_OVER:
        return f"switchover from {job.source}, asked for by {job.by}"
    before = record.terms[0].node if record.terms else ""
    if not before:
        return "the fleet's first primary"
    return "it was primary before and came back" if before == node else f"{before} let go of the lease or fell silent"


def shown(record: FleetRecord) -> dict[str, Any]:
    """What the status document says of it."""
    job = record.switchover
    return {
        "paused_by": record.paused_by or None,
        "switchover": None if job is None else {**_job_fields(job), "since": iso_time(job.since_ms)},
        "terms": [
            {"epoch": t.epoch, "node": t.node, "since": iso_time(t.since_ms), "why": t.why} for t in record.terms
        ],
    }


# --- the fields ------------------------------------------------------------------------------------------------------


def to_fields(record: FleetRecord) -> dict[str, str]:
    """The record as the text fields of a Redis hash."""
    terms = [{"epoch": t.epoch, "node": t.node, "since_ms": t.since_ms, "why": t.why} for t in record.terms]
    return {
        "id": str(record.id),
        "paused_by": record.paused_by,
        "forgotten": canonical.encode(sorted(record.forgotten)).decode(),
        "asks": canonical.encode(list(record.asks)).decode(),
        "terms": canonical.encode(terms).decode(),
        "switchover": canonical.encode(_job_fields(record.switchover) if record.switchover else None).decode(),
    }


def _job_fields(job: Switchover) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Switchover.__slots__}


def from_fields(fields: Mapping[str, str]) -> FleetRecord:
    """Parse the fields, from Redis or from disk, as hostile input. Raises MalformedMessage."""
    try:
        terms = canonical.decode(fields.get("terms", "[]").encode(), "terms", max_bytes=1 << 20)
        forgotten = canonical.decode(fields.get("forgotten", "[]").encode(), "forgotten nodes", max_bytes=1 << 20)
        asks = canonical.decode(fields.get("asks", "[]").encode(), "asks", max_bytes=1 << 16)
        job = canonical.decode(fields.get("switchover", "null").encode(), "switchover", max_bytes=1 << 16)
        return FleetRecord(
            id=EntryId.parse(fields.get("id", "0-0")),
            paused_by=fields.get("paused_by", ""),
            forgotten=frozenset(node_id(name) for name in forgotten),
            asks=tuple(_ask(item) for item in asks[-MAX_ASKS:]),
            terms=tuple(_term(item) for item in terms[:MAX_TERMS]),
            switchover=None if job is None else _job(job),
        )
    except (BadName, TypeError, KeyError) as error:
        raise MalformedMessage(what="fleet record", reason=str(error)[:200]) from error


def _ask(item: Any) -> str:
    if not isinstance(item, str):
        raise TypeError("an ask is not a text")
    return item


def _job(item: dict[str, Any]) -> Switchover:
    return Switchover(**{name: _field(item, name) for name in Switchover.__slots__})


def _term(item: dict[str, Any]) -> Term:
    return Term(_field(item, "epoch"), _field(item, "node"), _field(item, "since_ms"), _field(item, "why"))


def _field(item: dict[str, Any], name: str) -> Any:
    value = item[name]
    wanted: type = int if name in ("epoch", "since_ms") else str
    if type(value) is not wanted:
        raise TypeError(f"{name} is not {wanted.__name__}")
    return value
