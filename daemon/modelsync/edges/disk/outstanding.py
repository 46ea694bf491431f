"""How many bytes of the disk files under way have yet to take: what an earlier try has allocated is theirs already.

Without it a pull that was killed half-way, whose file has its full length from the beginning, would need its room twice
to go on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from modelsync.core.manifest import FileEntry
from modelsync.edges.disk.store import Store

_BLOCK_BYTES = 512
"""Of st_blocks: stat(2)."""


def outstanding_bytes(store: Store, entries: Sequence[FileEntry]) -> int:
    """Of files that are missing or under way; blocks. What is held needs nothing."""
    return sum(max(0, entry.size_bytes - _allocated_bytes(store, entry)) for entry in entries)


def _allocated_bytes(store: Store, entry: FileEntry) -> int:
    for path in (store.partial_path(entry.digest), store.object_path(entry.digest)):
        with contextlib.suppress(OSError):  # not begun yet; or it has just got its name
            return os.stat(path, follow_symlinks=False).st_blocks * _BLOCK_BYTES
    return 0
