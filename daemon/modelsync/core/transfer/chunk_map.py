"""Which chunks of an object are verified here, asked both by chunk and by byte.

Peers tell each other byte ranges rather than numbers of chunks: two manifests may cut one object at different places.
Any thread may add and read: each is one operation on a bytearray.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

MAX_RANGES = 8192
"""Told to a peer at once: more would be a longer answer than the chunks beyond it are worth."""
_HELD = re.compile(b"\x01+")

Ranges = Sequence[tuple[int, int]]
"""(first byte, byte after the last), in order, apart from each other."""


class ChunkMap:
    """A set of chunk indexes that also knows which bytes they are.

    Args:
        starts: the offset of each chunk, in order.
        size_bytes: of the whole object.
    """

    def __init__(self, starts: Sequence[int], size_bytes: int) -> None:
        self._starts = starts
        self.size_bytes = size_bytes
        self.coming = 0
        """Chunks that were asked of somebody who holds everything, bit n being chunk n: others need not ask as well."""
        self._flags = bytearray(len(starts))

    def add(self, index: int) -> bool:
        """Hold a chunk; whether it is new. Two threads that add one in the same instant may both be told so."""
        new = not self._flags[index]
        self._flags[index] = 1
        return new

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and 0 <= index < len(self._flags) and self._flags[index] == 1

    def __iter__(self) -> Iterator[int]:
        return (index for index, held in enumerate(bytes(self._flags)) if held)

    def __len__(self) -> int:
        return self._flags.count(1)

    def bits(self) -> int:
        """The same as a whole number: bit n is chunk n."""
        return int(bytes(self._flags).translate(_DIGITS)[::-1] or b"0", 2)

    def ranges(self) -> list[tuple[int, int]]:
        """The bytes that are verified; the first ``MAX_RANGES`` of their ranges."""
        return self._ranges(bytes(self._flags))

    def coming_ranges(self) -> list[tuple[int, int]]:
        """The bytes that are ``coming``, in the same way."""
        return self._ranges(f"{self.coming:b}".encode().translate(_FLAGS)[::-1])

    def _ranges(self, flags: bytes) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for run in _HELD.finditer(flags):
            found.append((self._starts[run.start()], self._end(run.end() - 1)))
            if len(found) == MAX_RANGES:
                break
        return found

    def covers(self, start: int, end: int) -> bool:
        """Whether each of these bytes, of which there is at least one, lies in a verified chunk."""
        if not 0 <= start < end <= self.size_bytes:
            return False
        first, last = bisect_right(self._starts, start) - 1, bisect_right(self._starts, end - 1) - 1
        return self._flags.find(0, first, last + 1) == -1

    def end_from(self, start: int) -> int:
        """Where the verified bytes end that begin at ``start``: there itself where that byte is not verified."""
        if not 0 <= start < self.size_bytes:
            return start
        first = bisect_right(self._starts, start) - 1
        missing = self._flags.find(0, first)
        if missing == first:
            return start
        return self._starts[missing] if missing != -1 else self.size_bytes

    def _end(self, index: int) -> int:
        return self._starts[index + 1] if index + 1 < len(self._starts) else self.size_bytes


_DIGITS = bytes.maketrans(b"\x00\x01", b"01")
_FLAGS = bytes.maketrans(b"01", b"\x00\x01")


def bits_within(ranges: Ranges, starts: Sequence[int], size_bytes: int) -> int:
    """The chunks that lie wholly within byte ranges, as a whole number: bit n is chunk n."""
    bits = 0
    for start, end in ranges:
        first = bisect_right(starts, start - 1) if start > 0 else 0
        beyond = len(starts) if end >= size_bytes else bisect_right(starts, end) - 1
        if beyond > first:
            bits |= (1 << beyond) - (1 << first)
    return bits
