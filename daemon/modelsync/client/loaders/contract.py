"""What a loader is: one format, what it maps and what it runs. Applications hand their own to ``Client(loaders=…)``."""

from __future__ import annotations

import ctypes
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

_BUFFER_BYTES = 32 << 10
"""What compiled unpicklers build from it takes less than a millisecond, and they hold Python's lock meanwhile."""
_READ_BYTES = 1 << 20
"""Of an array at a time."""
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from the thread that loads."""


@dataclass(slots=True)
class LoadContext:
    """One load: what is known of the version, and where its time goes."""

    name: str
    version: int
    """0 for a directory that no daemon manages."""
    metadata: Mapping[str, Any]
    files: Mapping[str, int]
    """Relative path to size in bytes: all that there is, verified."""
    progress: Progress = lambda _done, _total: None
    trusted: bool = False
    """Whether the client trusts this model's publisher to run code here."""
    fetch: Callable[[str], None] | None = None
    """Of a version that lies on other hosts: has one of ``files`` below the version's path, verified. Loaders that know
    it (``fetches``) ask for what they need when they need it; for others everything is there before they begin."""
    stand_back: Callable[[], None] = lambda: None
    """To be called between two pieces of work: it may sleep, so that requests for other models go first."""
    read_s: float = 0.0
    """Spent in reading files, as far as the loader's library lets that be told from the rest."""

    def need(self, path: str) -> None:
        """Have one of ``files`` where it can be opened. Raises RemoteFault, DigestMismatch, OSError."""
        if self.fetch is not None:
            self.fetch(path)

    def only_file(self, *suffixes: str) -> str | None:
        """The path of the one file with such a suffix; None when there is none, or more than one."""
        found = [path for path in self.files if path.lower().endswith(suffixes)]
        return found[0] if len(found) == 1 else None

    def open(self, path: Path) -> BinaryIO:
        """Open a file for reading, its time counted as ``read_s``."""
        return cast(BinaryIO, io.BufferedReader(_Timed(path, self), buffer_size=_BUFFER_BYTES))

    def read(self, path: Path) -> bytearray:
        """A whole file, its time counted as ``read_s``, while other threads run: ``bytearray(size)`` would write zeros
        first, and growing by parts would copy, both under Python's lock.
        """
        data = bytearray()
        ctypes.pythonapi.PyByteArray_Resize(ctypes.py_object(data), ctypes.c_ssize_t(path.stat().st_size))
        with self.open(path) as opened:
            del data[cast(io.BufferedReader, opened).readinto(data) :]
        return data


class _Timed(io.FileIO):
    """Counts the seconds spent in reads, and stands back after each: what was read is small enough to be worked off."""

    def __init__(self, path: Path, context: LoadContext) -> None:
        super().__init__(path)
        self._context = context
        self._total = sum(context.files.values())
        self._done = 0

    def readinto(self, buffer: Any, /) -> int | None:
        started_s = time.perf_counter()
        size = super().readinto(memoryview(buffer)[:_READ_BYTES])
        self._context.read_s += time.perf_counter() - started_s
        self._done += size or 0
        self._context.progress(min(self._done, self._total), self._total)
        self._context.stand_back()
        return size


class Loader(Protocol):
    """Loads one format. It is called from worker threads, several at once."""

    @property
    def name(self) -> str:
        """As it stands in errors and statistics."""

    @property
    def maps(self) -> bool:
        """Whether what it loads is shared between processes by mapped files."""

    @property
    def runs_code(self) -> bool:
        """Whether loading may run code that the files bring along: then the model must be trusted by the client."""

    def matches(self, path: Path, context: LoadContext) -> bool:
        """Whether a version, a directory, is of this format. Decided by names and metadata; nothing is opened."""

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        """How much memory it will take, asked before it is loaded. Raises what ``load`` raises."""

    def load(self, path: Path, context: LoadContext) -> object:
        """The model.

        Raises: FileNotFoundError: the version was removed meanwhile, the client looks again; LoaderUnavailable;
            ModelFileRefused. Anything else is taken for a damaged file.
        """
