"""STATE/asked.json, the models that were loaded on this host by request, and when versions here were last used."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import Digest, model_name
from modelsync.core.storage.cache import Cached
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.store import Store


class AskedFile:
    """Implements ports.AskedModels. A damaged file counts as empty: what was asked for can be asked for again."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "asked.json"

    def load(self) -> frozenset[str]:
        with local_faults(self._path, "read"):
            try:
                data = self._path.read_bytes()
            except FileNotFoundError:
                return frozenset()
        try:
            value = canonical.decode(data, "asked models")
            return frozenset(model_name(name) for name in value)
        except (BadName, MalformedMessage, TypeError):
            return frozenset()

    def save(self, names: frozenset[str]) -> None:
        with local_faults(self._path, "write"):
            durable.replace_file(self._path, json.dumps(sorted(names)).encode())


class UsedVersions:
    """Implements ports.VersionCache: a manifest's modification time is when its version was last used."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def touch(self, digest: Digest) -> None:
        path = self._store.manifest_path(digest)
        with local_faults(path, "touch"), contextlib.suppress(FileNotFoundError):
            os.utime(path)

    def cached(self, digest: Digest, besides: frozenset[Digest] = frozenset()) -> Cached | None:
        try:
            used_s = self._store.manifest_path(digest).stat().st_mtime
        except FileNotFoundError:
            return None
        manifest = self._store.manifest(digest)
        if manifest is None:
            return None
        files = (entry for entry in manifest.files if entry.digest not in besides)
        sizes = {entry.digest: entry.size_bytes for entry in files if self._store.has(entry.digest)}
        return Cached(digest, sum(sizes.values()), used_s)
