"""Filling a file from what this host holds already: read, verified like everything else, and only then written.

Two ways lead to local bytes: a chunk of the same digest in any version's file, and the publisher's map of ranges that
moved (core.transfer.seeds). Neither is trusted: a chunk counts after its BLAKE3 matched, or is pulled. The first way
was copy_file_range(2) and reading the copy: without reflinks it moves each byte once more (decision 16).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence

from blake3 import blake3

from modelsync.core.errors import IntegrityFault
from modelsync.core.ids import Digest
from modelsync.core.transfer import seeds
from modelsync.core.transfer.seeds import Assembly, Layer, Span
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.chunk_stream import FilePull
from modelsync.edges.pull.connections import require_going_on

_BATCH_CHUNKS = 32
"""Between two looks at whether the pull was cancelled, and of one range that is shared."""
_FICLONERANGE = 0x4020940D
"""linux/fs.h, _IOW(0x94, 13, struct file_clone_range)"""


class HeldChunks:
    """Where chunks lie in the files of the versions that this host holds, by digest.

    The digests of a manifest's larger files are kept once read: 32 bytes for each MiB held.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, list[tuple[Digest, bytes]]] = {}

    def layer(self, pull: FilePull, missing: Sequence[int]) -> Layer:
        """The missing chunks that stand in some held file. Raises DiskFailed. An unreadable version has none."""
        wanted: dict[bytes, list[int]] = {}
        for index in missing:
            wanted.setdefault(pull.chunks[index].raw, []).append(index)
        spans = []
        for base, chunks in self.files():
            for number in range(len(chunks) // 32):
                for index in wanted.pop(chunks[32 * number : 32 * number + 32], ()):
                    offset, size = pull.entry.chunk_range(index)
                    spans.append(Span(offset, size, base, number * pull.entry.chunk_bytes))
        return tuple(sorted(spans, key=lambda span: span.offset))

    def files(self) -> Iterator[tuple[Digest, bytes]]:
        """Each larger file that is held, and the digests of its chunks, one after another."""
        held = {path.name for path in self._store.trees.glob("*/*")}
        for name in self._known.keys() - held:
            self._known.pop(name, None)
        for name in held:
            if name not in self._known:
                self._known[name] = self._read(name)
            yield from self._known.get(name, ())

    def _read(self, name: str) -> list[tuple[Digest, bytes]]:
        with contextlib.suppress(ValueError, IntegrityFault):
            manifest = self._store.manifest(Digest(bytes.fromhex(name)))
            larger = [entry for entry in manifest.files if entry.chunk_count > 1] if manifest else []
            listed = [(entry.digest, self._store.chunk_digests(entry)) for entry in larger]
            return [(base, b"".join(chunk.raw for chunk in chunks)) for base, chunks in listed if chunks]
        return []


class Seeding:
    """Puts chunks together in one file under way. Raises OSError, and what ``require_going_on`` does."""

    def __init__(self, store: Store, pull: FilePull) -> None:
        self._store = store
        self._pull = pull
        self._bases: dict[Digest, int | None] = {}
        self._may_share = True
        """Whether the file system has not yet said that two files cannot share their blocks."""

    def close(self) -> None:
        for descriptor in self._bases.values():
            if descriptor is not None:
                os.close(descriptor)

    def fill(self, plans: Sequence[Assembly]) -> None:
        """Chunks that lie here wholly, in order: each is verified, and only then written and counted."""
        with self._pull.placing.filling():
            for first in range(0, len(plans), _BATCH_CHUNKS):
                require_going_on(self._pull.progress)
                batch = plans[first : first + _BATCH_CHUNKS]
                spans = seeds.joined([piece for plan in batch for piece in plan.pieces])
                shared = all([self._share(span) for span in spans])
                for plan in batch:
                    self._fill(plan, shared=shared)
        self._pull.placing.settle()

    def _fill(self, plan: Assembly, *, shared: bool) -> None:
        offset, size = self._pull.entry.chunk_range(plan.index)
        buffer = self._pull.placing.buffer()
        if shared:
            whole = os.preadv(self._pull.descriptor, [buffer[:size]], offset) == size
        else:
            whole = self._gather(plan, buffer)
        self.place(plan.index, buffer, whole=whole, written=shared)

    def gather(self, plan: Assembly) -> memoryview:
        """A chunk that has holes: what of it lies here, in a buffer for ``place`` when they are filled."""
        buffer = self._pull.placing.buffer()
        self._gather(plan, buffer)
        return buffer

    def _gather(self, plan: Assembly, buffer: memoryview) -> bool:
        offset = self._pull.entry.chunk_range(plan.index)[0]
        return all([self._read(piece, buffer[piece.offset - offset :]) for piece in plan.pieces])

    def place(self, index: int, buffer: memoryview, *, whole: bool = True, written: bool = False) -> None:
        """Hand a chunk on if it is right; else it is pulled, as if it were not here."""
        size = self._pull.entry.chunk_range(index)[1]
        if whole and blake3(buffer[:size]).digest() == self._pull.chunks[index].raw:
            self._pull.placing.put(index, buffer, written=written)
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
