"""Partitioned models while the network splits and while an owner's disk is full (FAULTS 4, 22)."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fault.power import EXT4, mounted
from tests.fault.test_disk_errors import _fill
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.terms import QUICK_LEASE
from tests.integration.test_placement_live import content, partitioned, placements, read, settled
from tests.namespaces import why_not
from tests.netfleet import NetFleet

pytestmark = pytest.mark.fault
NAMES = [f"model-{number}" for number in range(6)]
HOSTS = ("alpha", "beta", "gamma", "delta")


@pytest.fixture
def split(tmp_path: Path) -> Iterator[NetFleet]:
    with NetFleet(tmp_path, *HOSTS, sections=QUICK_LEASE + partitioned(2)) as fleet:
        yield fleet


def _answer(daemon: Daemon, name: str) -> bytes:
    """A file, or what the refusal says, which the assertion then shows."""
    try:
        return read(daemon, name)
    except urllib.error.HTTPError as error:
        return error.read()


def _replaced(primary: Daemon, here: list[Daemon]) -> bool:
    """Whether the primary's side owns all that it has."""
    names = {daemon.name for daemon in here}
    return all(set(line["owners"]) <= names for name, line in placements(primary).items() if held_on(here, name))


def held_on(daemons: list[Daemon], name: str) -> bool:
    """Whether any of these has all of a model's bytes, whatever anybody says of it."""
    size_bytes = len(content(name))
    files = (path for daemon in daemons for path in (daemon.state / "objects").rglob("*") if path.is_file())
    return any(path.stat().st_size == size_bytes and path.read_bytes() == content(name) for path in files)


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be done")
def test_both_sides_of_a_split_network_serve_what_they_have_and_agree_again(split: NetFleet) -> None:
    nodes = [split.daemons[name] for name in HOSTS]
    here, there = nodes[:2], nodes[2:]
    for name in NAMES:
        nodes[0].put(f"{name}.bin", content(name))
    until(lambda: settled(nodes[0], 2, NAMES), "all to be placed")
    before = {name: set(line["owners"]) for name, line in placements(nodes[0]).items()}
    for one in ("alpha", "beta", "redis"):
        for other in ("gamma", "delta"):
            split.net.cut(one, other)
    ends_s = time.monotonic() + 30
    reads = 0
    while reads < 100 or not _replaced(nodes[0], here):
        assert time.monotonic() < ends_s, "owners that are not reached are replaced"
        for side in (here, there):
            for name in NAMES:
                if held_on(side, name):
                    for daemon in side:
                        assert _answer(daemon, name) == content(name), f"{name} from {daemon.name}, beside its bytes"
                        reads += 1
        time.sleep(0.5)
    owned = {name: set(line["owners"]) for name, line in placements(nodes[0]).items()}
    for name, owners in owned.items():
        if held_on(here, name):
            assert owners <= {"alpha", "beta"}, "the primary's side has replaced owners that it does not reach"
        else:
            assert owners == before[name], "and not those without whom nothing could be copied"
    split.net.heal()
    until(lambda: all(split.in_step(daemon) for daemon in nodes), "a fleet in step", 40)
    until(lambda: settled(nodes[0], 2, NAMES), "two copies of all again", 40)
    for daemon in nodes:
        assert all(read(daemon, name) == content(name) for name in NAMES)


@pytest.mark.usefixtures("can_mount")
def test_an_owner_whose_disk_is_full_keeps_what_it_has_and_is_asked_again_when_there_is_room(directory: Path) -> None:
    with mounted(directory / "disk.img", new=True, kind=replace(EXT4, image_bytes=160 << 20)) as disk:
        fleet = Fleet(directory / "fleet")
        try:
            (directory / "fleet" / "three").symlink_to(disk / "three")
            (disk / "three").mkdir()
            nodes = [fleet.add(name, partitioned(3)) for name in ("one", "two", "three")]
            until(lambda: len(nodes[0].status()["nodes"]) == 3, "all to report")
            nodes[0].put("model-0.bin", content("model-0"))
            until(lambda: settled(nodes[0], 3, NAMES[:1]), "the first on all three")
            until(lambda: nodes[2].active("model-0") == 1, "the first to run where the disk will be full")
            _fill(disk / "hog", 0)
            nodes[0].put("model-1.bin", content("model-1"))
            until(lambda: "no node to give it to" in _trouble(nodes[0], "model-1"), "the full one to be left out", 40)
            assert set(placements(nodes[0])["model-1"]["owners"]) == {"one", "two"}
            assert set(placements(nodes[0])["model-0"]["owners"]) == {"one", "two", "three"}
            assert nodes[2].active("model-0") == 1, "what it has, it serves"
            assert read(nodes[0], "model-1") == content("model-1")
            with pytest.raises(urllib.error.HTTPError) as refused:
                read(nodes[2], "model-1")
            assert refused.value.code == 507, "it cannot be read through a full disk, and that is said"
            (disk / "hog").unlink()
            until(lambda: settled(nodes[0], 3, NAMES[:2]), "both on all three once there is room", 60)
        finally:
            fleet.close()


def _trouble(daemon: Daemon, name: str) -> str:
    return str(placements(daemon).get(name, {}).get("trouble", ""))
