"""Real daemons that pull one version from each other: what leaves the primary, and what its death costs."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from tests.integration.daemons import Daemon, Fleet, sha256_of, until

SIZE = 40 << 20
SLOWLY = "[transfer]\nrate_limit_bytes_per_s = 8000000\n"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def started(fleet: Fleet, replicas: int) -> tuple[Daemon, list[Daemon]]:
    primary = fleet.add("a")
    others = [fleet.add(name, SLOWLY) for name in "bcdefg"[:replicas]]
    until(lambda: all(len(each.status()["nodes"]) == replicas + 1 for each in fleet.daemons), "everyone seen by all")
    knows = lambda daemon: len([n for n in daemon.status()["nodes"] if n["state"] == "ok"]) == replicas + 1  # noqa: E731
    until(lambda: all(knows(each) for each in fleet.daemons), "everyone in step")
    return primary, others


def have(daemon: Daemon, digest: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{daemon.url}/v1/have/{digest}", timeout=5) as response:
        found: dict[str, Any] = json.load(response)
        return found


def held_ranges(daemon: Daemon, digest: str) -> list[tuple[int, int]]:
    found = have(daemon, digest)
    return [(0, SIZE)] if found["held"] else [tuple(each) for each in found.get("ranges", [])]


def union_bytes(daemons: list[Daemon], digest: str) -> int:
    """How many bytes these daemons hold together."""
    total = end = 0
    for start, stop in sorted(found for daemon in daemons for found in held_ranges(daemon, digest)):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def sent_bytes(daemon: Daemon) -> float:
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as response:
        return float(re.search(rb"^modelsync_sent_bytes_total (\S+)", response.read(), re.MULTILINE)[1])  # type: ignore[index]


def pulled(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.read_text().splitlines() if '"version.pulled"' in line]


def test_about_one_copy_leaves_the_primary(fleet: Fleet) -> None:
    primary, others = started(fleet, 3)
    data = os.urandom(SIZE)
    primary.put("big.bin", data)
    until(lambda: all(each.active("big") == 1 for each in others), "the version on all", 40)
    assert all(sha256_of(each.tree("big")) == sha256_of(primary.tree("big")) for each in others)  # type: ignore[arg-type]
    assert sent_bytes(primary) <= 1.5 * SIZE
    assert sum(sent_bytes(each) for each in others) >= 1.5 * SIZE
    for each in others:
        [line] = pulled(each)
        assert SIZE <= line["wire_bytes"] <= SIZE + (2 << 20)  # the chunk list, and at most one hedge
        assert line["blamed"] == []


def test_replicas_complete_from_each_other_when_the_primary_dies(fleet: Fleet) -> None:
    primary, others = started(fleet, 3)
    data = os.urandom(SIZE)
    digest = f"b3:{blake3(data).hexdigest()}"
    primary.put("big.bin", data)
    until(lambda: union_bytes(others, digest) == SIZE, "replicas that hold all of it together", 40)
    # On a slow machine one may be done by now, which takes nothing from what the others have to show.
    assert not all(have(each, digest)["held"] for each in others), "some of them are not done"
    primary.kill()
    until(lambda: all(each.active("big") == 1 for each in others), "the version on all that live", 40)
    assert all(list(sha256_of(each.tree("big"))) == ["big.bin"] for each in others)  # type: ignore[arg-type]
    for each in others:
        assert blake3((each.tree("big") / "big.bin").read_bytes()).hexdigest() == digest[3:]  # type: ignore[operator]
        assert sum(line["wire_bytes"] for line in pulled(each)) <= SIZE + (4 << 20)


def test_a_replica_that_is_killed_goes_on_from_what_it_verified(fleet: Fleet) -> None:
    primary, others = started(fleet, 2)
    data = os.urandom(SIZE)
    digest = f"b3:{blake3(data).hexdigest()}"
    primary.put("big.bin", data)
    victim = others[0]
    until(lambda: union_bytes([victim], digest) > SIZE // 3, "a third of it", 20)
    verified = union_bytes([victim], digest)
    victim.kill()
    victim.start()
    until(victim.alive, "it to answer again")
    until(lambda: all(each.active("big") == 1 for each in others), "the version on all", 40)
    [line] = pulled(victim)
    assert line["wire_bytes"] <= SIZE - verified + (2 << 20)
