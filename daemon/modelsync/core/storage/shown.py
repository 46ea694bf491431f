"""Where models lie, for people: who owns what, who holds it, what is missing and what is copied next.

Computed from records and reports alone, so that whoever can read Redis can say it, with or without a daemon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from modelsync.core.catalog import ModelRecord
from modelsync.core.ids import Version
from modelsync.core.status import NodeReport
from modelsync.core.storage import moves, parts
from modelsync.core.storage.modes import Placement
from modelsync.core.storage.placement import Item

MAX_MOVES = 100
"""In a status document; there may be thousands."""


def document(
    records: Iterable[ModelRecord], nodes: Sequence[NodeReport], known: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """``placement`` and ``placement_plan`` of a status document; empty where every host holds everything.

    Args:
        known: by model, bytes of each of its pieces; where it says nothing, parts are taken to be even.
    """
    lines, items, owners, held = {}, [], {}, {}
    living = [node for node in nodes if not node.lost]
    for record in sorted(records, key=lambda record: record.name):
        at = record.placement
        if at.mode == "replicated":
            continue
        holders, sizes = _holders(record, living), _sizes(record, known.get(record.name, ()))
        lines[str(record.name)] = line(at, holders, sizes, record.wanted)
        for key, size_bytes, share, nodes_of in zip(_keys(record), sizes, at.shares, holders, strict=True):
            items.append(Item(key, size_bytes, at.copies))
            owners[key], held[key] = share, nodes_of
    if not lines:
        return {}
    plan = [
        {"model": move.key, "to": move.target, "size_bytes": move.size_bytes, "living": move.living}
        for move in moves.missing_copies(items, owners, held)[:MAX_MOVES]
    ]
    return {"placement": lines, "placement_plan": plan}


def _holders(record: ModelRecord, living: Sequence[NodeReport]) -> list[frozenset[str]]:
    """Of each share, the living nodes that reported the wanted version of it verified."""
    number, count = record.wanted, len(record.placement.shares)
    if number is None:
        return [frozenset()] * count
    said = [(node.id, node.models.get(record.name, {})) for node in living]
    return [frozenset(node for node, told in said if parts.holds(told, number, share, count)) for share in range(count)]


def _sizes(record: ModelRecord, known: Sequence[int]) -> Sequence[int]:
    count = len(record.placement.shares)
    if len(known) == count:
        return known
    entry = record.versions.get(record.wanted or record.head or Version(0))
    return [(entry.size_bytes if entry is not None else 0) // count] * count


def _keys(record: ModelRecord) -> list[str]:
    count = len(record.placement.shares)
    return [record.name] if count == 1 else [f"{record.name} part {number + 1}" for number in range(count)]


def line(
    at: Placement, holders: Sequence[Collection[str]], sizes: Sequence[int], wanted: Version | None
) -> dict[str, Any]:
    """A model's line: who owns it, how many hold it, and what is missing. One of ``holders`` and ``sizes`` a share."""
    shown: dict[str, Any] = {"mode": at.mode, "size_bytes": sum(sizes)}
    if at.mode != "partitioned":
        return shown
    shares: list[dict[str, Any]] = [
        {
            "owners": list(owners),
            "holding": len(set(owners) & set(nodes)),  # owners that have it
            "living": len(set(nodes)),  # and with them others that have not let go yet
            "size_bytes": size_bytes,
        }
        for owners, nodes, size_bytes in zip(at.shares, holders, sizes, strict=True)
    ]
    rarest = {key: min((share[key] for share in shares), default=0) for key in ("holding", "living")}
    shown |= {"copies": at.copies, "owners": list(at.everyone), **rarest}
    if at.parts:
        shown["parts"] = shares
    troubles = [] if wanted is None else _troubles(at, holders, wanted)
    return shown | ({"trouble": "; ".join(troubles)} if troubles else {})


def _troubles(at: Placement, holders: Sequence[Collection[str]], wanted: Version) -> list[str]:
    found = []
    for index, (owners, nodes) in enumerate(zip(at.shares, holders, strict=True)):
        which = f"part {index + 1} of {len(at.parts)}: " if at.parts else ""
        if not nodes:
            found.append(f"{which}no living node holds version {wanted}: it is served again when one returns")
        elif len(living := [owner for owner in owners if owner in nodes]) < at.copies:
            missing = ", ".join(owner for owner in owners if owner not in nodes) or "no node to give it to"
            found.append(f"{which}under-replicated: {len(living)} of {at.copies} owners hold it; missing: {missing}")
    return found
