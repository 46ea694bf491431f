"""How much the page cache can take in without pushing out what some process has mapped: a model that serves.

MemAvailable counts pages of mapped files as free to take. Where this process lives in a cgroup with a limit, its pages
count against that, too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_KIB = 1024


def room_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The room there is, in bytes; 0 where it cannot be known."""
    try:
        memory = _fields((proc / "meminfo").read_text().replace(":", " "))
        room = (memory["MemAvailable"] - memory["Mapped"]) * _KIB
        return max(0, min([room, *_limits(proc, cgroups)]))
    except (OSError, KeyError, ValueError):
        return 0


def _limits(proc: Path, cgroups: Path) -> list[int]:
    """What each cgroup above this process that has a limit leaves, for pages that nobody has mapped."""
    found: list[int] = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = (proc / "self/cgroup").read_text().splitlines()
        directory = cgroups / next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
        while directory != cgroups:
            found += _left(directory)
            directory = directory.parent
    return found


def _left(directory: Path) -> list[int]:
    limit = (directory / "memory.max").read_text().strip()
    if limit == "max":
        return []
    stat = _fields((directory / "memory.stat").read_text())
    current = int((directory / "memory.current").read_text())
    return [int(limit) - current + stat["file"] - stat["file_mapped"]]


def _fields(text: str) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if len(words) > 1}
