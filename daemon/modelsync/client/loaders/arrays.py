"""NumPy's own formats, never with pickled objects: .npy is mapped, .npz is read member by member, several files are
one mapping that opens each when it is asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelsync.client.loaders.archive import check_archive
from modelsync.client.loaders.contract import LoadContext
from modelsync.client.loaders.library import library
from modelsync.client.loaders.shards import Shards
from modelsync.core.errors import ModelFileRefused

_ARRAYS = (".npy", ".npz")


class Arrays(Mapping[str, Any]):
    """Arrays by name, all in memory or mapped."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _load_npy(file: Path) -> Any:
    """Map an array. Raises ModelFileRefused: pickled objects, a header that lies, a file cut off."""
    numpy = library("numpy", "npy", file)
    try:
        return numpy.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError, SyntaxError, TypeError, MemoryError) as error:
        raise ModelFileRefused(path=str(file), loader="npy", reason=str(error)[:300]) from error


def _load_npz(file: Path, context: LoadContext | None = None) -> dict[str, Any]:
    """Read every array of an archive. Raises ModelFileRefused, also for a bomb: before anything is read."""
    numpy = library("numpy", "npz", file)
    check_archive(file, "npz")
    try:
        opened = context.open(file) if context is not None else contextlib.nullcontext(file)
        with opened as source, numpy.load(source, allow_pickle=False) as archive:
            for member in archive.zip.infolist():
                _require_true_header(numpy, archive.zip, member)
            return {name: archive[name] for name in archive.files}
    except (FileNotFoundError, ModelFileRefused):
        raise
    except Exception as error:  # zipfile and zlib have errors of their own for each kind of damage
        raise ModelFileRefused(path=str(file), loader="npz", reason=str(error)[:300] or repr(error)) from error


def _require_true_header(numpy: Any, archive: Any, member: Any) -> None:
    """An array's header may claim any shape, and memory for it would be asked for before a byte of it is read."""
    with archive.open(member) as opened:
        major, _ = numpy.lib.format.read_magic(opened)
        read = numpy.lib.format.read_array_header_1_0 if major == 1 else numpy.lib.format.read_array_header_2_0
        shape, _, dtype = read(opened)
        claimed = math.prod(shape) * dtype.itemsize
        if claimed != member.file_size - opened.tell() and not dtype.hasobject:
            raise ValueError(f"{member.filename} says it holds {claimed:,} bytes and does not")


class NpyLoader:
    """One ``.npy`` file: an array, mapped read-only."""

    name = "npy"
    maps = True
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return _only_array_file(context, ".npy")

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(context.files.values())

    def load(self, path: Path, context: LoadContext) -> object:
        return _load_npy(path / (context.only_file(".npy") or ""))


class NpzLoader:
    """One ``.npz`` file: arrays by name."""

    name = "npz"
    maps = False
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return _only_array_file(context, ".npz")

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return check_archive(path / (context.only_file(".npz") or ""), self.name)

    def load(self, path: Path, context: LoadContext) -> object:
        return Arrays(_load_npz(path / (context.only_file(".npz") or ""), context))


def _only_array_file(context: LoadContext, suffix: str) -> bool:
    return context.only_file(*_ARRAYS) is not None and context.only_file(suffix) is not None


class ShardedArraysLoader:
    """Several ``.npy`` or ``.npz`` files: one mapping, each file read when one of its arrays is asked for.

    An ``.npy`` file is one array under its path without the suffix; an ``.npz`` file brings its own names.
    """

    name = "arrays"
    maps = True
    runs_code = False
    fetches = True

    def matches(self, path: Path, context: LoadContext) -> bool:
        return sum(each.endswith(_ARRAYS) for each in context.files) > 1

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        for each in _array_files(context):
            if each.endswith(".npz"):
                context.need(each)
        sizes = (
            check_archive(path / each, self.name) if each.endswith(".npz") else context.files[each]
            for each in _array_files(context)
        )
        return sum(sizes)

    def load(self, path: Path, context: LoadContext) -> object:
        shards = _array_files(context)
        index = {name: shard for shard in shards for name in self._names(path, shard)}
        return Shards(path, index, {shard: context.files[shard] for shard in shards}, _open_shard, context)

    @staticmethod
    def _names(path: Path, shard: str) -> Iterable[str]:
        if shard.endswith(".npy"):
            return [shard.removesuffix(".npy")]
        numpy = library("numpy", "npz", path)
        check_archive(path / shard, "npz")
        with numpy.load(path / shard, allow_pickle=False) as archive:
            return list(archive.files)


def _array_files(context: LoadContext) -> list[str]:
    return sorted(each for each in context.files if each.endswith(_ARRAYS))


def _open_shard(file: Path, shard: str) -> Mapping[str, Any]:
    if shard.endswith(".npy"):
        return {shard.removesuffix(".npy"): _load_npy(file)}
    return _load_npz(file)
