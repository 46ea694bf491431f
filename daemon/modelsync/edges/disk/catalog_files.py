"""STATE/catalog, fleet.json, orphans and sources.json: what this node knows of the fleet, durable without Redis."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from modelsync.core import canonical, catalog_fields, fleet
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import BadName, LayoutCorrupt, MalformedMessage
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import ModelName, model_name
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.ports import SourceFile


class CatalogFiles:
    """One file a model, replaced whole. Its methods block; call them from a thread."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "catalog"
        self._orphans = state_dir / "orphans"
        self._fleet = state_dir / "fleet.json"
        self._sources = state_dir / "sources.json"

    def load(self) -> dict[ModelName, ModelRecord]:
        """Every model's record. Raises LayoutCorrupt, DiskFailed."""
        return self._load_all(self._directory)

    def _load_all(self, directory: Path) -> dict[ModelName, ModelRecord]:
        with local_faults(directory, "read the catalog"):
            durable.make_directories(directory)
            paths = [Path(entry.path) for entry in os.scandir(directory) if entry.name.endswith(".json")]
            return {record.name: record for record in map(self._load_one, paths)}

    @staticmethod
    def _load_one(path: Path) -> ModelRecord:
        try:
            return catalog_fields.from_json(model_name(path.name.removesuffix(".json")), path.read_bytes())
        except (BadName, MalformedMessage) as error:
            raise _corrupt(path, error) from error

    def save(self, record: ModelRecord) -> None:
        """Replace one record durably. Raises DiskFull, DiskFailed."""
        durable.replace_file(self._directory / f"{record.name}.json", catalog_fields.to_json(record))

    def load_fleet(self) -> FleetRecord:
        """Raises LayoutCorrupt, DiskFailed."""
        fields = self._load_fields(self._fleet)
        try:
            return fleet.from_fields(fields)
        except MalformedMessage as error:
            raise _corrupt(self._fleet, error) from error

    def save_fleet(self, record: FleetRecord) -> None:
        """Raises DiskFull, DiskFailed."""
        durable.replace_file(self._fleet, json.dumps(fleet.to_fields(record), indent=1).encode())

    def _load_fields(self, path: Path) -> dict[str, str]:
        try:
            with local_faults(path, "read"):
                value = canonical.decode(path.read_bytes() if path.exists() else b"{}", path.name)
        except MalformedMessage as error:
            raise _corrupt(path, error) from error
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise _corrupt(path, ValueError("not an object of text fields"))
        return value

    # --- versions that nobody else knows -----------------------------------------------------------------------------

    def load_orphans(self) -> dict[ModelName, ModelRecord]:
        """Records whose ``versions`` are orphaned. Raises LayoutCorrupt, DiskFailed."""
        return self._load_all(self._orphans)

    def save_orphans(self, record: ModelRecord) -> None:
        """Raises DiskFull, DiskFailed."""
        durable.replace_file(self._orphans / f"{record.name}.json", catalog_fields.to_json(record))

    # --- what was already published from the models directory ------------------------------------------------------

    def load_sources(self) -> dict[str, tuple[SourceFile, ...]]:
        """Signatures by path. A damaged file counts as empty: the cost is that sources are hashed once more."""
        try:
            value = canonical.decode(self._sources.read_bytes(), "sources")
            return {root: tuple(_source_file(*fields) for fields in files) for root, files in value.items()}
        except (OSError, MalformedMessage, TypeError, ValueError, AttributeError):
            return {}

    def save_sources(self, sources: Mapping[str, tuple[SourceFile, ...]]) -> None:
        """Raises DiskFull, DiskFailed."""
        value = {root: [_fields(item) for item in files] for root, files in sources.items()}
        durable.replace_file(self._sources, json.dumps(value, ensure_ascii=False).encode())


def _corrupt(path: Path, error: Exception) -> LayoutCorrupt:
    return LayoutCorrupt(path=str(path), reason=f"{error}; remove it: the daemon relearns it from the fleet")


def _fields(item: SourceFile) -> list[str | int]:
    # Nanoseconds and inodes are beyond 2^53, where JSON's numbers end: they are text.
    return [item.path, item.size_bytes, str(item.mtime_ns), str(item.ctime_ns), str(item.inode), item.mode]


def _source_file(path: str, size_bytes: int, mtime_ns: str, ctime_ns: str, inode: str, mode: int) -> SourceFile:
    return SourceFile(path, size_bytes, int(mtime_ns), int(ctime_ns), int(inode), mode)
