"""safetensors: one file, or several with an index. Mapped; a header that lies is refused by the library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelsync.client.loaders.contract import LoadContext
from modelsync.client.loaders.library import library
from modelsync.client.loaders.shards import Shards
from modelsync.core.errors import ModelFileRefused

_SUFFIX = ".safetensors"
_INDEX = ".safetensors.index.json"
_MAX_INDEX_BYTES = 32 << 20


class Tensors(Mapping[str, Any]):
    """The tensors of a file, as NumPy arrays over the mapped file."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self._names = tuple(opened.keys())

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _open_tensors(file: Path, shard: str = "") -> Tensors:
    safetensors = library("safetensors", "safetensors", file)
    library("numpy", "safetensors", file)
    try:
        return Tensors(safetensors.safe_open(str(file), framework="numpy"))
    except FileNotFoundError:
        raise
    except Exception as error:  # SafetensorError, and whatever the header's parser says
        shown = shard or str(file)
        raise ModelFileRefused(path=shown, loader="safetensors", reason=str(error)[:300]) from error


class SafetensorsLoader:
    """One ``.safetensors`` file."""

    name = "safetensors"
    maps = True
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(_SUFFIX) is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(context.files.values())

    def load(self, path: Path, context: LoadContext) -> object:
        return _open_tensors(path / (context.only_file(_SUFFIX) or ""))


class ShardedTensorsLoader:
    """Several ``.safetensors`` files with a ``model.safetensors.index.json``, as Hugging Face lays them out."""

    name = "safetensors shards"
    maps = True
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(_INDEX) is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(size for file, size in context.files.items() if file.endswith(_SUFFIX))

    def load(self, path: Path, context: LoadContext) -> object:
        index_path = context.only_file(_INDEX) or ""
        base = index_path.rpartition("/")[0]
        index = {name: f"{base}/{shard}".lstrip("/") for name, shard in self._index(path / index_path).items()}
        absent = sorted(set(index.values()) - context.files.keys())
        if absent:
            reason = f"the index names {absent[0]!r}, which is not among the version's files"
            raise ModelFileRefused(path=str(path / index_path), loader=self.name, reason=reason)
        sizes = {shard: context.files[shard] for shard in sorted(set(index.values()))}
        return Shards(path, index, sizes, _open_tensors, context.progress)

    def _index(self, file: Path) -> dict[str, str]:
        if file.stat().st_size > _MAX_INDEX_BYTES:
            raise ModelFileRefused(path=str(file), loader=self.name, reason=f"an index above {_MAX_INDEX_BYTES} bytes")
        try:
            value = json.loads(file.read_bytes())["weight_map"]
            if isinstance(value, dict) and all(isinstance(shard, str) for shard in value.values()):
                return value
            raise ValueError("weight_map is not an object of names")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"not an index of shards: {error}"[:300]
            raise ModelFileRefused(path=str(file), loader=self.name, reason=reason) from error
