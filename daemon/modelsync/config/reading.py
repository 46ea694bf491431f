"""Reading one section of a parsed TOML document without stopping at the first fault.

Every method returns a usable value: where the given one is wrong the fault is noted and the default stands in, so
that one pass finds everything. This file knows TOML's types and nothing of modelsync's keys.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from modelsync.core.errors import BadName, ConfigurationFault

_T = TypeVar("_T")
_D = TypeVar("_D")

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN_FAULTS = 50
"""A file of a megabyte can be wrong in a hundred thousand places; nobody reads more than a screenful."""
_MAX_PATTERNS = 256
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "a table"),
)


def dotted(*keys: str) -> str:
    """A key as TOML would write it; control characters come out escaped, never raw on a terminal."""
    return ".".join(key if _BARE.fullmatch(key) else json.dumps(key[:80]) for key in keys)


def described(value: object) -> str:
    """A value's type and its beginning, for a fault."""
    kind = next((name for type_, name in _TYPES if isinstance(value, type_)), "a date or time")
    return kind if isinstance(value, (list, dict)) else f"{kind} ({written(value)})"


def written(value: object) -> str:
    """A value's beginning as TOML has it, for a fault that is not one of its type."""
    if isinstance(value, str):
        return json.dumps(value[:80])
    return (str(value).lower() if isinstance(value, bool) else str(value))[:80]


class Faults:
    """Collects what is wrong, in the order of the document's sections."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._more = 0

    def add(self, where: str, text: str | Callable[[], str]) -> None:
        """Note a fault; a callable is only asked for its text while faults are still shown."""
        if len(self._texts) >= _SHOWN_FAULTS:
            self._more += 1
            return
        self._texts.append(f"{where}: {text if isinstance(text, str) else text()}")

    def raise_if_any(self, source: str) -> None:
        """Raise ConfigurationFault with all that was noted, if anything was."""
        if self._texts:
            more = (f"and {self._more} more faults like these",) if self._more else ()
            raise ConfigurationFault(source=source, faults=(*self._texts, *more))


class Section:
    """One table of the document. ``finish`` must come last: it reports the keys that nobody asked for."""

    def __init__(self, faults: Faults, path: tuple[str, ...], table: object) -> None:
        self.faults = faults
        self.keys = path
        self._known: list[str] = []
        self._table: Mapping[str, object] = {}
        if isinstance(table, dict):
            self._table = table
        elif table is not None:
            name = dotted(*path)
            faults.add(name, f"is {described(table)}; a section, [{name}], would be right")

    def where(self, key: str) -> str:
        return dotted(*self.keys, key)

    def fault(self, key: str, text: str) -> None:
        self.faults.add(self.where(key), text)

    def given(self, key: str) -> bool:
        return key in self._table

    def names(self) -> Iterable[str]:
        """The keys of a section whose keys are the operator's own."""
        return self._table

    def raw(self, key: str) -> object:
        """The value as it stands, None if it is absent (TOML has no null)."""
        self._known.append(key)
        return self._table.get(key)

    def _typed(self, key: str, default: _D, types: tuple[type[_T], ...], right: str) -> _T | _D:
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
            return value
        self.fault(key, f"is {described(value)}; {right} would be right")
        return default

    def text(self, key: str, default: str, right: str = "a text") -> str:
        return self._typed(key, default, (str,), right)

    def required_text(self, key: str, right: str) -> str | None:
        if not self.given(key):
            self._known.append(key)
            self.fault(key, f"is missing; {right} would be right")
            return None
        return self._typed(key, None, (str,), right)

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, default, (bool,), "true or false")

    def whole(self, key: str, default: _D, low: int, high: int) -> int | _D:
        right = f"a whole number from {low} to {high}"
        value = self._typed(key, None, (int,), right)
        if value is None:
            return default
        if not low <= value <= high:
            self.fault(key, f"is {written(value)}; {right} would be right")
            return default
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        right = f"a plain number from {low:g} to {high:g}, such as {default:g}, without a unit"
        value = self._typed(key, None, (int, float), right)
        if value is None:
            return default
        if not low <= value <= high:  # NaN lies within nothing
            self.fault(key, f"is {written(value)}; {right} would be right")
            return default
        return float(value)

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        right = " or ".join(json.dumps(choice) for choice in choices)
        value = self.text(key, default, right)
        if value not in choices:
            self.fault(key, f"is {written(value)}; {right} would be right")
            return default
        return value

    def path(self, key: str, default: _D) -> Path | _D:
        right = "an absolute path, such as /var/lib/modelsync/state,"
        value = self._typed(key, None, (str,), right)
        if value is None:
            return default
        if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
            self.fault(key, f"is {written(value)}; {right} without .. would be right")
            return default
        return Path(value)

    def patterns(
        self,
        key: str,
        default: tuple[str, ...],
        right: str = 'a list of patterns over names, such as ["fraud-*"],',
    ) -> tuple[str, ...]:
        value = self._typed(key, None, (list,), right)
        if value is None:
            return default
        if len(value) > _MAX_PATTERNS or not all(isinstance(each, str) and each for each in value):
            self.fault(key, f"holds something else than texts, or too many; {right} would be right")
            return default
        return tuple(value)

    def parsed(
        self, key: str, default: _D, value: object, parse: Callable[[object], _T], shown: object = None
    ) -> _T | _D:
        """What ``parse`` makes of a value, its BadName or ValueError noted as a fault of ``key``.

        ``shown`` stands for the value in the fault, where the value itself holds a secret.
        """
        try:
            return parse(value)
        except BadName as bad:
            self.fault(key, f"{bad.value} is not a legal {bad.kind}: {bad.rule}")
        except ValueError as error:
            given = value if shown is None else shown
            self.fault(key, f"is {written(given) if isinstance(given, str) else described(given)}; {error}")
        return default

    def finish(self, elsewhere: Mapping[str, str] | None = None) -> None:
        """Report every key that was not asked for. ``elsewhere``: keys of other sections and where they belong."""
        for key in self._table:
            if key not in self._known:
                self.faults.add(self.where(key), functools.partial(self._unknown, key, elsewhere or {}))

    def _unknown(self, key: str, elsewhere: Mapping[str, str]) -> str:
        if key in elsewhere:
            return f"unknown key; it belongs in [{elsewhere[key]}]"
        close = difflib.get_close_matches(key[:80], self._known, n=1)
        if close:
            return f"unknown key; did you mean {close[0]}?"
        return f"unknown key; here are known: {', '.join(sorted(self._known))}"
