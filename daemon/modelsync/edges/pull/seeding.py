"""Filling a file from what this host holds already: read, written, and fed to the file's own digest.

What is copied is shown to others once the whole file's digest has proved it (decision 25); a chunk with holes, which a
peer filled, is verified at once. The first way was copy_file_range(2) and reading the copy: without reflinks it moves
each byte once more (decision 16). This file must not know how old bytes are found.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from blake3 import blake3

from modelsync.core.ids import Digest
from modelsync.core.transfer import seeds
from modelsync.core.transfer.seeds import Assembly, Span
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.chunk_stream import FilePull
from modelsync.edges.pull.connections import require_going_on
from modelsync.edges.pull.copying import Copying, Slots

_BATCH_CHUNKS = 32
"""Between two looks at whether the pull was cancelled, and of one range that is shared."""
_FICLONERANGE = 0x4020940D
"""linux/fs.h, _IOW(0x94, 13, struct file_clone_range)"""


class Seeding:
    """Puts chunks together in one file under way. Raises OSError, and what ``require_going_on`` does."""

    def __init__(self, store: Store, pull: FilePull, slots: Slots) -> None:
        self._store = store
        self._pull = pull
        self._slots = slots
        self._bases: dict[Digest, int | None] = {}
        self._may_share = True
        """Whether the file system has not yet said that two files cannot share their blocks."""

    def close(self) -> None:
        for descriptor in self._bases.values():
            if descriptor is not None:
                os.close(descriptor)

    def fill(self, plans: Sequence[Assembly]) -> None:
        """Copy chunks that lie here wholly, in order; what cannot be read here stays missing."""
        with self._slots.copying(self._pull) as copying:
            for first in range(0, len(plans), _BATCH_CHUNKS):
                require_going_on(self._pull.progress)
                batch = plans[first : first + _BATCH_CHUNKS]
                spans = seeds.joined([piece for plan in batch for piece in plan.pieces])
                shared = all([self._share(span) for span in spans])
                for plan in batch:
                    self._fill(plan, copying, shared=shared)

    def _fill(self, plan: Assembly, copying: Copying, *, shared: bool) -> None:
        buffer = copying.buffer()
        if not self._gather(plan, buffer):
            copying.give_back(buffer)
            return
        copying.put(plan.index, buffer, written=shared)
        self._pull.copied[plan.index] = plan.pieces[0] if plan.listed else None
        self._pull.progress.add(done_bytes=self._pull.entry.chunk_range(plan.index)[1])

    def gather(self, plan: Assembly) -> memoryview:
        """A chunk that has holes: what of it lies here, in a buffer for ``place`` when they are filled."""
        buffer = self._pull.placing.buffer()
        self._gather(plan, buffer)
        return buffer

    def _gather(self, plan: Assembly, buffer: memoryview) -> bool:
        offset = self._pull.entry.chunk_range(plan.index)[0]
        return all([self._read(piece, buffer[piece.offset - offset :]) for piece in plan.pieces])

    def place(self, index: int, buffer: memoryview) -> None:
        """Hand a chunk that had holes on if it is right; else it is pulled, as if it were not here."""
        size = self._pull.entry.chunk_range(index)[1]
        if blake3(buffer[:size]).digest() == self._pull.chunks[index].raw:
            self._pull.placing.put(index, buffer)
        else:
            self._pull.placing.give_back(buffer)

    def _read(self, piece: Span, into: memoryview) -> bool:
        """The bytes of a range into the beginning of a buffer; False where its base has not so many."""
        base, left, at = self._base(piece.base), into[: piece.size_bytes], piece.base_offset
        while base is not None and left and (size := os.preadv(base, [left], at)):
            left, at = left[size:], at + size
        return not left

    def _share(self, span: Span) -> bool:
        """Whether the file has these bytes now by sharing their blocks, as XFS and btrfs can; ext4 cannot."""
        base = self._base(span.base)
        if not self._may_share or base is None:
            return False
        arguments = struct.pack("=qQQQ", base, span.base_offset, span.size_bytes, span.offset)
        try:
            fcntl.ioctl(self._pull.descriptor, _FICLONERANGE, arguments)
        except OSError as error:
            self._may_share = error.errno == errno.EINVAL  # not at a block's border: another range may be
            return False
        return True

    def _base(self, digest: Digest) -> int | None:
        if digest not in self._bases:
            try:
                self._bases[digest] = os.open(self._store.object_path(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # collected since it was looked up
                self._bases[digest] = None
        return self._bases[digest]
