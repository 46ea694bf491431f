"""joblib and pickle: formats whose loading runs code of whoever wrote the file. The client asks for trust first.

joblib's uncompressed files are mapped, so that the arrays in them are shared by all processes of the host. joblib tells
compressed files by their first bytes, and so does this file.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from modelsync.client.loaders.contract import LoadContext
from modelsync.client.loaders.library import library
from modelsync.client.loaders.unpickling import load_mapped

_JOBLIB = (".joblib",)
_PICKLE = (".pkl", ".pickle")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00", b"\x04\x22\x4d\x18", b"\x78")
"""gzip, bzip2, xz, lzma, lz4, zlib: what joblib writes (joblib.compressor)."""
_BEFORE_0_10 = (b"ZF",)
"""joblib's own compression once, which only joblib.load knows."""
_EXPANSION = 4
"""How much larger a compressed model is taken to be than its file: there is no telling before it is loaded."""


class JoblibLoader:
    """``joblib.dump`` files, mapped when they are not compressed."""

    name = "joblib"
    maps = True
    runs_code = True

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(*_JOBLIB) is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        file = self._file(path, context)
        size_bytes = file.stat().st_size
        return size_bytes * _EXPANSION if _begins(file, _COMPRESSED + _BEFORE_0_10) else size_bytes

    def load(self, path: Path, context: LoadContext) -> object:
        return self.load_file(self._file(path, context), context)

    def load_file(self, file: Path, context: LoadContext) -> object:
        """Load a file that joblib wrote, whatever its name."""
        joblib = library("joblib", self.name, file)
        if _begins(file, _BEFORE_0_10):
            return joblib.load(str(file))
        if not _begins(file, _COMPRESSED):
            return load_mapped(joblib, file, context)
        with context.open(file) as opened:
            return joblib.load(opened)

    @staticmethod
    def _file(path: Path, context: LoadContext) -> Path:
        return path / (context.only_file(*_JOBLIB) or "")


class PickleLoader:
    """``.pkl`` files: plain pickles, or what ``joblib.dump`` wrote under that name, as many do."""

    name = "pickle"
    maps = False
    runs_code = True

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(*_PICKLE) is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return (path / (context.only_file(*_PICKLE) or "")).stat().st_size

    def load(self, path: Path, context: LoadContext) -> object:
        file = path / (context.only_file(*_PICKLE) or "")
        if _begins(file, _COMPRESSED) or _by_joblib(file):
            return JoblibLoader().load_file(file, context)
        with context.open(file) as opened:
            return pickle.load(opened)


def _by_joblib(file: Path) -> bool:
    """Whether arrays stand in the file as joblib writes them, which pickle alone cannot read."""
    last = b""
    with open(file, "rb") as opened:
        while part := opened.read(1 << 20):  # in parts: a search holds Python's lock
            if b"NumpyArrayWrapper" in last + part:
                return True
            last = part[-32:]
    return False


def _begins(file: Path, marks: tuple[bytes, ...]) -> bool:
    with open(file, "rb") as opened:
        return opened.read(6).startswith(marks)
