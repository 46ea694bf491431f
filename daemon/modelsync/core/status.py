"""The status document of INTERFACE.md, computed from what was read: nothing here fetches anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from modelsync.core import catalog
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import ZERO_ID, EntryId, Version
from modelsync.core.rollout import record as rollouts
from modelsync.core.rollout.record import Rollout
from modelsync.core.signing import Signature
from modelsync.core.storage.parts import holds, told, well_told
from modelsync.core.swarm.neighbours import UNLABELLED, Labels

MOVING = ("transfers", "uploads", "scrub")
"""What ``runtime.under_way`` tells."""
UNREAD = "unread"
"""The state of a node that is known by its name alone so far."""
LOST_AFTER_S = 10.0
"""Five missed reports (one each 2 s): the node is shown as lost; nothing else follows from it."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself in ``node:ID``; ``last_seen_s`` is measured by the reader from the key's expiry."""

    id: str
    role: str
    url: str
    state: str
    last_seen_s: float
    epoch: int = 0
    applied: EntryId = ZERO_ID
    priority: int = 0
    eligible: bool = False
    """Whether its configuration lets it be promoted."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    labels: Labels = UNLABELLED
    incarnation: str = ""
    """Of the process that wrote it: two of them under one id are two nodes by mistake."""
    stale: bool = False
    """It has written another one since, which was not read here yet."""

    @property
    def moving(self) -> bool:
        """Whether bytes move on it, of which its report says more each time without being another."""
        return any(self.extra.get(key) for key in MOVING)

    @property
    def lost(self) -> bool:
        return self.last_seen_s > LOST_AFTER_S


def document(
    *, fleet: str, epoch: int, primary: str, redis: str, nodes: Sequence[NodeReport], models: Iterable[ModelRecord]
) -> dict[str, Any]:
    """``status --json`` as INTERFACE.md gives it."""
    return {
        "fleet": fleet,
        "epoch": epoch,
        "primary": primary or None,
        "redis": redis,
        "nodes": [_node(report, primary) for report in sorted(nodes, key=lambda report: report.id)],
        "models": [model_line(record) for record in sorted(models, key=lambda record: record.name)],
    }


def _node(report: NodeReport, primary: str) -> dict[str, Any]:
    role = report.role
    if role == "primary" and report.id != primary:
        role = "replica"  # the lease decides, not what a node last said of itself
    return {
        "id": report.id,
        "role": role,
        "url": report.url,
        "state": "lost" if report.lost else report.state,
        "last_seen_s": round(report.last_seen_s, 1),
        "epoch": report.epoch,
        "models": {name: dict(line) for name, line in sorted(report.models.items())},
        **report.extra,
    }


def model_line(record: ModelRecord) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": record.name,
        "head": record.head,
        "wanted": record.wanted,
        "pinned": record.pinned,
        "aliases": dict(sorted(record.aliases.items())),
    }
    roll = rollout_line(record.rollout)
    return line if roll is None else {**line, "rollout": roll}


def rollout_line(roll: Rollout | None) -> dict[str, Any] | None:
    """What ``rollout status`` says of a model's last rollout."""
    if roll is None:
        return None
    value: dict[str, Any] = {
        "id": str(roll.id),
        "version": roll.version,
        "strategy": roll.strategy,
        "state": roll.state,
        "before": roll.before,
        "members": list(roll.members),
        "by": roll.by,
        "reason": roll.reason,
        "since": iso_time(roll.since_ms),
    }
    if roll.strategy == rollouts.WAVES:
        value |= {"wave": roll.wave + 1, "waves": [list(wave) for wave in roll.waves]}
    return value


def node_model(
    *,
    active: Version | None,
    wanted: Version | None,
    held: Iterable[Version],
    state: str,
    error: str | None,
    why: str,
    rejected: Mapping[str, str] | None = None,
    apart: bool = False,
    trial: bool = False,
    ack: Mapping[str, object] | None = None,
    parts: Mapping[Version, Iterable[int]] | None = None,
    shares: int = 1,
) -> dict[str, Any]:
    """One model's line in a node's report.

    Args:
        rejected: what this host's gates said, by version.
        apart: it takes no part in rollouts: it has a pin of its own, or need not hold the model.
        trial: what is active has not been accepted by its servers yet, and may be taken back.
        ack: how far it is with the open rollout.
        parts: of versions that are not held as a whole, which of ``shares`` parts are.
    """
    line: dict[str, Any] = {
        "active": active, "wanted": wanted, "held": sorted(held), "state": state, "error": error, "why": why,
    }  # fmt: skip
    more = {
        "parts": told(shares, dict(parts or {})),
        "rejected": dict(rejected or {}),
        "apart": apart,
        "trial": trial,
        "rollout": dict(ack or {}),
    }
    return line | {key: value for key, value in more.items() if value}


