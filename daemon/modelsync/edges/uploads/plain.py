"""An upload of one file whose chunks nobody knows beforehand: it grows from its beginning, as curl sends it.

This file alone decides what such an upload is worth after a crash: what a process that died had written is in the page
cache and counts; what lay there when the machine went down may not have reached the disk, and does not. Everything
blocks and raises DiskFull, DiskFailed beside what its docstring says.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from modelsync.core.errors import UploadIncomplete, WrongOffset
from modelsync.core.ids import ModelName
from modelsync.core.manifest import published_path
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.uploads.declared import DeclaredDigest
from modelsync.ports import Progress

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_WRITEBACK_BYTES = 32 << 20


class PlainUpload:
    """One file under way. ``said``: the query parameters that it was begun with, for the publish at its end."""

    def __init__(
        self, store: IngestingStore, directory: Path, model: ModelName, said: dict[str, str], size_bytes: int | None
    ) -> None:
        self._store = store
        self.model = model
        self.said = said
        self.size_bytes = size_bytes
        self.filename = published_path(said.get("filename") or str(model))
        self.root = directory / "files"
        self._path = self.root / self.filename
        self._boot = directory / "boot"
        self._digest_text = said.get("digest")
        if self._digest_text is not None:
            DeclaredDigest(self._digest_text)
        self.progress = Progress(total_bytes=size_bytes or 0)

    def open(self) -> None:
        """Find what is there, or make room. Raises DiskFull: it would not fit, twice, as it must for a moment."""
        with local_faults(self._path, "open an upload"):
            boot = _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""
            if not self._boot.exists() or self._boot.read_bytes() != boot:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
                durable.replace_file(self._boot, boot)
            if not self._path.exists():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                os.close(durable.create_file(self._path, 0o644))
            self.progress.done_bytes = self.offset_bytes
        if self.size_bytes is not None:
            self._store.require_space(2 * self.size_bytes - self.offset_bytes)

    def close(self) -> None:
        """Nothing is held open between two requests."""

    @property
    def offset_bytes(self) -> int:
        """How much is there; an upload goes on from here."""
        with local_faults(self._path, "stat"):
            return self._path.stat().st_size

    def require_offset(self, offset_bytes: int) -> None:
        """Raises WrongOffset."""
        if offset_bytes != self.offset_bytes:
            raise WrongOffset(offset_bytes=self.offset_bytes, offered_bytes=offset_bytes)

    def append(self, data: bytes) -> None:
        """The next bytes. Raises WrongOffset for more than was declared, before it writes any of them."""
        offset = self.offset_bytes
        beyond = offset + len(data)
        if self.size_bytes is not None and beyond > self.size_bytes:
            raise WrongOffset(offset_bytes=self.size_bytes, offered_bytes=beyond)
        self._store.require_space(len(data))
        with local_faults(self._path, "write"):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                durable.write_all(descriptor, data)
                if offset // _WRITEBACK_BYTES != beyond // _WRITEBACK_BYTES:
                    begin = max(0, beyond - 2 * _WRITEBACK_BYTES)
                    durable.start_writeback(descriptor, begin, beyond - begin)
            finally:
                os.close(descriptor)
        self.progress.add(done_bytes=len(data), wire_bytes=len(data))

    def complete(self) -> None:
        """Whether it is what was declared. Raises UploadIncomplete; DigestMismatch: nothing of it can be kept."""
        if self.size_bytes is not None and self.offset_bytes != self.size_bytes:
            raise UploadIncomplete(missing_bytes=self.size_bytes - self.offset_bytes)
        if self._digest_text is not None:
            declared = DeclaredDigest(self._digest_text)
            declared.feed_file(self._path)
            declared.require(self.filename)
