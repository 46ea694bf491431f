"""A model's record as text fields: as it stands in Redis (``model:NAME``) and on each node's disk. PROTOCOL, section 4.

This file alone knows that form, and reads it as hostile input. What the fields mean is ``catalog``'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from modelsync.core import canonical
from modelsync.core.catalog import MAX_CHANGES, ModelRecord, VersionRecord, WishChange
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import Digest, EntryId, ModelName, Version, alias_name, version
from modelsync.core.rollout import record as rollout
from modelsync.core.signing import MAX_TEXT_CHARS
from modelsync.core.storage import modes
from modelsync.core.storage.modes import REPLICATED


def to_fields(record: ModelRecord) -> dict[str, str]:
    """The record as the text fields of a Redis hash."""
    fields = {
        "id": str(record.id),
        "head": str(record.head or ""),
        "desired": str(record.desired or ""),
        "pinned": str(record.pinned or ""),
        "aliases": canonical.encode(dict(record.aliases)).decode(),
        "deleted": canonical.encode(sorted(record.deleted)).decode(),
        "rollout": rollout.to_text(record.rollout),
        "changes": canonical.encode([_change_value(change) for change in record.changes]).decode(),
    }
    if record.placement != REPLICATED:
        fields["placement"] = modes.encode(record.placement)
    fields.update((f"v:{number}", _version_text(entry)) for number, entry in record.versions.items())
    return fields


@lru_cache(maxsize=8192)  # a version never changes: each publish would write out all that came before it again
def _version_text(entry: VersionRecord) -> str:
    value = {
        "digest": str(entry.digest),
        "content": str(entry.content),
        "id": str(entry.id),
        "size_bytes": entry.size_bytes,
        "created_ms": entry.created_ms,
        "author": entry.author,
        "note": entry.note,
        "parent": str(entry.parent) if entry.parent else None,
    }
    return canonical.encode({**value, "signature": entry.signature} if entry.signature else value).decode()


def from_fields(name: ModelName, fields: Mapping[str, str]) -> ModelRecord:
    """Parse the fields, from Redis or from disk, as hostile input. Raises MalformedMessage."""
    try:
        versions = {version(key[2:]): _parse_version(text) for key, text in fields.items() if key.startswith("v:")}
        return ModelRecord(
            name=name,
            id=EntryId.parse(fields.get("id", "0-0")),
            head=_optional_version(fields.get("head", "")),
            desired=_optional_version(fields.get("desired", "")),
            pinned=_optional_version(fields.get("pinned", "")),
            aliases=_parse_aliases(fields.get("aliases", "{}")),
            versions=versions,
            deleted=_parse_deleted(fields.get("deleted", "[]")),
            rollout=rollout.from_text(fields.get("rollout", "")),
            placement=modes.decode(fields.get("placement", "")),
            changes=_parse_changes(fields.get("changes", "[]")),
        )
    except BadName as error:
        raise MalformedMessage(what=f"record of model {name}", reason=str(error)) from error


def _optional_version(text: str) -> Version | None:
    return version(text) if text else None


def _parse_aliases(text: str) -> dict[str, Version]:
    value = canonical.decode(_bytes(text), "aliases", max_bytes=1 << 16)
    if not isinstance(value, dict):
        raise MalformedMessage(what="aliases", reason="not an object")
    return {alias_name(key): version(number) for key, number in value.items()}


def _parse_deleted(text: str) -> frozenset[Version]:
    value = canonical.decode(_bytes(text), "deleted versions", max_bytes=1 << 16)
    if not isinstance(value, list):
        raise MalformedMessage(what="deleted versions", reason="not a list")
    return frozenset(version(number) for number in value)


def _change_value(change: WishChange) -> dict[str, Any]:
    value = {
        "id": str(change.id),
        "at_ms": change.at_ms,
        "by": change.by,
        "command": change.command,
        "wanted": change.wanted,
        "note": change.note,
    }
    return {**value, "ask": change.ask} if change.ask else value


def _parse_changes(text: str) -> tuple[WishChange, ...]:
    value = canonical.decode(_bytes(text), "changes", max_bytes=1 << 20)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise MalformedMessage(what="changes", reason="not a list of objects")
    return tuple(
        WishChange(
            id=EntryId.parse(item.get("id")),
            at_ms=_natural(item.get("at_ms")),
            by=_text(item.get("by")),
            command=_text(item.get("command")),
            wanted=version(item["wanted"]) if item.get("wanted") is not None else None,
            note=_text(item.get("note", "")),
            ask=_text(item.get("ask", "")),
        )
        for item in value[-MAX_CHANGES:]
    )


def _parse_version(text: str) -> VersionRecord:
    value = canonical.decode(_bytes(text), "version record", max_bytes=1 << 20)
    if not isinstance(value, dict):
        raise MalformedMessage(what="version record", reason="not an object")
    return VersionRecord(
        digest=Digest.parse(value.get("digest")),
        content=Digest.parse(value.get("content")),
        id=EntryId.parse(value.get("id")),
        size_bytes=_natural(value.get("size_bytes")),
        created_ms=_natural(value.get("created_ms")),
        author=_text(value.get("author")),
        note=_text(value.get("note")),
        parent=Digest.parse(value["parent"]) if value.get("parent") is not None else None,
        signature=_signature(value.get("signature", "")),
    )


def _signature(value: Any) -> str:
    if len(text := _text(value)) > MAX_TEXT_CHARS:
        raise MalformedMessage(what="version record", reason=f"a signature of {len(text)} characters")
    return text


def _bytes(text: str) -> bytes:
    # A lone surrogate becomes bytes that the decoder refuses as no UTF-8.
    return text.encode(errors="surrogatepass")


def _natural(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise MalformedMessage(what="version record", reason=f"{value!r} is not a natural number")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise MalformedMessage(what="version record", reason=f"{type(value).__name__} where text belongs")


def changed_fields(before: ModelRecord, after: ModelRecord) -> tuple[dict[str, str], tuple[str, ...]]:
    """What to write and what to delete to turn one hash into the other."""
    old, new = to_fields(before), to_fields(after)
    written = {key: text for key, text in new.items() if old.get(key) != text}
    return written, tuple(sorted(old.keys() - new.keys()))


def to_json(record: ModelRecord) -> bytes:
    """The file STATE/catalog/NAME.json."""
    return json.dumps(to_fields(record), ensure_ascii=False, indent=1, sort_keys=True).encode()


def from_json(name: ModelName, data: bytes) -> ModelRecord:
    """Parse STATE/catalog/NAME.json. Raises MalformedMessage."""
    value = canonical.decode(data, f"catalog of {name}")
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise MalformedMessage(what=f"catalog of {name}", reason="not an object of text fields")
    return from_fields(name, value)
