"""STATE/rejected/NAME.json: the versions that this host's gates turned down."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from modelsync.core import gates
from modelsync.core.errors import BadName, LayoutCorrupt, MalformedMessage
from modelsync.core.gates import Rejection
from modelsync.core.ids import ModelName, model_name
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults


class RejectionFiles:
    """One file a model. Its methods block."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "rejected"

    def load_rejections(self) -> dict[ModelName, list[Rejection]]:
        """Everything that was rejected. Raises LayoutCorrupt, DiskFailed."""
        found: dict[ModelName, list[Rejection]] = {}
        with local_faults(self._root, "read"):
            for name in sorted(os.listdir(self._root)) if self._root.is_dir() else ():
                if name.endswith(".json"):
                    found[model_name(name.removesuffix(".json"))] = self._read(self._root / name)
        return found

    @staticmethod
    def _read(path: Path) -> list[Rejection]:
        try:
            return gates.from_json(path.read_bytes())
        except (MalformedMessage, BadName) as error:
            reason = f"{error}; remove it: the versions that it held back are then tried once more"
            raise LayoutCorrupt(path=str(path), reason=reason) from error

    def save_rejections(self, model: ModelName, rejections: Sequence[Rejection]) -> None:
        """Replace a model's file. Raises DiskFull, DiskFailed."""
        durable.replace_file(self._root / f"{model}.json", gates.to_json(list(rejections)))
