"""The watched models directory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from modelsync.core.ids import ModelName, Version
from modelsync.core.sources.events import SourceEvent
from modelsync.core.sources.layout import Entry, Kind, SourceFile
from modelsync.core.sources.settle import Writers


@dataclass(frozen=True, slots=True)
class ReadySource:
    """A complete version in the models directory, ready to be ingested."""

    model: ModelName
    version: Version | None
    """Given by a numbered layout; None: the next one."""
    root: Path
    """The directory that ``files`` are relative to."""
    files: tuple[SourceFile, ...]
    arrived: str
    """``event``: it came while the directory was watched; ``scan``: it lay there when the watch began."""
    key: str = ""
    """Its path relative to the models directory (``fraud``, ``fraud/12``, ``fraud.joblib``): what its signature is
    remembered by."""


class Sources(Protocol):
    """The watched models directory."""

    def __aiter__(self) -> AsyncIterator[ReadySource]: ...

    def refusals(self) -> Mapping[str, str]:
        """Path to reason, for everything that lies there and is not published; bounded."""

    def retry(self, source: ReadySource) -> None:
        """Yield a source again once it is complete again: it could not be published as it was."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Listing:
    """What one scan saw. ``identity`` is None, and everything else empty, where there is no models directory."""

    identity: tuple[int, int] | None = None
    """Device and inode of the models directory: another pair is another directory."""
    names: Mapping[str, Kind] = field(default_factory=dict)
    """Every name in the directory itself, and what kind of thing it is: a file, where it is not known better."""
    top: tuple[Entry, ...] = ()
    """Those of them that were asked for."""
    trees: Mapping[str, Sequence[Entry]] = field(default_factory=dict)
    """What lies below the directories among these, by their names."""
    capacity_bytes: int = 0
    """The size of the file system."""


class Scanner(Protocol):
    """Reads the models directory. Its methods block; each raises LocalFault where the disk does not answer."""

    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the directory that is there now, or None."""

    def scan(self, entries: AbstractSet[str] | None) -> Listing:
        """List the directory, and what is below these entries; None: below all."""

    def writers(self, files: Sequence[Entry]) -> Writers:
        """Ask the kernel who has these files open for writing, and whether they still are what the scan saw."""


class Watch(Protocol):
    """Reports what happens in the models directory, from threads of its own. Its methods block."""

    def start(self, heard: Callable[[SourceEvent], None]) -> None:
        """Watch the directory that is there now. Raises WatchUnavailable; nothing is then watched."""

    def stop(self) -> None:
        """Stop; nothing is reported afterwards. Harmless when it was not started."""

    def alive(self) -> bool:
        """Whether events can still arrive."""
