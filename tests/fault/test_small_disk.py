"""Replicas with little room (FAULTS 4): what a killed pull has taken is not asked for twice, and pulls that begin at
one moment do not all count on the same free space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fault.power import EXT4, mounted
from tests.integration.daemons import Daemon, Fleet, until

from modelsync.edges.disk.store import RESERVE_BYTES

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("can_mount")]
MIB = 1 << 20
DISK = replace(EXT4, image_bytes=160 * MIB)
SLOWLY = "[transfer]\nrate_limit_bytes_per_s = 8000000\n"


@pytest.fixture
def fleet(directory: Path) -> Iterator[Fleet]:
    """A primary, and room for a replica ``beta`` on a small disk."""
    with mounted(directory / "disk.img", new=True, kind=DISK) as disk:
        fleet = Fleet(directory / "fleet")
        try:
            (disk / "beta").mkdir()
            fleet.root.mkdir(exist_ok=True)
            (fleet.root / "beta").symlink_to(disk / "beta")
            fleet.add("alpha")
            yield fleet
        finally:
            fleet.close()


def free_bytes(daemon: Daemon) -> int:
    return shutil.disk_usage(daemon.state).free


def test_a_pull_that_was_killed_needs_its_room_once(fleet: Fleet) -> None:
    alpha = fleet.daemons[0]
    alpha.put("large.bin", os.urandom(60 * MIB))
    until(lambda: alpha.active("large") == 1, "it to be published")
    beta = fleet.add("beta", SLOWLY)
    until(lambda: list((beta.state / "partial").glob("*")), "the pull to begin")
    until(lambda: free_bytes(beta) < 60 * MIB + RESERVE_BYTES, "the file to have its length")
    beta.kill()
    beta.config.write_text(beta.base)
    beta.start()
    until(lambda: beta.alive() and beta.active("large") == 1, "the pull to go on", 30)


def test_pulls_at_one_moment_leave_the_reserve(fleet: Fleet) -> None:
    alpha = fleet.daemons[0]
    for name in ("one", "two", "three"):
        alpha.put(f"{name}.bin", os.urandom(40 * MIB))
        until(lambda n=name: alpha.active(n) == 1, f"{name} to be published")
    beta = fleet.add("beta")

    def ended() -> bool:
        found = [node["models"].values() for node in alpha.status()["nodes"] if node["id"] == "beta"]
        lines = [line for models in found for line in models]
        return len(lines) == 3 and all(line["active"] == 1 or "full" in (line["error"] or "") for line in lines)

    until(ended, "each to be there or refused", 30)
    assert [beta.active(name) for name in ("one", "two", "three")].count(1) in (1, 2)
    assert free_bytes(beta) > RESERVE_BYTES - 2 * MIB  # its own small files need some of it
