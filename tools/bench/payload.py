"""What benchmarks move: files that nothing can compress, trees of small ones, and sizes as people write them."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

MIB = 1 << 20
BLOCK = 4 << 20


def size(text: str) -> int:
    """``2GiB``, ``256MiB`` or a number of bytes."""
    match = re.fullmatch(r"(\d+)\s*(?:([KMGT])i?B?)?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    return int(match[1]) << (0, 10, 20, 30, 40)[" KMGT".index((match[2] or " ").upper())]


def write_random(path: Path, size_bytes: int) -> None:
    """A durable file that nothing can compress or recognise."""
    with path.open("wb", buffering=0) as file:
        for offset in range(0, size_bytes, BLOCK):
            file.write(os.urandom(min(BLOCK, size_bytes - offset)))
        os.fsync(file.fileno())


def write_tree(path: Path, count: int, size_bytes: int) -> None:
    """So many files in directories of a hundred, of sizes around the mean, together about so large."""
    source = random.Random(7)
    mean = size_bytes // count
    for number in range(count):
        target = path / f"part-{number // 100:03}" / f"file-{number:05}.bin"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(os.urandom(source.randrange(mean // 2, 3 * mean // 2)))


def bytes_below(path: Path) -> int:
    """Of a file, or of all files of a tree."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
