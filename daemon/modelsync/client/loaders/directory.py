"""A version of no known format: the application gets its directory and reads it itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from modelsync.client.loaders.contract import LoadContext


class ModelDirectory:
    """A version's files. They may be removed once another version is active; a file that is open stays readable."""

    def __init__(self, path: Path, files: Mapping[str, int]) -> None:
        self.path = path
        self.files = MappingProxyType(dict(files))

    def open(self, name: str) -> BinaryIO:
        """Open one of ``files`` for reading. Raises KeyError: no such file in this version; FileNotFoundError."""
        if name not in self.files:
            raise KeyError(name)
        return open(self.path / name, "rb")

    def __fspath__(self) -> str:
        return os.fspath(self.path)


class DirectoryLoader:
    """Takes what no other loader takes."""

    name = "directory"
    maps = True
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return True

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return 0  # nothing is read

    def load(self, path: Path, context: LoadContext) -> object:
        return ModelDirectory(path, context.files)
