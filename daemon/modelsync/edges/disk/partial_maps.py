"""What this node has verified of objects that it is still pulling, for those who would have it from here.

A pull enters its map before it asks anybody, and whoever serves reads it: a range is given out only where all of it is
verified. After a pull that failed the map stays, so that a fleet whose primary died can complete from what its replicas
hold together.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from modelsync.core.ids import Digest
from modelsync.core.transfer.chunk_map import ChunkMap
from modelsync.ports import HeldPart


@dataclass
class _Entry:
    path: Path
    chunks: ChunkMap
    pulling: bool = True


class PartialMaps:
    """Maps by digest. Entered and removed by pulls, in threads; read by the server."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._entries: dict[Digest, _Entry] = {}

    def enter(self, digest: Digest, path: Path, chunks: ChunkMap) -> None:
        """A pull begins, or begins again."""
        with self._guard:
            self._entries[digest] = _Entry(path, chunks)

    def pause(self, digest: Digest) -> None:
        """The pull has stopped for now; what it verified can still be had."""
        with self._guard:
            if entry := self._entries.get(digest):
                entry.pulling = False

    def forget(self, digest: Digest) -> None:
        """The object is whole and has its name, or what lay there is not trusted any more."""
        with self._guard:
            self._entries.pop(digest, None)

    def lost(self, path: Path) -> None:
        """A file under way is about to be removed as garbage: another of its name would not be what the map says."""
        with self._guard:
            for digest in [digest for digest, entry in self._entries.items() if entry.path == path]:
                del self._entries[digest]

    def find(self, digest: Digest) -> HeldPart | None:
        """What is verified of an object that is not whole yet."""
        with self._guard:
            entry = self._entries.get(digest)
            if entry is None:
                return None
            if not entry.path.exists():  # collected as garbage since
                del self._entries[digest]
                return None
            return HeldPart(entry.path, entry.chunks, pulling=entry.pulling)
