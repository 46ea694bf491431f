"""JSON as HTTP carries it: floats are allowed, since people and status documents use them; nothing else is lenient.

The strict form for what is hashed stands in ``core.canonical``, whose limits on depth, integers and text hold here too.
"""

from __future__ import annotations

import json
from typing import Any

from modelsync.core import canonical
from modelsync.core.errors import MalformedMessage


def json_value(data: bytes, what: str) -> Any:
    """Parse JSON from outside.

    Raises:
        MalformedMessage: not UTF-8, duplicate keys, NaN, nested too deeply, integers beyond 2^53, lone surrogates.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=canonical.unique_keys,
            parse_constant=_refuse,
            parse_int=canonical.bounded_integer,
        )
        canonical.encode(canonical.with_floats_tagged(value))
    except RecursionError as error:
        raise MalformedMessage(what=what, reason="nested too deeply") from error
    except ValueError as error:
        raise MalformedMessage(what=what, reason=str(error)[:200]) from error
    return value


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse JSON that must be one object. Raises MalformedMessage, also for anything else than an object."""
    value = json_value(data, what)
    if not isinstance(value, dict):
        raise MalformedMessage(what=what, reason="it is not a JSON object")
    return value


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a number that JSON has")
