"""Finding versions by their metadata: what ``key=value`` means. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelsync.core.errors import BadName

_FORM = re.compile(r"([^=<>!]+?)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
MAX_CONDITIONS = 16
MAX_CONDITION_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Condition:
    """``key`` is dotted where metadata are nested; ``author``, ``note`` and ``model`` stand beside them."""

    key: str
    comparison: str
    value: str


def parse(text: str) -> Condition:
    """``auc>=0.9``, ``params.depth=8``, ``class!=SVC``. Raises BadName."""
    found = _FORM.fullmatch(text) if len(text) <= MAX_CONDITION_CHARS else None
    if found is None:
        rule = "KEY=VALUE, or with != < <= > >=; a key of nested metadata has dots"
        raise BadName(kind="condition", value=repr(text[:80]), rule=rule)
    return Condition(found.group(1).strip(), found.group(2), found.group(3).strip())


def satisfies(fields: Mapping[str, Any], condition: Condition) -> bool:
    """Whether a version's fields do; what is not there satisfies nothing, not even ``!=``."""
    missing = object()
    value: Any = _looked_up(fields, condition.key, missing)
    if value is missing:
        return False
    if condition.comparison in ("=", "!="):
        return _equal(value, condition.value) is (condition.comparison == "=")
    try:
        return not isinstance(value, bool) and _COMPARE[condition.comparison](float(value), float(condition.value))
    except (TypeError, ValueError):
        return isinstance(value, str) and _COMPARE[condition.comparison](value, condition.value)


def _looked_up(fields: Mapping[str, Any], key: str, missing: object) -> object:
    if key in fields:
        return fields[key]
    first, dot, rest = key.partition(".")
    inner = fields.get(first)
    return _looked_up(inner, rest, missing) if dot and isinstance(inner, Mapping) else missing


def _equal(value: Any, text: str) -> bool:
    """A list holds what it is asked for; a number equals its every spelling; true, false and null are written so."""
    if isinstance(value, list):
        return any(_equal(item, text) for item in value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value] == text.lower()
    if isinstance(value, int | float):
        try:
            return float(value) == float(text)
        except ValueError:
            return False
    return bool(value == text)
