"""STATE/catalog and STATE/sources.json: what this node knows of each model, durable without Redis."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from modelsync.core import canonical, catalog
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import BadName, LayoutCorrupt, MalformedMessage
from modelsync.core.ids import ModelName, model_name
from modelsync.edges import durable
from modelsync.edges.durable import local_faults
from modelsync.ports import SourceFile


class CatalogFiles:
    """One file a model, replaced whole. Its methods block; call them from a thread."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "catalog"
        self._sources = state_dir / "sources.json"

    def load(self) -> dict[ModelName, ModelRecord]:
        """Every model's record. Raises LayoutCorrupt, DiskFailed."""
        with local_faults(self._directory, "read the catalog"):
            durable.make_directories(self._directory)
            names = [entry.name for entry in os.scandir(self._directory) if entry.name.endswith(".json")]
            return {record.name: record for record in map(self._load_one, names)}

    def _load_one(self, filename: str) -> ModelRecord:
        path = self._directory / filename
        try:
            return catalog.from_json(model_name(filename.removesuffix(".json")), path.read_bytes())
        except (BadName, MalformedMessage) as error:
            reason = f"{error}; remove it: the daemon relearns it from the fleet"
            raise LayoutCorrupt(path=str(path), reason=reason) from error

    def save(self, record: ModelRecord) -> None:
        """Replace one record durably. Raises DiskFull, DiskFailed."""
        durable.replace_file(self._directory / f"{record.name}.json", catalog.to_json(record))

    # --- what was already published from the models directory ------------------------------------------------------

    def load_sources(self) -> dict[str, tuple[SourceFile, ...]]:
        """Signatures by path. A damaged file counts as empty: the cost is that sources are hashed once more."""
        try:
            value = canonical.decode(self._sources.read_bytes(), "sources")
            return {root: tuple(SourceFile(*fields) for fields in files) for root, files in value.items()}
        except (OSError, MalformedMessage, TypeError, AttributeError):
            return {}

    def save_sources(self, sources: Mapping[str, tuple[SourceFile, ...]]) -> None:
        """Raises DiskFull, DiskFailed."""
        value = {root: [_fields(item) for item in files] for root, files in sources.items()}
        durable.replace_file(self._sources, json.dumps(value, ensure_ascii=False).encode())


def _fields(item: SourceFile) -> list[str | int]:
    return [item.path, item.size_bytes, item.mtime_ns, item.ctime_ns, item.inode, item.mode]
