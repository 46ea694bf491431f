"""Small files that travel together: how many, how large, and how an answer tells them apart. PROTOCOL.md section 6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES, FileEntry

MAX_OBJECT_BYTES = CHUNK_BYTES
"""One chunk: its digest is the file's, and it is verified in one buffer."""
MAX_OBJECTS = 1024
"""Asked for in one request: 32 KiB of digests."""
MAX_BATCH_BYTES = 32 << 20
"""Of the files of one request, so that it can move to another peer without much ado."""
FEWEST = 16
"""Below it each file has a request of its own: several at a time, resumed within the file."""
SIZE_BYTES = 8
NOT_HELD = 2**64 - 1


def together(entries: Iterable[FileEntry]) -> tuple[list[FileEntry], list[FileEntry]]:
    """(files that are pulled in batches, files that are pulled each by itself), each digest once."""
    by_digest: dict[Digest, FileEntry] = {entry.digest: entry for entry in entries}
    small = [entry for entry in by_digest.values() if entry.size_bytes <= MAX_OBJECT_BYTES]
    large = [entry for entry in by_digest.values() if entry.size_bytes > MAX_OBJECT_BYTES]
    return (small, large) if len(small) >= FEWEST else ([], [*small, *large])


def requests(entries: Sequence[FileEntry]) -> list[list[FileEntry]]:
    """The files in order, parted so that each part is one request."""
    numbers, count, size_bytes = [0], 0, 0
    for entry in entries:
        count, size_bytes = count + 1, size_bytes + entry.size_bytes
        if count > MAX_OBJECTS or size_bytes > MAX_BATCH_BYTES:
            numbers.append(numbers[-1] + 1)
            count, size_bytes = 1, entry.size_bytes
        else:
            numbers.append(numbers[-1])
    numbered = zip(numbers[1:], entries, strict=True)
    return [[entry for _, entry in group] for _, group in groupby(numbered, key=lambda item: item[0])]
