"""``get_params()`` as JSON: whatever an estimator was made with is described, and nothing makes it fail.

This file alone decides how a Python value looks in metadata. It calls nothing of a value but its class's name, and what
NumPy's scalars and arrays offer; it never pickles and never prints a ``repr`` that belongs to somebody else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from modelsync.core.ids import MAX_INTEGER

MAX_DEPTH = 8
"""A pipeline in a search in a pipeline reaches five."""
MAX_ITEMS = 1000
"""Of one list or object; a vocabulary of a million words is not metadata."""
MAX_TEXT = 4096
MAX_VALUES = 20_000
"""Of one estimator together: its metadata stays far below the mebibyte that an upload may have."""


def class_name(value: object) -> str:
    """``module.Class`` of a value, or of the class that it is."""
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def parameters_of(estimator: Any) -> dict[str, Any]:
    """What ``get_params()`` says, as JSON; an object that has no such method, or whose method fails, has none."""
    try:
        found = estimator.get_params()
    except Exception:
        return {}
    if not isinstance(found, Mapping):
        return {}
    described: dict[str, Any] = Describer().value(found)
    return described


class Describer:
    """Turns values into JSON within one budget."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def value(self, value: Any, depth: int = 0) -> Any:
        """A value of None, bool, int, float, str, list and dict (with text for keys) that stands for ``value``."""
        self._left -= 1
        if self._left < 0:
            return "…"
        if value is None or isinstance(value, bool | str | int | float):
            return _plain(value)
        if depth >= MAX_DEPTH:
            return {"class": class_name(value)}
        try:
            return self._compound(value, depth)
        except Exception:  # a stranger's __len__, __iter__ or __getattr__
            return {"class": class_name(value)}

    def _compound(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple):
            return self._sequence(value, depth)
        if isinstance(value, AbstractSet):
            return self._sequence(sorted(value, key=str), depth)
        return self._object(value, depth)

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        described = {}
        for number, (key, item) in enumerate(value.items()):
            if number == MAX_ITEMS:
                described["…"] = f"{len(value) - MAX_ITEMS} more"
                break
            described[_text(key if isinstance(key, str) else _short(key))] = self.value(item, depth + 1)
        return described

    def _sequence(self, value: Any, depth: int) -> list[Any]:
        described = [self.value(item, depth + 1) for item in value[:MAX_ITEMS]]
        return [*described, f"… {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else described

    def _object(self, value: Any, depth: int) -> Any:
        if isinstance(value, type):
            return {"class": class_name(value)}
        if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "dtype"):
            return self._array(value, depth)
        if callable(value) and hasattr(value, "__qualname__"):
            return {"function": _text(f"{getattr(value, '__module__', '')}.{value.__qualname__}")}
        if isinstance(value, bytes | bytearray):
            return {"bytes": len(value)}
        # Parameters of a nested estimator stand in the outer one's own get_params(), as name__parameter.
        return {"class": class_name(value)}

    def _array(self, value: Any, depth: int) -> Any:
        shape = tuple(getattr(value, "shape", ()))
        if not shape and hasattr(value, "item"):
            item = value.item()
            return _plain(item) if isinstance(item, bool | str | int | float) else _text(str(item))
        if len(shape) == 1 and shape[0] <= 64 and hasattr(value, "tolist"):
            return self.value(value.tolist(), depth)
        return {"array": {"dtype": str(value.dtype), "shape": [int(size) for size in shape]}}


def _plain(value: Any) -> Any:
    """A scalar that JSON has; others as their text: NaN is no number there, nor is an integer beyond 2^53 safe."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) <= MAX_INTEGER else _text(_digits(number))
    real = float(value)
    return real if math.isfinite(real) else repr(real)


def _digits(number: int) -> str:
    try:
        return str(number)
    except ValueError:  # Python refuses to print thousands of digits
        return f"an integer of {number.bit_length()} bits"


def _short(key: Any) -> str:
    return str(_plain(key)) if isinstance(key, bool | int | float) or key is None else class_name(key)


def _text(text: str) -> str:
    """Text that is UTF-8 for certain, and not too long."""
    clean = text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= MAX_TEXT else clean[:MAX_TEXT] + "…"
