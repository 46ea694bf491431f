"""One file's pull set up: the partial file, and how it is written.

This file must not know who is asked for what.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from modelsync.core import past_cache
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.edges.disk import partial_file
from modelsync.edges.disk.chunk_writer import ChunkWriter
from modelsync.edges.pull.chunk_stream import FilePull
from modelsync.ports import Progress


class Opener:
    """Opens partial files for all pulls of a node.

    Args:
        direct_from_bytes: files of so many bytes may be written past the page cache; 0: none.
        room_bytes: what the page cache can take in; asked once a file.
    """

    def __init__(self, direct_from_bytes: int, room_bytes: Callable[[], int]) -> None:
        self._direct_from_bytes = direct_from_bytes
        self._room_bytes = room_bytes
        self._said = False
        self.refused: Callable[[str], None] = lambda _: None
        """Told once why the state directory's file system takes no direct writes."""

    @contextlib.contextmanager
    def opened(
        self, partial: Path, entry: FileEntry, chunks: Sequence[Digest], progress: Progress
    ) -> Iterator[FilePull]:
        """A file, new or as an earlier try left it. After this nothing is written to it any more. Raises OSError."""
        with contextlib.ExitStack() as stack:
            descriptor = partial_file.open_partial(partial, entry.size_bytes)
            stack.callback(os.close, descriptor)
            writer = ChunkWriter(
                partial,
                descriptor,
                entry.size_bytes,
                entry.chunk_bytes,
                from_bytes=self._from_bytes(entry, progress),
                refused=self._refused,
            )
            stack.callback(writer.close)
            yield FilePull(entry, chunks, partial, descriptor, progress, writer)

    def _from_bytes(self, entry: FileEntry, progress: Progress) -> int:
        if not 0 < self._direct_from_bytes <= entry.size_bytes:
            return 0
        version_bytes = max(progress.total_bytes, entry.size_bytes)
        return self._direct_from_bytes if past_cache.is_worth_it(version_bytes, self._room_bytes()) else 0

    def _refused(self, reason: str) -> None:
        if not self._said:
            self._said = True
            self.refused(reason)
