"""Which byte ranges to ask for: pure decisions of a pull. The plainest form; a swarm planner may stand beside it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from modelsync.core.manifest import FileEntry

MAX_RUN_BYTES = 256 << 20
"""One request's range: long enough that the gap between two is nothing, short enough to move to another peer."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive missing chunks: ``first`` to ``last``, both included."""

    first: int
    last: int

    def byte_range(self, entry: FileEntry) -> tuple[int, int]:
        """(first byte, byte after the last)."""
        start, _ = entry.chunk_range(self.first)
        offset, size = entry.chunk_range(self.last)
        return start, offset + size


def runs(entry: FileEntry, verified: Collection[int]) -> list[Run]:
    """The missing chunks of a file as ranges, in order, each at most ``MAX_RUN_BYTES``."""
    longest = MAX_RUN_BYTES // entry.chunk_bytes
    result: list[Run] = []
    for index in range(entry.chunk_count):
        if index in verified:
            continue
        last = result[-1] if result else None
        if last and last.last == index - 1 and index - last.first < longest:
            result[-1] = Run(last.first, index)
        else:
            result.append(Run(index, index))
    return result