def history(record: ModelRecord, nodes: Iterable[NodeReport]) -> list[dict[str, Any]]:
    """``history --json``: newest first, with what has become of each version."""
    reports = [(report.id, report.models.get(record.name, {})) for report in nodes if not report.lost]
    active = {line.get("active") for _, line in reports}
    told = [line for _, line in reports]
    held = {number for number in record.versions if _rarest(told, number) > 0}
    lines = []
    for number in catalog.newest_first(record.versions):
        entry = record.versions[number]
        lines.append(
            {
                "version": number,
                "digest": str(entry.digest),
                "id": str(entry.id),
                "created": iso_time(entry.created_ms),
                "author": entry.author,
                "note": entry.note,
                "size_bytes": entry.size_bytes,
                "state": "active" if number in active else "retained" if number in held else "evicted",
                "hosts": {node: outcome for node, line in reports if (outcome := _outcome(line, number))},
            }
            | ({"signed_by": signature.key_id} if (signature := Signature.parse(entry.signature)) else {})
        )
    return lines


def _outcome(line: Mapping[str, Any], number: Version) -> str:
    """What became of a version on one host; empty where that is nothing."""
    refused = line.get("rejected", {})
    why = refused.get(str(number)) if isinstance(refused, Mapping) else None
    if why:
        return f"rejected: {why}"
    if line.get("active") == number:
        return "active"
    if number in line.get("held", ()):
        return "held"
    parts = line.get("parts", {"held": {}})["held"].get(str(number), ())
    return f"part {', '.join(str(part + 1) for part in parts)} held" if parts else ""


def _rarest(lines: Sequence[Mapping[str, Any]], number: Version | int) -> int:
    """How many of these hold a version; of one in parts, the part that fewest hold."""
    count = max((line["parts"]["of"] for line in lines if "parts" in line), default=1)
    return min(sum(holds(line, number, part, count) for line in lines) for part in range(count))


def changes(record: ModelRecord) -> list[dict[str, Any]]:
    """What people asked for of a model, newest first."""
    return [
        {"id": str(change.id), "at": iso_time(change.at_ms), "by": change.by, "command": change.command,
         "wanted": change.wanted, "note": change.note}
        for change in reversed(record.changes)
    ]  # fmt: skip


def iso_time(unix_ms: int) -> str:
    """RFC 3339, UTC, milliseconds."""
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return "unknown"


def copies(document: Mapping[str, Any], name: str, number: int, at: EntryId) -> int:
    """How many living nodes hold a version (of one in parts: the part that fewest hold), by a status document.

    Only those count that know the publisher's epoch: a node that has not heard of it could follow another primary
    tomorrow that never saw the version.
    """
    lines = [
        node["models"].get(name, {})
        for node in document["nodes"]
        if node["state"] != "lost" and node.get("epoch", 0) >= at.epoch
    ]
    return _rarest(lines, number)


def copies_to_wait_for(document: Mapping[str, Any], name: str) -> int:
    """How many nodes must hold a version before its publisher may go, by a status document.

    Two, where there are two. As many as are asked for of a model that lies on fewer; none of one that the object store
    had before the version was written to the catalog: nobody may hold it before somebody asks.
    """
    living = sum(node["state"] != "lost" for node in document["nodes"])
    line = document.get("placement", {}).get(name, {})
    if line.get("mode") == "shared":
        return 0
    return int(min(2, living, line.get("copies", 2)))


def parse_node_models(value: Any) -> dict[str, dict[str, Any]]:
    """Check the ``models`` field of a node's hash. Raises MalformedMessage."""
    if not isinstance(value, dict) or len(value) > 100_000:
        raise MalformedMessage(what="node report", reason="models is not an object")
    for line in value.values():
        held = line.get("held") if isinstance(line, dict) else None
        if not isinstance(held, list) or not all(isinstance(number, int) for number in held):
            raise MalformedMessage(what="node report", reason="a model's line has no list `held`")
        if not isinstance(line.get("active"), int | None):
            raise MalformedMessage(what="node report", reason="a model's `active` is not a version")
        if "parts" in line and not well_told(line["parts"]):
            raise MalformedMessage(what="node report", reason="a model's `parts` are not as agreed")
    return value
