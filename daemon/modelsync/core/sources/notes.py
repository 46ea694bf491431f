"""What a publisher says about a model that it puts into the models directory: ``.modelsync.json`` beside its files.

This file alone decides that document's form. It is no part of the version: like every name that begins with a dot it is
not published, and its words go into the manifest. PROTOCOL.md section 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelsync.core.errors import MalformedMessage
from modelsync.core.manifest import MAX_TEXT_BYTES

NAME = ".modelsync.json"
MAX_BYTES = 1 << 20
"""As much as an upload's metadata field may have."""


@dataclass(frozen=True, slots=True)
class SourceNotes:
    """``author`` empty: the publisher did not say; it is then the node that watches."""

    note: str = ""
    author: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def encode(notes: SourceNotes) -> bytes:
    """The document. Raises ValueError for metadata that JSON does not have."""
    value = {"note": notes.note, "author": notes.author, "metadata": dict(notes.metadata)}
    return json.dumps(value, allow_nan=False, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def checked(value: Mapping[str, Any]) -> SourceNotes:
    """Read a JSON object that anybody may have written. Raises MalformedMessage."""
    if not value.keys() <= {"note", "author", "metadata"}:
        raise MalformedMessage(what=NAME, reason="it is an object of note, author and metadata, and nothing else")
    note, author, metadata = value.get("note", ""), value.get("author", ""), value.get("metadata", {})
    if not isinstance(metadata, dict):
        raise MalformedMessage(what=NAME, reason="metadata is not an object")
    for key, text in (("note", note), ("author", author)):
        if not isinstance(text, str) or len(text.encode()) > MAX_TEXT_BYTES:
            raise MalformedMessage(what=NAME, reason=f"{key} is not short text")
    return SourceNotes(note, author, metadata)
