"""Announcements on pub/sub: hints that are safe to lose, double or reorder. PROTOCOL.md section 4.

What is written here is for people and wake-ups; no node acts on a field of an announcement, it rereads the catalog.
"""

from __future__ import annotations

import json

MAX_ANNOUNCEMENT_BYTES = 64 << 10
_HINTS = ("event", "node", "model", "mark")


def announcement(event: str, fleet: str, epoch: int, id: str, /, **fields: object) -> str:
    """One JSON object, with ``event`` first so that it reads well in redis-cli; None and empty fields are left out."""
    value = {"event": event, "fleet": fleet, "epoch": epoch, "id": id, **fields}
    return json.dumps({key: item for key, item in value.items() if item not in (None, "")}, ensure_ascii=False)


def hints(data: bytes) -> tuple[str, str, str, str]:
    """Event, node, model and mark of an announcement, empty where it is not one of ours: never more than a hint."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return "", "", "", ""
    if not isinstance(value, dict):
        return "", "", "", ""
    event, node, model, mark = (item if isinstance(item := value.get(key), str) else "" for key in _HINTS)
    return event, node, model, mark
