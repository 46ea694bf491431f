"""Errors of ours as HTTP statuses and JSON documents, and back again.

This file alone decides which status an error has, and which errors a peer's answer may raise here. Both directions
stand side by side so that a command that another host refused ends with the exit code it would have had on this one.
It imports no HTTP library.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any

from modelsync.core import errors
from modelsync.core.errors import ModelsyncError, PeerRefused, PolicyRefusal

_STATUSES: tuple[tuple[type[ModelsyncError], int], ...] = (
    (errors.BadName, 400),
    (errors.MalformedMessage, 400),
    (errors.NoSuchVersion, 404),
    (errors.PolicyRefusal, 409),
    (errors.VersionRejected, 409),
    (errors.VersionConflict, 409),
    (errors.SourceChanged, 409),
    (errors.NotAModel, 422),
    (errors.DigestMismatch, 422),
    (errors.NoSuchUpload, 404),
    (errors.WrongOffset, 409),
    (errors.UploadIncomplete, 409),
    (errors.UploadsFull, 503),
    (errors.DiskFull, 507),
    (errors.AuthorityLost, 503),
    (errors.NoPrimary, 503),
    (errors.RedisUnavailable, 503),
    (errors.RedisRefused, 503),
    (errors.TimedOut, 504),
    (errors.PeerUnavailable, 502),
    (errors.PeerRefused, 502),
)
"""The first class that fits counts, so a subclass stands before its base."""

RETRY_AFTER_S = 1
"""What a 503 suggests: about one heartbeat of the slowest sensible lease."""

_REVIVED: dict[str, type[ModelsyncError]] = {
    kind.__name__: kind
    for kind in (
        errors.BadName,
        errors.DigestMismatch,
        errors.DiskFull,
        errors.LeaseLost,
        errors.MalformedMessage,
        errors.NoPrimary,
        errors.NoSuchUpload,
        errors.NoSuchVersion,
        errors.NotAModel,
        errors.PolicyRefusal,
        errors.RedisRefused,
        errors.RedisUnavailable,
        errors.SourceChanged,
        errors.StaleEpoch,
        errors.TimedOut,
        errors.UploadIncomplete,
        errors.UploadsFull,
        errors.VersionConflict,
        errors.WrongOffset,
    )
}
"""What another node may make us raise: nothing that would speak of this host's own disk, state or configuration."""

_MAX_TEXT = 2000
_FORBIDDEN = (401, 403, 421)


def status_of(error: ModelsyncError) -> int:
    """The HTTP status of an error; 500 for one that is this host's own trouble."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def error_document(error: ModelsyncError) -> dict[str, Any]:
    """``{"error": class, "message": text, "details": {field: value}}`` with values that JSON has."""
    details = {key: _plain(value) for key, value in error.details().items()}
    return {"error": type(error).__name__, "message": str(error), "details": details}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value)


def error_from_document(document: object, *, status: int, peer: str) -> ModelsyncError:
    """The error that a peer's answer means here. The answer is hostile input: whatever does not fit is a PeerRefused.

    Args:
        document: the parsed JSON body, or None if there was none.
        status: the HTTP status, 300 or above.
        peer: whom to name.
    """
    answer = document if isinstance(document, dict) else {}
    # An inference server's errors are {"error": text}, and nothing more.
    message = str(answer.get("message") or answer.get("error") or f"HTTP status {status}")[:_MAX_TEXT]
    if status in _FORBIDDEN:
        return PolicyRefusal(reason=f"{peer}: {message}")
    kind = _REVIVED.get(str(answer.get("error")))
    details = answer.get("details")
    if kind is not None and isinstance(details, dict):
        fields = _fields(kind, details)
        if fields is not None:
            return kind(**fields)
    return PeerRefused(peer=peer, status=status, reason=message)


def _fields(kind: type[ModelsyncError], details: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of an error class, or None unless each field is there with its declared type."""
    fields = {}
    for name, declared in typing.get_type_hints(kind).items():
        if typing.get_origin(declared) is typing.ClassVar:
            continue
        value = details.get(name)
        if not _fits(value, declared):
            return None
        fields[name] = value[:_MAX_TEXT] if isinstance(value, str) else value
    return fields


def _fits(value: object, declared: Any) -> bool:
    kinds = typing.get_args(declared) if isinstance(declared, UnionType) else (declared,)
    return type(value) in kinds  # exactly: a bool is no int here
