"""LIVE and STATE as a daemon lays them out, made directly, for tests of what reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from modelsync.core import catalog, catalog_fields, manifest
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.ids import Digest, EntryId, Version, model_name
from modelsync.core.manifest import CHUNK_BYTES, FileEntry, Manifest


def _digest(data: bytes) -> Digest:
    return Digest(blake3(data).digest())


def _entry(path: str, file: Path) -> FileEntry:
    data = file.read_bytes()
    chunks = tuple(_digest(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
    inline = len(chunks) <= manifest.MAX_INLINE_CHUNKS
    return FileEntry(
        path,
        len(data),
        0o644,
        _digest(data),
        chunks if inline else (),
        None if inline else _digest(b"".join(chunk.raw for chunk in chunks)),
    )


class LiveDir:
    """One host's directories. ``publish`` does what a daemon's activation leaves behind."""

    def __init__(self, root: Path) -> None:
        self.live, self.state = root / "live", root / "state"
        for directory in (self.live, self.state / "manifests", self.state / "store", self.state / "catalog"):
            directory.mkdir(parents=True)
        self.records: dict[str, ModelRecord] = {}

    def publish(
        self, name: str, source: Path, *, metadata: Mapping[str, Any] | None = None, activate: bool = True
    ) -> Digest:
        """A file or directory as the next version of a model; it is copied."""
        record = self.records.get(name) or ModelRecord(model_name(name))
        number = Version((record.head or 0) + 1)
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        base = source.parent if source.is_file() else source
        entries = tuple(
            sorted((_entry(str(path.relative_to(base)), path) for path in files), key=lambda entry: entry.path)
        )
        content, id_ = _digest(manifest.content_bytes(entries)), EntryId(1, number)
        version = Manifest(record.name, number, id_, 0, "", "", None, content, dict(metadata or {}), entries)
        data = manifest.encode(version)
        digest = _digest(data)
        (self.state / "manifests" / digest.hex).write_bytes(data)
        tree = self.state / "store" / name / digest.hex
        for path in files:
            target = tree / path.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        entry = VersionRecord(digest, content, id_, version.size_bytes, 0)
        self.records[name] = catalog.published(record, number, entry)
        (self.state / "catalog" / f"{name}.json").write_bytes(catalog_fields.to_json(self.records[name]))
        if activate:
            self.activate(name, digest)
        return digest

    def activate(self, name: str, digest: Digest) -> None:
        directory = self.live / name
        directory.mkdir(exist_ok=True)
        temporary = directory / f"current.{os.urandom(4).hex()}.tmp"
        temporary.symlink_to(os.path.relpath(self.state / "store" / name / digest.hex, directory))
        temporary.rename(directory / "current")

    def remove(self, name: str, digest: Digest) -> None:
        """What garbage collection does to a version that is not kept."""
        shutil.rmtree(self.state / "store" / name / digest.hex)
