"""Which chunks of a new file lie in files that this host holds, and which of those places turned out wrong.

Two ways lead to local bytes: a chunk of the same digest in any version's file, and the publisher's map of ranges that
moved (core.transfer.seeds). This file must not know how bytes are copied, nor who is asked for what is not here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from blake3 import blake3

from modelsync.core.errors import DigestMismatch, IntegrityFault, PeerRefused, PeerUnavailable
from modelsync.core.ids import Digest
from modelsync.core.transfer import seeds
from modelsync.core.transfer.seeds import Assembly, Layer, Span
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.chunk_stream import FilePull
from modelsync.ports import Progress

Document = Callable[[Digest, Progress], bytes]
"""A seed map by its digest. Raises PeerRefused, PeerUnavailable, IntegrityFault: it cannot be had."""


class HeldChunks:
    """The digests of the chunks of this host's larger files, kept once read: 32 bytes for each MiB held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, list[tuple[Digest, bytes]]] = {}

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


class OldBytes:
    """What the files of the versions that this host holds can give to new ones.

    A range that did not hold what its digest says is left out from then on.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held = HeldChunks(store)
        self._wrong: list[Span] = []

    def plans(self, pull: FilePull, document: Document) -> list[Assembly]:
        """How missing chunks can be made of local ranges, in order: by digest, and else by the publisher's map."""
        if not (missing := pull.missing()):
            return []
        plans = seeds.assemblies(pull.entry, missing, self._listed(pull, missing), listed=True)
        left = set(missing) - {plan.index for plan in plans}
        if pull.entry.seeds is not None and left:
            mapped = seeds.assemblies(pull.entry, left, self._mapped(pull, pull.entry.seeds, document))
            plans += [plan for plan in mapped if not any(self._is_wrong(piece) for piece in plan.pieces)]
        return sorted(plans, key=lambda plan: plan.index)

    def _mapped(self, pull: FilePull, digest: Digest, document: Document) -> Layer:
        """What the publisher's map says of files that are held here; nothing where it cannot be had."""
        aside = Progress(cancelled=pull.progress.cancelled)  # who has no map is not to blame
        try:
            layers = seeds.decode(document(digest, aside), pull.entry)
        except (PeerRefused, PeerUnavailable, IntegrityFault):
            return ()
        pull.progress.add(wire_bytes=aside.wire_bytes)
        return seeds.usable(layers, self._store.has)

    def _listed(self, pull: FilePull, missing: Sequence[int]) -> Layer:
        """The missing chunks that stand in some held file. Raises DiskFailed. An unreadable version has none."""
        wanted: dict[bytes, list[int]] = {}
        for index in missing:
            wanted.setdefault(pull.chunks[index].raw, []).append(index)
        spans = []
        for base, chunks in self._held.files():
            for number in range(len(chunks) // 32):
                digest, start = chunks[32 * number : 32 * number + 32], number * pull.entry.chunk_bytes
                if digest not in wanted or self._is_wrong(Span(0, pull.entry.chunk_bytes, base, start)):
                    continue
                for index in wanted.pop(digest):
                    offset, size = pull.entry.chunk_range(index)
                    spans.append(Span(offset, size, base, start))
        return tuple(sorted(spans, key=lambda span: span.offset))

    def _is_wrong(self, span: Span) -> bool:
        return any(
            span.base == wrong.base
            and span.base_offset < wrong.base_offset + wrong.size_bytes
            and wrong.base_offset < span.base_offset + span.size_bytes
            for wrong in self._wrong
        )

    # --- what was wrong -----------------------------------------------------------------------------------------------

    def blamed(self, pull: FilePull, copied: Mapping[int, Span | None]) -> list[DigestMismatch]:
        """The old files that are to blame for chunks that were copied and are not right. Raises OSError.

        Args:
            pull: its verified chunks are right.
            copied: as ``FilePull.copied``. Where only a map led to the bytes, nobody can tell who is to blame.
        """
        faults = []
        for index, span in copied.items():
            if span is not None and index not in pull.verified and (fault := self._rotten(pull, index, span)):
                self._wrong.append(span)
                faults.append(fault)
        return faults

    def _rotten(self, pull: FilePull, index: int, span: Span) -> DigestMismatch | None:
        path, data = self._store.object_path(span.base), bytearray(span.size_bytes)
        with contextlib.suppress(FileNotFoundError), path.open("rb") as base:
            os.preadv(base.fileno(), [data], span.base_offset)
        expected, actual = pull.chunks[index], Digest(blake3(data).digest())
        if actual == expected:
            return None
        chunk = span.base_offset // pull.entry.chunk_bytes
        return DigestMismatch(path=str(path), chunk=chunk, expected=str(expected), actual=str(actual), source="disk")
