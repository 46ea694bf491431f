"""What the tests of the disk share: sources to publish, the steps of a publish, and what must hold afterwards.

Nothing here trusts the code under test: what ``current`` holds is read with plain calls and compared byte for byte.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import Manifest
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.disk.live import Live
from modelsync.ports import ActiveRecord, SourceFile

FRAUD = ModelName("fraud")


@dataclass(frozen=True)
class Content:
    """The files of one version: bytes by path, and which of them can be executed."""

    files: Mapping[str, bytes]
    executable: frozenset[str] = field(default_factory=frozenset)

    def write(self, root: Path) -> Path:
        for path, data in self.files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if path in self.executable else 0o644)
        return root

    def seen_at(self, root: Path) -> bool:
        """Whether a directory holds exactly these files, with these bytes, readable by all, executable where due."""
        found = {str(path.relative_to(root)) for path in root.glob("**/*") if not path.is_dir()}
        if found != set(self.files):
            return False
        modes = {path: 0o555 if path in self.executable else 0o444 for path in self.files}
        return all(
            (root / path).read_bytes() == data and (root / path).stat().st_mode & 0o7777 == modes[path]
            for path, data in self.files.items()
        )


def noise(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def sources(root: Path) -> list[SourceFile]:
    """What a scan would see."""
    found = []
    for path in sorted(root.glob("**/*")):
        if path.is_file():
            info = path.stat()
            name = str(path.relative_to(root))
            found.append(SourceFile(name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_mode))
    return found


def describe(store: IngestingStore, source: Path, number: int, model: ModelName = FRAUD) -> tuple[Manifest, Digest]:
    """Ingest a source and keep its manifest, as the publisher does."""
    files = store.ingest(source, sources(source))
    manifest = Manifest(
        model=model,
        version=Version(number),
        id=EntryId(1, number),
        created_ms=1_700_000_000_000 + number,
        author="test",
        note="",
        parent=None,
        content=Digest(blake3(manifests.content_bytes(files)).digest()),
        metadata={},
        files=files,
    )
    return manifest, store.put_document(manifests.encode(manifest))


def activate(store: IngestingStore, live: Live, manifest: Manifest, digest: Digest) -> None:
    """Steps 4 to 8 of an activation, as the activator does them."""
    store.build_tree(manifest, digest)
    assert store.tree_is_whole(manifest, digest)
    active = live.active(manifest.model)
    live.switch(
        ActiveRecord(
            model=manifest.model,
            version=manifest.version,
            digest=digest,
            id=manifest.id,
            since_ms=0,
            previous_version=None,
            previous_digest=active if active != digest else None,
        )
    )


def is_settled(store: IngestingStore, live: Live, manifest: Manifest, digest: Digest) -> bool:
    """Whether there is nothing to activate, by the activator's own question."""
    record = live.records().get(manifest.model)
    return live.active(manifest.model) == digest and record is not None and record.version == manifest.version


def temporaries(*roots: Path) -> list[str]:
    """What should be gone once a daemon has started."""
    left = [path for root in roots for path in root.glob("**/*") if path.name.endswith(".tmp")]
    for root in roots:
        for name in ("tmp", "partial"):
            left += (root / name).glob("*") if (root / name).is_dir() else ()
    return sorted({str(path) for path in left})


def misnamed(state: Path) -> list[str]:
    """Objects and manifests whose bytes are not what their name says."""
    files = [*state.glob("objects/b3/*/*"), *state.glob("manifests/*")]
    named = [path for path in files if not path.name.endswith(".tmp")]
    return [str(path) for path in named if blake3(path.read_bytes()).hexdigest() != path.name]


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about every file below a directory that a write would change."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.glob("**/*")]:
        info = path.lstat()
        link = os.readlink(path) if path.is_symlink() else None
        found[str(path)] = (info.st_mode, info.st_size, info.st_ino, info.st_mtime_ns, info.st_ctime_ns, link)
    return found
