"""Which files are written past the page cache, in which unit, and how much room the page cache has."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelsync.core.manifest import CHUNK_BYTES
from modelsync.core.past_cache import Told, block_bytes, is_worth_it, padded
from modelsync.edges.host.page_cache import room_bytes

MIB, PAGE = 1 << 20, 4096
NOTHING = None
TABLE = {
    "an ordinary disk": ((64 * MIB, PAGE, Told(4, 512)), PAGE),
    "a kernel that says nothing": ((64 * MIB, PAGE, NOTHING), PAGE),
    "blocks of 512 bytes": ((64 * MIB, 512, Told(4, 512)), PAGE),
    "a file system of larger blocks": ((64 * MIB, 64 << 10, Told(4, 512)), 64 << 10),
    "a disk of larger blocks": ((64 * MIB, PAGE, Told(PAGE, 16 << 10)), 16 << 10),
    "blocks as large as chunks": ((64 * MIB, MIB, NOTHING), MIB),
    "exactly as large as it takes": ((4 * MIB, PAGE, NOTHING), PAGE),
    "smaller": ((4 * MIB - 1, PAGE, NOTHING), None),
    "empty": ((0, PAGE, NOTHING), None),
    "a file that takes none": ((64 * MIB, PAGE, Told(0, 0)), None),
    "an offset that is not said": ((64 * MIB, PAGE, Told(4, 0)), None),
    "memory aligned to more than a page": ((64 * MIB, PAGE, Told(2 * PAGE, 512)), None),
    "memory aligned to what is no part of a page": ((64 * MIB, PAGE, Told(24, 512)), None),
    "blocks larger than chunks": ((64 * MIB, 2 * MIB, NOTHING), None),
    "blocks that are no power of two": ((64 * MIB, 12 << 10, NOTHING), None),
    "offsets that are no power of two": ((64 * MIB, PAGE, Told(4, 520)), None),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_unit_of_direct_writes(name: str) -> None:
    (size, preferred, told), expected = TABLE[name]
    found = block_bytes(
        size_bytes=size,
        chunk_bytes=CHUNK_BYTES,
        from_bytes=4 * MIB,
        page_bytes=PAGE,
        preferred_bytes=preferred,
        told=told,
    )
    assert found == expected


def test_direct_writes_can_be_switched_off() -> None:
    whole = {"size_bytes": 1 << 40, "chunk_bytes": MIB, "page_bytes": PAGE, "preferred_bytes": PAGE}
    assert block_bytes(**whole, from_bytes=0, told=None) is None
    assert block_bytes(**whole, from_bytes=1, told=None) == PAGE


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (1, PAGE), (PAGE - 1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)]
)
def test_a_size_is_padded_to_the_next_border(size: int, expected: int) -> None:
    assert padded(size, PAGE) == expected


@pytest.mark.parametrize(
    ("version", "room", "expected"), [(10, 21, False), (10, 20, False), (10, 19, True), (1, 0, True)]
)
def test_half_of_the_room_is_left_alone(version: int, room: int, expected: bool) -> None:
    assert is_worth_it(version, room) is expected


# --- how much room there is -------------------------------------------------------------------------------------------


def made(root: Path, meminfo: str, cgroup: str = "", **limits: tuple[str, int, int, int]) -> int:
    (root / "self").mkdir()
    (root / "meminfo").write_text(meminfo)
    (root / "self/cgroup").write_text(cgroup)
    for name, (limit, current, file, mapped) in limits.items():
        directory = root / "cgroups" / name.replace("_", "/")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.max").write_text(f"{limit}\n")
        (directory / "memory.current").write_text(f"{current}\n")
        (directory / "memory.stat").write_text(f"anon 1\nfile {file}\nfile_mapped {mapped}\n")
    return room_bytes(root, root / "cgroups")


MEMINFO = "MemTotal: 9000 kB\nMemAvailable: 5000 kB\nMapped: 2000 kB\nHugePages_Total: 0\n"


def test_what_is_mapped_is_no_room(tmp_path: Path) -> None:
    assert made(tmp_path, MEMINFO) == 3000 * 1024


@pytest.mark.parametrize(("limit", "expected"), [("max", 3000 << 10), ("900000", 600_000)])
def test_a_cgroup_with_a_limit_leaves_less(tmp_path: Path, limit: str, expected: int) -> None:
    group = {"a": (limit, 600_000, 400_000, 100_000), "a_b": ("max", 0, 0, 0)}
    assert made(tmp_path, MEMINFO, "0::/a/b\n", **group) == expected


@pytest.mark.parametrize(
    "meminfo", ["", "MemAvailable: 5 kB", "MemAvailable: x\nMapped: 1", "MemAvailable: 1\nMapped: 2"]
)
def test_where_nothing_is_known_there_is_no_room(tmp_path: Path, meminfo: str) -> None:
    assert made(tmp_path, meminfo) == 0


def test_this_machine_says_how_much() -> None:
    assert room_bytes() >= 0
