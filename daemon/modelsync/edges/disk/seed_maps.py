"""Making a seed map when a file is published: from the version before, and through its map from those before that.

This file alone decides which older file a new one is compared with, and whether a map is worth its bytes. How equal
ranges are found is alignment's, what a map means is core.transfer.seeds'.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from modelsync.core.manifest import CHUNK_BYTES, FileEntry
from modelsync.core.transfer import seeds
from modelsync.core.transfer.seeds import Layer, Span
from modelsync.edges.disk import alignment
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.store import Store

_WORTH_BYTES = 256 << 10
"""What a map must save beyond equal chunks: it costs its receiver a request and two fsyncs."""


def with_seeds(store: Store, entry: FileEntry, bases: Sequence[FileEntry]) -> FileEntry:
    """The entry, with a map where one pays.

    Args:
        entry: a new file that the store holds, with all its chunk digests.
        bases: the files of the version before.
    Raises: DiskFull, DiskFailed. A base that is not held any more is none.
    """
    base = _base_of(entry, bases)
    if base is None:
        return entry
    chunks = store.chunk_digests(base)
    if chunks is None or not store.has(base.digest):
        return entry
    equal = {index for index, (new, old) in enumerate(zip(entry.chunks, chunks, strict=False)) if new == old}
    layer = _layer(store, entry, base, equal)
    older = _older(store, base)
    saved = seeds.covered_bytes(layer) - sum(entry.chunk_range(index)[1] for index in equal)
    if saved < _WORTH_BYTES and not (older and layer):
        return entry
    layers = [layer, *(further for known in older if (further := seeds.composed(layer, known)))]
    data = seeds.encode(layers[: seeds.MAX_LAYERS])
    return replace(entry, seeds=store.put_document(data))


def _base_of(entry: FileEntry, bases: Sequence[FileEntry]) -> FileEntry | None:
    """The older file that this one likely came of: of the same path, else of the same suffix and nearest in size."""
    if entry.size_bytes <= CHUNK_BYTES or any(base.digest == entry.digest for base in bases):
        return None
    same_path = [base for base in bases if base.path == entry.path]
    suffix = PurePosixPath(entry.path).suffix
    alike = [base for base in bases if PurePosixPath(base.path).suffix == suffix and base.size_bytes > CHUNK_BYTES]
    nearest = sorted(alike, key=lambda base: abs(base.size_bytes - entry.size_bytes))
    return next(iter([*same_path, *nearest]), None)


def _layer(store: Store, entry: FileEntry, base: FileEntry, equal: set[int]) -> Layer:
    path = store.object_path(entry.digest)
    with local_faults(path, "compare with the version before"):
        new = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            old = os.open(store.object_path(base.digest), os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = alignment.align(new, entry.size_bytes, old, base.size_bytes, equal)
            finally:
                os.close(old)
        finally:
            os.close(new)
    return seeds.trimmed([Span(match.offset, match.size_bytes, base.digest, match.base_offset) for match in found])


def _older(store: Store, base: FileEntry) -> tuple[Layer, ...]:
    data = store.read_document(base.seeds) if base.seeds is not None else None
    return seeds.decode(data, base) if data is not None else ()
