"""Reads a pickle, or a joblib file, to its end without running anything that it names.

Every class and function that it refers to is replaced by one that does nothing; so the stream is followed exactly as
pickle would, and a truncated or damaged one is found. joblib writes arrays raw between the opcodes: their sizes follow
from the wrapper that stands before them (joblib 1.x, numpy_pickle.py's format), and they are skipped, not read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import pickle
import zlib
from typing import IO, Any, ClassVar, cast

from modelsync.edges.gates.checks.formats import Unfit, itemsize_of, read_exactly

_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open), (b"]\x00", lzma.open))
_LZ4 = b"\x04\x22\x4d\x18"
_DAMAGED = (
    pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, IndexError, KeyError, AttributeError,
    OverflowError, AssertionError, zlib.error, lzma.LZMAError, UnicodeError, MemoryError, RecursionError,
)  # fmt: skip


class Inert:
    """Stands for everything that a pickle names: it can be called, built and filled, and nothing happens."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any, **named: Any) -> Inert:
        return Inert(*arguments)

    def __setitem__(self, key: Any, value: Any) -> None:
        """A subclass of dict."""

    def append(self, item: Any) -> None:
        """A subclass of list."""

    def extend(self, items: Any) -> None:
        """A subclass of list."""

    def add(self, item: Any) -> None:
        """A subclass of set."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Wrapper(Inert):
    """joblib's NumpyArrayWrapper: the array's bytes follow its BUILD."""


_PURE: Any = vars(pickle)["_Unpickler"]
"""The one written in Python, whose opcodes can be extended; typeshed knows it under another name."""


class _Follower(_PURE):  # type: ignore[misc]
    """The standard library's own reader of pickles, with nothing to call and joblib's arrays skipped."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PURE.dispatch)

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.raw = file

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Wrapper if name == "NumpyArrayWrapper" else Inert,), {})

    def persistent_load(self, identity: Any) -> Any:
        return Inert(identity)

    def get_extension(self, code: int) -> None:
        self.append(Inert(code))

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _Wrapper):
            _skip_array(self.raw, self.stack[-1].state)

    dispatch[pickle.BUILD[0]] = load_build


def scan(file: IO[bytes], size_bytes: int) -> None:
    """Follow one file to its end. Raises Unfit."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(_LZ4):
        return  # the standard library does not unpack it; the load check does
    try:
        stream = _opened(file, start)
        _Follower(stream).load()
        while stream.read(65536):  # to the end, where a compressed file's checksum stands
            pass
    except _DAMAGED as error:
        at = f"at byte {file.tell()} of {size_bytes}"
        raise Unfit(f"the pickle is damaged or cut short {at}: {type(error).__name__}: {str(error)[:120]}") from error


def _opened(file: IO[bytes], start: bytes) -> IO[bytes]:
    for magic, opener in _OPENERS:
        if start.startswith(magic):
            return cast("IO[bytes]", opener(file))
    return cast("IO[bytes]", _ZlibReader(file)) if start[:1] == b"\x78" else file


class _ZlibReader:
    """joblib's own ``.z``: a bare zlib stream."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unpack = zlib.decompressobj()
        self._ready = b""

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise ValueError("a pickle is read in pieces of known size")
        parts, missing = [], size
        while missing:
            if not self._ready and not self._fill():
                if not self._unpack.eof:
                    raise EOFError("the compressed stream ends too early")
                break
            parts.append(self._ready[:missing])
            self._ready = self._ready[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def _fill(self) -> bool:
        while not self._ready and not self._unpack.eof:
            data = self._unpack.unconsumed_tail or self._file.read(65536)
            if not data:
                return False
            self._ready = self._unpack.decompress(data, 1 << 20)
        return bool(self._ready)

    def readline(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n") and (byte := self.read(1)):
            line += byte
        return bytes(line)


def _skip_array(file: IO[bytes], state: Any) -> None:
    dtype, shape = state["dtype"], state["shape"]
    code = dtype.arguments[0] if dtype.arguments else None
    itemsize = itemsize_of(code) if isinstance(code, str) else None
    if isinstance(code, str) and code.startswith("O"):
        _Follower(file).load()  # an array of objects is a pickle of its own
        return
    if itemsize is None:
        raise Unfit(f"an array's type, {code!r}, is not understood")
    if state.get("numpy_array_alignment_bytes") is not None:
        _skip(file, read_exactly(file, 1)[0])
    _skip(file, itemsize * math.prod(shape))


def _skip(file: IO[bytes], size_bytes: int) -> None:
    """Go on by that many bytes, which have to be there. Raises EOFError."""
    try:
        here = file.tell()
        end = file.seek(0, os.SEEK_END)
        if here + size_bytes > end:
            raise EOFError("an array goes beyond the end")
        file.seek(here + size_bytes)
    except (AttributeError, OSError):
        while size_bytes:
            size_bytes -= len(read_exactly(file, min(size_bytes, 1 << 20)))
