"""Zip archives from strangers: how large they become is read from their directory and checked before anything is."""

from __future__ import annotations

import zipfile
from pathlib import Path

from modelsync.core.errors import ModelFileRefused

MAX_EXPANSION = 200
"""NumPy's own compressed archives of real weights expand 1.1 to 10 times; deflate's limit is 1,032."""
MAX_MEMBERS = 100_000
_SMALL_BYTES = 64 << 20
"""Below it an archive may expand as it likes."""


def check_archive(file: Path, loader: str) -> int:
    """The size of all members in bytes. Raises ModelFileRefused: no archive, a bomb, or too many members."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ModelFileRefused(path=str(file), loader=loader, reason=f"not a zip archive: {error}") from error
    if len(members) > MAX_MEMBERS:
        raise ModelFileRefused(path=str(file), loader=loader, reason=f"more than {MAX_MEMBERS:,} members")
    total = sum(member.file_size for member in members)
    if total > max(_SMALL_BYTES, file.stat().st_size * MAX_EXPANSION):
        reason = f"{file.stat().st_size:,} bytes say that they become {total:,}: that is a decompression bomb"
        raise ModelFileRefused(path=str(file), loader=loader, reason=reason)
    return total
