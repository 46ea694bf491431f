"""Filling a file from what this host holds already: copied in the kernel, and then verified like everything else.

Two ways lead to local bytes: a chunk of the same digest in any version's file, and the publisher's map of ranges that
moved (core.transfer.seeds). Neither is trusted: a chunk counts after its BLAKE3 matched, or is pulled.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from blake3 import blake3

from modelsync.core.errors import IntegrityFault
from modelsync.core.ids import Digest
from modelsync.core.transfer import seeds
from modelsync.core.transfer.seeds import Assembly, Layer, Span
from modelsync.edges.disk import durable, partial_file
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.chunk_stream import FilePull
from modelsync.edges.pull.connections import require_going_on

_BATCH_CHUNKS = 32
"""Copied, started to be written back, and verified while hot."""
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What copy_file_range(2) says where the file system or an old kernel cannot do it."""
_COPY_BYTES = 1 << 20


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
    """Copies into one file under way. Raises OSError, and what ``require_going_on`` does."""

    def __init__(self, store: Store, pull: FilePull) -> None:
        self._store = store
        self._pull = pull
        self._bases: dict[Digest, int | None] = {}
        self._buffer = memoryview(bytearray(pull.entry.chunk_bytes))

    def close(self) -> None:
        for descriptor in self._bases.values():
            if descriptor is not None:
                os.close(descriptor)

    def fill(self, layer: Layer) -> list[Assembly]:
        """Copy what a layer offers of the missing chunks; what it filled wholly is verified and counted.

        Returns: the chunks that have holes; ``verify`` each when its holes are filled.
        """
        pull = self._pull
        plans = seeds.assemblies(pull.entry, pull.missing(), layer)
        for first in range(0, len(plans), _BATCH_CHUNKS):
            require_going_on(pull.progress)
            batch = plans[first : first + _BATCH_CHUNKS]
            for span in seeds.joined([piece for plan in batch for piece in plan.pieces]):
                self._copy(span)
                durable.start_writeback(pull.descriptor, span.offset, span.size_bytes)
            for plan in batch:
                if not plan.gaps:
                    self.verify(plan.index)
        return [plan for plan in plans if plan.gaps]

    def verify(self, index: int) -> bool:
        """Count a chunk that was put together, if it is right."""
        pull = self._pull
        offset, size = pull.entry.chunk_range(index)
        data = self._buffer[:size]
        if os.preadv(pull.descriptor, [data], offset) != size or blake3(data).digest() != pull.chunks[index].raw:
            return False
        pull.whole.feed(offset, data)
        pull.verified.add(index)
        pull.progress.add(done_bytes=size)
        return True

    def _copy(self, span: Span) -> None:
        base = self._base(span.base)
        if base is None:
            return
        source, target, left = span.base_offset, span.offset, span.size_bytes
        while left and (size := copy_range(base, source, self._pull.descriptor, target, left)):
            source, target, left = source + size, target + size, left - size

    def _base(self, digest: Digest) -> int | None:
        if digest not in self._bases:
            try:
                self._bases[digest] = os.open(self._store.object_path(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # collected since it was looked up
                self._bases[digest] = None
        return self._bases[digest]


def copy_range(base: int, source: int, descriptor: int, target: int, size: int) -> int:
    """Copy some bytes; how many, 0 at the base's end."""
    try:
        return os.copy_file_range(base, descriptor, size, source, target)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    data = os.pread(base, min(size, _COPY_BYTES), source)
    partial_file.write_at(descriptor, memoryview(data), target)
    return len(data)
