"""The parts of a model that is too big for one host: which of its files lie together. DESIGN section 8.

A part is a group of files that is placed as a whole model is. This file alone decides which file belongs to which part,
from the manifest and the number of parts alone, so that every node comes to the same answer without asking. It must not
know where parts lie.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from modelsync.core.ids import Digest, Version
from modelsync.core.manifest import FileEntry

MAX_PARTS = 64
"""Each has owners in the model's record, which every node reads."""


def number_of(files: Iterable[FileEntry], split_bytes: int) -> int:
    """How many parts a version shall lie in; 1 where it is not to be split.

    Args:
        split_bytes: what a model may take before it is split; 0: any size. A file is never split.
    """
    sizes = {entry.digest: entry.size_bytes for entry in files}
    total = sum(sizes.values())
    return max(1, min(-(-total // split_bytes), len(sizes), MAX_PARTS)) if split_bytes else 1


def split(files: Iterable[FileEntry], count: int) -> tuple[frozenset[Digest], ...]:
    """The objects of each part, even by bytes: the largest file first, each to the part that has least.

    Files of the same sizes under the same paths fall into the same parts: a retrained model's stay where they are.
    """
    sizes: dict[Digest, tuple[int, str]] = {}
    for entry in files:
        sizes.setdefault(entry.digest, (-entry.size_bytes, entry.path))
    groups: list[set[Digest]] = [set() for _ in range(count)]
    loads = [(0, index) for index in range(count)]
    for digest in sorted(sizes, key=lambda digest: sizes[digest]):
        load, index = heapq.heappop(loads)
        groups[index].add(digest)
        heapq.heappush(loads, (load - sizes[digest][0], index))
    return tuple(map(frozenset, groups))


def sizes_of(files: Iterable[FileEntry], count: int) -> tuple[int, ...]:
    """Bytes of each part."""
    listed = list(files)
    size = {entry.digest: entry.size_bytes for entry in listed}
    return tuple(sum(size[digest] for digest in part) for part in split(listed, count))


# --- what a node says of them ---------------------------------------------------------------------------------------


def told(count: int, held: Mapping[Version, Iterable[int]]) -> dict[str, Any]:
    """The field ``parts`` of a model's line in a node's report; empty where there is nothing to say.

    Args:
        held: by version that is not held as a whole, the parts that are.
    """
    shown = {str(number): sorted(parts) for number, parts in sorted(held.items()) if parts}
    return {"of": count, "held": shown} if shown else {}


def well_told(value: Any) -> bool:
    """Whether a stranger's field ``parts`` is one that ``told`` could have written."""
    if not isinstance(value, dict) or value.keys() != {"of", "held"} or not isinstance(value["held"], dict):
        return False
    count = value["of"]
    if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= MAX_PARTS:
        return False
    return all(isinstance(held, list) and set(map(type, held)) <= {int} for held in value["held"].values())


def holds(line: Mapping[str, Any], number: int, part: int | None, count: int) -> bool:
    """Whether a node's line says that it holds a part of a version; None: any of it."""
    if number in line.get("held", ()):
        return True
    said = line.get("parts")
    if said is None or said["of"] != count:
        return False
    held = said["held"].get(str(number), ())
    return bool(held) if part is None else part in held
