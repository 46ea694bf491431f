"""An upload's bytes on their way into a staging directory: synchronous, for a thread, checked before each is written.

This file alone decides which files an upload may create. It never fsyncs: what lies here is of no worth until the
store has taken it in, and the whole directory is removed if that does not happen.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from modelsync.core.errors import DiskFull, MalformedMessage, NotAModel
from modelsync.core.manifest import MAX_FILES, published_path
from modelsync.edges.disk.durable import create_file, local_faults, write_all
from modelsync.edges.http.multipart import Event, MultipartParser, PartData, PartEnded, PartStarted
from modelsync.edges.http.receiving import FIELDS
from modelsync.edges.uploads.declared import DeclaredDigest

MAX_FIELD_BYTES = 1 << 20
"""Metadata of a large pipeline's get_params() is some tens of kilobytes."""


@dataclass
class Staging:
    """One upload's directory. Every method blocks and raises DiskFull, DiskFailed, or what its docstring adds."""

    root: Path
    reserve_bytes: int
    """Free space that an upload leaves alone, so that the daemon's own small files can still be written."""
    _directories: set[str] = field(default_factory=set)
    _files: int = 0

    def require_space(self, size_bytes: int) -> None:
        """Raises DiskFull unless that many bytes fit, and the reserve beside them."""
        with local_faults(self.root, "statvfs"):
            free_bytes = shutil.disk_usage(self.root).free
        if size_bytes + self.reserve_bytes > free_bytes:
            raise DiskFull(path=str(self.root), needed_bytes=size_bytes, free_bytes=free_bytes)

    def create(self, path: str) -> int:
        """Open a new file under its published path.

        Raises:
            BadName: the path could leave the directory, or could not be published.
            MalformedMessage: it stands twice, lies below a file, or there are too many.
        """
        self._files += 1
        if self._files > MAX_FILES or len(self._directories) > MAX_FILES:
            raise MalformedMessage(what="upload", reason=f"more than {MAX_FILES} files or directories")
        target = self.root / published_path(path)
        with local_faults(target, "create"):
            try:
                self._make_parents(path)
                return create_file(target, 0o644)
            except (FileExistsError, NotADirectoryError) as error:
                reason = f"{path!r} stands twice, or is a file and a directory"
                raise MalformedMessage(what="upload", reason=reason) from error

    def _make_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._directories:
            self._make_parents(parent)
            os.mkdir(self.root / parent, 0o755)
            self._directories.add(parent)

    def remove(self) -> None:
        """Remove what was not consumed. A remnant is swept when the daemon starts again."""
        shutil.rmtree(self.root, ignore_errors=True)


class FileSink:
    """A request body that is one file, and what its sender says that its digest is, if anything."""

    def __init__(self, staging: Staging, path: str, digest: str | None = None) -> None:
        self._staging = staging
        self._path = path
        self._declared = DeclaredDigest(digest) if digest is not None else None
        self._descriptor = staging.create(path)
        self.fields: dict[str, bytes] = {}

    def feed(self, block: bytes) -> None:
        """Write a block. Raises DiskFull, DiskFailed."""
        self._staging.require_space(len(block))
        if self._declared is not None:
            self._declared.feed(block)
        with local_faults(self._staging.root, "write"):
            write_all(self._descriptor, block)

    def finish(self) -> None:
        """The body ended as announced. Raises DigestMismatch."""
        if self._declared is not None:
            self._declared.require(self._path)

    def close(self) -> None:
        """Let go of the descriptor; what is on disk stays until the staging directory goes."""
        os.close(self._descriptor)


class MultipartSink:
    """A request body of several files and of fields."""

    def __init__(self, staging: Staging, boundary: bytes) -> None:
        self._staging = staging
        self._parser = MultipartParser(boundary)
        self._descriptor: int | None = None
        self._field = ""
        self._files = 0
        self.fields: dict[str, bytes] = {}

    def feed(self, block: bytes) -> None:
        """Parse and write a block. Raises MalformedMessage, BadName, DiskFull, DiskFailed."""
        self._staging.require_space(len(block))
        for event in self._parser.feed(block):
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case PartStarted(name, None):
                self._start_field(name)
            case PartStarted(_, filename):
                self._descriptor = self._staging.create(filename or "")
                self._files += 1
            case PartData(data) if self._descriptor is not None:
                with local_faults(self._staging.root, "write"):
                    write_all(self._descriptor, data)
            case PartData(data):
                self._grow_field(data)
            case PartEnded():
                self.close()

    def _start_field(self, name: str) -> None:
        if name not in FIELDS or name in self.fields:
            raise MalformedMessage(what="upload", reason=f"field {name[:80]!r} is unknown or stands twice: {FIELDS}")
        self._field = name
        self.fields[name] = b""

    def _grow_field(self, data: bytes) -> None:
        self.fields[self._field] += data
        if len(self.fields[self._field]) > MAX_FIELD_BYTES:
            raise MalformedMessage(what="upload", reason=f"field {self._field} is above {MAX_FIELD_BYTES} bytes")

    def finish(self) -> None:
        """Raises MalformedMessage if the closing boundary did not come, NotAModel if no file came."""
        self._parser.finish()
        if not self._files:
            raise NotAModel(path="upload", reason="it holds no file")

    def close(self) -> None:
        """Let go of an open descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
