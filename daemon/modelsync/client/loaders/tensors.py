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


_DTYPES = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4"},
    **{"U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8"},
}
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""Which NumPy does not have by itself."""


class Tensors(Mapping[str, Any]):
    """The tensors of a file, as read-only NumPy arrays over the mapped file. The library would copy each."""

    def __init__(self, file: Path, mapped: Any, header: Mapping[str, Any], data_offset: int) -> None:
        self._file, self._mapped, self._data_offset = file, mapped, data_offset
        self._header = {name: entry for name, entry in header.items() if name != "__metadata__"}
        self.metadata: Mapping[str, str] = header.get("__metadata__", {})

    def __getitem__(self, name: str) -> Any:
        entry = self._header[name]
        begin, end = (self._data_offset + offset for offset in entry["data_offsets"])
        return self._mapped[begin:end].view(self._dtype(entry["dtype"])).reshape(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def _dtype(self, name: str) -> Any:
        if name in _DTYPES:
            return _DTYPES[name]
        if name in _ML_DTYPES:
            return getattr(library("ml_dtypes", "safetensors", self._file), _ML_DTYPES[name])
        raise ModelFileRefused(path=str(self._file), loader="safetensors", reason=f"tensors of type {name}")


def _open_tensors(file: Path, shard: str = "") -> Tensors:
    """Map a file. The library checks the header first: sizes, offsets, shapes, no gaps, no overlaps."""
    safetensors = library("safetensors", "safetensors", file)
    numpy = library("numpy", "safetensors", file)
    try:
        with safetensors.safe_open(str(file), framework="numpy"):
            pass
    except FileNotFoundError:
        raise
    except Exception as error:  # SafetensorError, and whatever the header's parser says
        shown = shard or str(file)
        raise ModelFileRefused(path=shown, loader="safetensors", reason=str(error)[:300]) from error
    mapped = numpy.memmap(file, mode="r", dtype="u1")
    header_bytes = int.from_bytes(mapped[:8].tobytes(), "little")
    return Tensors(file, mapped, json.loads(mapped[8 : 8 + header_bytes].tobytes()), 8 + header_bytes)


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
    fetches = True

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(_INDEX) is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(size for file, size in context.files.items() if file.endswith(_SUFFIX))

    def load(self, path: Path, context: LoadContext) -> object:
        index_path = context.only_file(_INDEX) or ""
        base = index_path.rpartition("/")[0]
        context.need(index_path)
        index = {name: f"{base}/{shard}".lstrip("/") for name, shard in self._index(path / index_path).items()}
        absent = sorted(set(index.values()) - context.files.keys())
        if absent:
            reason = f"the index names {absent[0]!r}, which is not among the version's files"
            raise ModelFileRefused(path=str(path / index_path), loader=self.name, reason=reason)
        sizes = {shard: context.files[shard] for shard in sorted(set(index.values()))}
        return Shards(path, index, sizes, _open_tensors, context)

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
