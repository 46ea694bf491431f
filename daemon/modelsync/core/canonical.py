"""Canonical JSON: one value has one text, so that a digest of the text identifies the value.

This file alone decides the text form that is hashed, and how much hostile JSON costs to refuse. PROTOCOL.md section 2.
"""

from __future__ import annotations

import json
from typing import Any

from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import MAX_INTEGER

MAX_DOCUMENT_BYTES = 64 << 20
"""A manifest of 100,000 files with long paths stays below this."""
MAX_DEPTH = 32
"""Deeper than any metadata seen, far above Python's own recursion limit's reach."""


def encode(value: Any) -> bytes:
    """The canonical bytes of a value of None, bool, int, str, list and dict.

    Raises:
        MalformedMessage: a float, another type, a key that is no text, a lone surrogate, or an integer beyond 2^53.
    """
    _check(value, 0, "document")
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (UnicodeEncodeError, ValueError) as error:
        raise MalformedMessage(what="document", reason=str(error)[:200]) from error


def decode(data: bytes, what: str, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """Parse JSON that came from outside, without accepting a second spelling of anything.

    Raises:
        MalformedMessage: too large, not UTF-8, not JSON, duplicate keys, floats, NaN, too deep, integers beyond 2^53.
    """
    if len(data) > max_bytes:
        raise MalformedMessage(what=what, reason=f"{len(data)} bytes, at most {max_bytes} are read")
    try:
        text = data.decode()
        value = json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_float=_no_float,
            parse_constant=_no_float,
            parse_int=bounded_integer,
        )
    except RecursionError as error:
        raise MalformedMessage(what=what, reason="nested too deeply") from error
    except ValueError as error:
        raise MalformedMessage(what=what, reason=str(error)[:200]) from error
    _check(value, 0, what)
    return value


def decode_canonical(data: bytes, what: str) -> Any:
    """Parse JSON and insist that it is the canonical text, byte for byte. Raises MalformedMessage."""
    value = decode(data, what)
    if encode(value) != data:
        raise MalformedMessage(what=what, reason="it is JSON, but not the canonical text of its value")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as ``json`` hands it over. Raises ValueError for a key that stands twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _no_float(text: str) -> Any:
    raise ValueError(f"{text[:40]} is not a whole number")


def bounded_integer(text: str) -> int:
    """A JSON integer. Raises ValueError beyond 2^53-1."""
    # The length is checked first: int() of thousands of digits is quadratic.
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise ValueError("an integer is beyond 2^53-1")
    return int(text)


def _check(value: Any, depth: int, what: str) -> None:
    if depth >= MAX_DEPTH and isinstance(value, list | dict):
        raise MalformedMessage(what=what, reason=f"nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(value, what)
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise MalformedMessage(what=what, reason="an integer is beyond 2^53-1")
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1, what)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, what)
            _check(item, depth + 1, what)
    else:
        raise MalformedMessage(what=what, reason=f"a value of type {type(value).__name__}")


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise MalformedMessage(what=what, reason="a key is not text")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise MalformedMessage(what=what, reason="a lone surrogate, which is not text")


def with_floats_tagged(value: Any) -> Any:
    """Replace floats by ``{"$float": text}``, so that metadata such as get_params() has a canonical form."""
    if isinstance(value, float):
        return {"$float": float.__repr__(value)}  # a subclass, such as NumPy's, may print itself otherwise
    if isinstance(value, list | tuple):
        return [with_floats_tagged(item) for item in value]
    if isinstance(value, dict):
        return {key: with_floats_tagged(item) for key, item in value.items()}
    return value


def with_floats_restored(value: Any) -> Any:
    """Undo ``with_floats_tagged``. A tag that it would not have written stays as it is: metadata is the user's own."""
    if isinstance(value, list):
        return [with_floats_restored(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$float"} and isinstance(value["$float"], str):
            return _float_of(value["$float"], value)
        return {key: with_floats_restored(item) for key, item in value.items()}
    return value


def _float_of(text: str, otherwise: Any) -> Any:
    try:
        number = float(text)
    except ValueError:
        return otherwise
    return number if repr(number) == text else otherwise
