"""Universal Binary JSON, as far as XGBoost writes it, read strictly: bounded depth, no name twice, no count that lies.

XGBoost's own reader follows nesting until the stack ends and trusts counts; so what it reads is read here first.
Source: https://ubjson.org/type-reference/ and container-types.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy

MAX_DEPTH = 32
"""XGBoost's own files nest eight deep."""
_NUMBERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_WORDS = {b"T": True, b"F": False, b"Z": None}


class _Reader:
    def __init__(self, data: bytes | bytearray, stand_back: Callable[[], None]) -> None:
        self._data, self._at, self._stand_back = data, 0, stand_back

    def take(self, size: int) -> bytes:
        begin = self.skip(size)
        return bytes(self._data[begin : self._at])

    def skip(self, size: int) -> int:
        """Pass so many bytes; where they begin."""
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError(f"cut off, or a count of {size:,} that lies")
        self._at += size
        return self._at - size

    def peek(self) -> bytes:
        return bytes(self._data[self._at : self._at + 1])

    def number(self, marker: bytes) -> Any:
        if marker not in _NUMBERS:
            raise ValueError(f"an unknown type {marker!r}")
        kind = numpy.dtype(_NUMBERS[marker])
        return numpy.frombuffer(self.take(kind.itemsize), kind)[0].item()

    def count(self) -> int:
        count = self.number(self.take(1))
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"a count of {count}")
        return count

    def text(self) -> str:
        return self.take(self.count()).decode()

    def value(self, depth: int) -> Any:
        marker = self.take(1)
        if marker in (b"{", b"["):
            if depth == 0:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
            return self.object(depth - 1) if marker == b"{" else self.array(depth - 1)
        if marker == b"S":
            return self.text()
        return _WORDS[marker] if marker in _WORDS else self.number(marker)

    def object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.peek() != b"}":
            name = self.text()
            if name in found:
                raise ValueError(f"{name[:40]!r} twice")
            found[name] = self.value(depth)
        self.take(1)
        self._stand_back()
        return found

    def array(self, depth: int) -> Any:
        if self.peek() == b"$":
            return self.typed_array()
        if self.peek() == b"#":
            self.take(1)
            return [self.value(depth) for _ in range(self.count())]
        found = []
        while self.peek() != b"]":
            found.append(self.value(depth))
        self.take(1)
        return found

    def typed_array(self) -> Any:
        _, marker, hash_mark = self.take(1), self.take(1), self.take(1)
        if marker not in _NUMBERS or hash_mark != b"#":
            raise ValueError(f"an array of unknown type {marker!r}")
        kind = numpy.dtype(_NUMBERS[marker])
        count = self.count()
        return numpy.frombuffer(self._data, kind, count, self.skip(count * kind.itemsize))


def decode(data: bytes | bytearray, stand_back: Callable[[], None] = lambda: None) -> Any:
    """Read one value: objects as dictionaries, arrays of numbers as NumPy views. Raises ValueError.

    Args:
        stand_back: called after each object.
    """
    try:
        return _Reader(data, stand_back).value(MAX_DEPTH)
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
