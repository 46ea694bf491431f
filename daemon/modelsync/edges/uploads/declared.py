"""The digest that a sender declares of a file, as ``b3sum`` or ``sha256sum`` print it, and the check against it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from blake3 import blake3

from modelsync.core.errors import BadName, DigestMismatch
from modelsync.edges.disk.durable import local_faults

_DECLARED = re.compile(r"(b3|sha256):([0-9a-f]{64})")
_BLOCK_BYTES = 1 << 20


class DeclaredDigest:
    """Feed it the file, then ``require``. Raises, on construction: BadName."""

    def __init__(self, text: str) -> None:
        match = _DECLARED.fullmatch(text)
        if match is None:
            raise BadName(kind="digest", value=repr(text)[:80], rule="b3: or sha256: and 64 hexadecimal digits")
        self._text = text
        self._hasher: Any = blake3() if match[1] == "b3" else hashlib.sha256()

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        self._hasher.update(data)

    def feed_file(self, path: Path) -> None:
        """All of a file. Blocks. Raises DiskFailed."""
        buffer = bytearray(_BLOCK_BYTES)
        view = memoryview(buffer)
        with local_faults(path, "read"), open(path, "rb", buffering=0) as file:
            while size := file.readinto(buffer):
                self.feed(view[:size])

    def require(self, path: str) -> None:
        """Raises DigestMismatch unless what was fed is what was declared."""
        actual = f"{self._text.partition(':')[0]}:{self._hasher.hexdigest()}"
        if actual != self._text:
            raise DigestMismatch(path=path, chunk=None, expected=self._text, actual=actual, source="upload")
