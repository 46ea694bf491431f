"""Which ranges of a file that is being published stand in an earlier version of it, wherever they stood there.

The publisher holds both files, so it can look at bytes where a receiver can only compare digests. It walks the new
file: chunks of equal digests at equal offsets are skipped unread; elsewhere bytes are compared at the shift that last
held; where they differ, the walk looks for the next place that is equal at this shift, and then at any other, by
sliding over the new file and looking its bytes up in samples of the old one. Content-defined chunks were the
alternative (decisions/).

All of it is bounded: a file that has nothing in common with the old one costs some tens of samples. What is missed is
transferred; what is claimed is checked by the receiver. GIL: no call works on more than ``_BLOCK`` bytes at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

_BLOCK = 1 << 20
_GRID = 4 << 10
"""In a block that changed, what is equal again is looked for at these steps and then extended to the byte."""
_SAMPLE = 48
"""Bytes that are looked up: far too many to stand somewhere else by accident, where they are not all alike."""
_TABLE_GRID = 64 << 10
"""Samples of the old file are kept at these steps, 1.5 KB for each MiB; so long a range is found wherever it went."""
_TABLE_ROWS = 1 << 16
"""In a larger file the steps are wider, up to ``_BLOCK``: one look slides over one step."""
_FIRST_SKIP, _LAST_SKIP = 1 << 20, 32 << 20
"""After a fruitless look the walk goes on this far behind it, twice as far each time; a find is extended backwards."""
_DISTINCT = 12
"""A sample of fewer different bytes (padding, zeros) would be found everywhere."""


@dataclass(frozen=True, slots=True)
class Match:
    """``size_bytes`` are equal at ``offset`` of the new file and ``base_offset`` of the old one."""

    offset: int
    size_bytes: int
    base_offset: int


def align(new: int, new_bytes: int, old: int, old_bytes: int, equal_chunks: Collection[int]) -> list[Match]:
    """Find what a new file shares with an old one.

    Args:
        new, old: descriptors to read from.
        equal_chunks: indices of chunks of 1 MiB that are known to be equal at equal offsets.
    Raises: OSError.
    """
    return _Walk(new, new_bytes, old, old_bytes, equal_chunks).run()


class _Walk:
    def __init__(self, new: int, new_bytes: int, old: int, old_bytes: int, equal_chunks: Collection[int]) -> None:
        self._new, self._new_bytes = new, new_bytes
        self._old, self._old_bytes = old, old_bytes
        self._equal = equal_chunks
        self._matches: list[Match] = []
        self._end = 0
        """Where the last match ends: a find is not extended back beyond it."""
        self._step = _TABLE_GRID
        self._samples: dict[bytes, int] = {}

    def run(self) -> list[Match]:
        position, shift, skip = 0, 0, _FIRST_SKIP
        while position < self._new_bytes:
            position, shift = self._follow(position, shift)
            if position >= self._new_bytes:
                break
            found = self._resumed(position, shift)
            if found is None:
                position = self._skipped(position, skip)
                shift = 0 if self._is_equal(position) else shift
                skip = min(2 * skip, _LAST_SKIP)
            else:
                position, shift, skip = *found, _FIRST_SKIP
        return self._matches

    # --- at one shift ------------------------------------------------------------------------------------------------

    def _follow(self, position: int, shift: int) -> tuple[int, int]:
        """Add what is equal from here on; returns where it ends, and the shift."""
        position = self._extended_back(position, shift)
        while position < self._new_bytes:
            if self._is_equal(position):
                position, shift = self._add(position, min(_BLOCK, self._new_bytes - position), 0), 0
                continue
            size = min(_BLOCK - position % _BLOCK, self._new_bytes - position)
            same = _common_prefix(_read(self._new, position, size), self._old_part(position - shift, size))
            position = self._add(position, same, shift)
            if same < size:
                break
        return position, shift

    def _is_equal(self, position: int) -> bool:
        return position % _BLOCK == 0 and position // _BLOCK in self._equal

    def _old_part(self, offset: int, size: int) -> bytes:
        return _read(self._old, offset, size) if 0 <= offset < self._old_bytes else b""

    def _add(self, position: int, size: int, shift: int) -> int:
        last = self._matches[-1] if self._matches else None
        if size and last and (last.offset + last.size_bytes, last.offset - last.base_offset) == (position, shift):
            self._matches[-1] = Match(last.offset, last.size_bytes + size, last.base_offset)
        elif size:
            self._matches.append(Match(position, size, position - shift))
        if size:
            self._end = position + size
        return position + size

    def _extended_back(self, position: int, shift: int) -> int:
        """Where the equal range around a find begins, at most where the one before it ended."""
        while position > self._end and position > shift:
            size = min(_GRID * 16, position - self._end, position - shift)
            new, old = _read(self._new, position - size, size), self._old_part(position - shift - size, size)
            same = _common_suffix(new, old)
            position -= same
            if same < size:
                break
        return position

    # --- after a difference ------------------------------------------------------------------------------------------

    def _resumed(self, position: int, shift: int) -> tuple[int, int] | None:
        """The next place that is equal, and at which shift; None if none is found at this cost."""
        near = self._at_this_shift(position, shift)
        return (near, shift) if near is not None else self._at_another_shift(position)

    def _at_this_shift(self, position: int, shift: int) -> int | None:
        """Raised by one grid step at least; a chunk that is known to be equal ends the look as well."""
        new, old = _read(self._new, position, _BLOCK), self._old_part(position - shift, _BLOCK)
        for at in range(_GRID - position % _GRID, min(len(new), len(old)), _GRID):
            part = new[at : at + _GRID]
            if part == old[at : at + _GRID] and (len(part) < _SAMPLE or len(set(part)) >= _DISTINCT):
                return position + at
        boundary = position - position % _BLOCK + _BLOCK
        return boundary if shift == 0 and self._is_equal(boundary) else None

    def _at_another_shift(self, position: int) -> tuple[int, int] | None:
        table = self._table()
        new = _read(self._new, position, self._step + _SAMPLE)
        for at in range(len(new) - _SAMPLE):
            found = table.get(new[at : at + _SAMPLE])
            if found is not None:
                return position + at, position + at - found
        return None

    def _table(self) -> dict[bytes, int]:
        """Samples of the old file by their bytes; made when they are first wanted."""
        if not self._samples:
            while self._old_bytes // self._step > _TABLE_ROWS and self._step < _BLOCK:
                self._step *= 2
            for offset in range(0, self._old_bytes - _SAMPLE, self._step):
                sample = _read(self._old, offset, _SAMPLE)
                if len(set(sample)) >= _DISTINCT:
                    self._samples.setdefault(sample, offset)
        return self._samples

    def _skipped(self, position: int, skip: int) -> int:
        """Go on behind, but never past a chunk that is known to be equal."""
        boundary = position - position % _BLOCK + _BLOCK
        last = min(position + skip, self._new_bytes)
        while boundary < last and not self._is_equal(boundary):
            boundary += _BLOCK
        return min(boundary, self._new_bytes)


def _read(descriptor: int, offset: int, size: int) -> bytes:
    return os.pread(descriptor, size, offset)  # of a regular file: short at its end only


def _common_prefix(left: bytes, right: bytes) -> int:
    """How many first bytes are equal; the comparisons run in C."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _common_suffix(left: bytes, right: bytes) -> int:
    if len(left) != len(right):
        return 0
    return _common_prefix(left[::-1], right[::-1])
