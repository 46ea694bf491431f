"""Which files are written past the page cache, and in which unit: pure arithmetic over what the kernel says.

A direct write (O_DIRECT) begins and ends at the border of a block, in the file and in memory. Every chunk begins at a
multiple of ``chunk_bytes``; only the last may end elsewhere: it is written with zeros up to the next border, and the
file is cut to its size before anybody takes it for whole. So no file is ever written both ways, and the kernel never
has to keep a page and the disk in step. Decision 22 has what was weighed.
"""

from __future__ import annotations

from dataclasses import dataclass

DIRECT_FROM_BYTES = 64 << 20
"""Below, a file goes through the page cache in any case: it takes next to nothing from anybody."""
LEAST_BLOCK_BYTES = 4096
"""No smaller unit, whatever the disk would take: below its block a file system fills up what it writes."""


@dataclass(frozen=True, slots=True)
class Told:
    """What statx(2) says of direct writes to one file: both 0 where it takes none."""

    memory_bytes: int
    offset_bytes: int


def is_worth_it(version_bytes: int, room_bytes: int) -> bool:
    """Whether a version would push out of the page cache what others use, so that it is better written past it.

    With room, the page cache is better: the write is as quick, and whoever loads the version finds it in memory.

    Args:
        version_bytes: what is pulled of one version.
        room_bytes: memory that nobody has mapped and that can be had; half of it is left alone.
    """
    return 2 * version_bytes > room_bytes


def block_bytes(
    *, size_bytes: int, chunk_bytes: int, from_bytes: int, page_bytes: int, preferred_bytes: int, told: Told | None
) -> int | None:
    """The unit of a file's direct writes; None: it is written through the page cache.

    Args:
        from_bytes: smaller files are not written directly.
        page_bytes: what the buffers are aligned to.
        preferred_bytes: st_blksize, a multiple of the file system's block.
        told: None where the kernel or the file system says nothing: then it is tried.
    """
    if not 0 < from_bytes <= size_bytes:
        return None
    if told is not None and not (told.memory_bytes and told.offset_bytes):
        return None
    offset_bytes, memory_bytes = (told.offset_bytes, told.memory_bytes) if told else (1, 1)
    block = max(LEAST_BLOCK_BYTES, preferred_bytes, offset_bytes)
    if block & (block - 1) or block % offset_bytes or chunk_bytes % block or page_bytes % memory_bytes:
        return None
    return block


def padded(size_bytes: int, block: int) -> int:
    """The next border at or after a size."""
    return -(-size_bytes // block) * block
