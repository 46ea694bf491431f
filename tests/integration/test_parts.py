"""Models too big for one host, on real daemons: their files lie in parts, and every host answers for the whole."""

from __future__ import annotations

import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import Daemon, Fleet, until

SIZES = {f"shard-{number}.bin": 400_000 + 350_000 * number for number in range(6)} | {"index.json": 2000}
"""7.7 MB; the largest take part in swarms of chunks, the smallest come in one."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def partitioned(copies: int, split_bytes: int, more: str = "") -> str:
    return (
        f'[storage]\nmode = "partitioned"\ncopies = {copies}\nsplit_bytes = {split_bytes}\nreplace_after_s = 1\n{more}'
    )


def fleet_of(fleet: Fleet, count: int, sections: str) -> list[Daemon]:
    made = [fleet.add(name, sections) for name in ("one", "two", "three", "four")[:count]]
    until(lambda: len(made[0].status()["nodes"]) == count, "all to report")
    return made


def content(seed: int) -> dict[str, bytes]:
    dice = random.Random(seed)
    return {path: dice.randbytes(size) for path, size in SIZES.items()}


def publish(daemon: Daemon, name: str, files: dict[str, bytes]) -> None:
    beside = daemon.root / "beside-model"
    beside.mkdir()
    for path, data in files.items():
        (beside / path).write_bytes(data)
    target = daemon.models / name
    if target.exists():
        target.rename(daemon.root / f"old-{os.urandom(4).hex()}")
    beside.rename(target)


def placed(daemon: Daemon, name: str) -> dict[str, Any]:
    line: dict[str, Any] = daemon.status().get("placement", {}).get(name, {})
    return line


def settled(daemon: Daemon, name: str, parts: int) -> list[set[str]]:
    """The owners of each part, once all of them hold it."""

    def look() -> list[set[str]]:
        line = placed(daemon, name)
        owners = [set(part["owners"]) for part in line.get("parts", ())]
        return owners if len(owners) == parts and "trouble" not in line else []

    found: list[set[str]] = until(look, f"{parts} parts on their owners", 40)
    return found


def read(daemon: Daemon, name: str, number: int, path: str) -> bytes:
    url = f"{daemon.url}/v1/models/{name}/versions/{number}/files/{path}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        data: bytes = answer.read()
        return data


def whole(daemon: Daemon, name: str, number: int) -> dict[str, bytes]:
    return {path: read(daemon, name, number, path) for path in SIZES}


def post(daemon: Daemon, path: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{daemon.url}{path}", method="POST"), timeout=30) as answer:
        assert answer.status == 200


def objects(daemon: Daemon) -> int:
    return sum(path.stat().st_size for path in (daemon.state / "objects").rglob("*") if path.is_file())


def test_a_big_model_lies_in_parts_and_every_host_answers_for_the_whole(fleet: Fleet) -> None:
    nodes = fleet_of(fleet, 3, partitioned(1, 3_000_000, "cache_bytes = 1\n"))
    files = content(1)
    publish(nodes[0], "big", files)
    owners = settled(nodes[0], "big", 3)
    assert all(len(part) == 1 for part in owners) and len(set().union(*owners)) > 1
    for node in nodes:
        assert whole(node, "big", 1) == files
        assert node.tree("big") is None, "no host has all of it, so none has a `current`"
    for node in nodes:
        until(lambda node=node: _collected(node) and objects(node) < sum(SIZES.values()), "what is not owned to go")  # type: ignore[misc]
    assert sum(map(objects, nodes)) == sum(SIZES.values()), "one copy of everything is left, and no more"
    for node in nodes:
        assert whole(node, "big", 1) == files


def _collected(node: Daemon) -> bool:
    """Garbage is looked for now rather than in half a minute."""
    post(node, "/v1/gc")
    return True


def test_a_host_that_dies_is_replaced_part_by_part_and_a_newer_version_takes_its_place(fleet: Fleet) -> None:
    nodes = fleet_of(fleet, 4, partitioned(2, 2_000_000))
    publish(nodes[0], "big", content(1))
    owners = settled(nodes[0], "big", 4)
    assert all(len(part) == 2 for part in owners)
    dead = next(node for node in reversed(nodes) if any(node.name in part for part in owners))
    dead.kill()
    fleet.redis.delete(fleet.key(f"node:{dead.name}"))  # as after a while without reports
    living = [node for node in nodes if node is not dead]
    for node in living:
        assert whole(node, "big", 1) == content(1), "each part has another copy"
    until(lambda: "under-replicated" in placed(living[0], "big").get("trouble", ""), "what is missing to be said", 30)
    until(lambda: all(dead.name not in part for part in settled(living[0], "big", 4)), "it to be replaced", 45)
    publish(nodes[0], "big", content(2))
    until(lambda: all(_wants(node, 2) for node in living), "the new version to be wanted")
    for node in living:
        assert whole(node, "big", 2) == content(2), "from the publisher, while its owners still pull"
    settled(living[0], "big", 4)
    for node in living:
        assert whole(node, "big", 1) == content(1), "older versions that are kept lie with their parts"


def test_a_flipped_bit_in_a_part_is_found_and_mended_from_its_other_owner(fleet: Fleet) -> None:
    nodes = fleet_of(fleet, 3, partitioned(2, 3_000_000))
    publish(nodes[0], "big", content(1))
    settled(nodes[0], "big", 3)
    size_bytes = SIZES["shard-5.bin"]
    owner = next(node for node in nodes[1:] if _files(node, size_bytes))
    (damaged,) = _files(owner, size_bytes)
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    request = urllib.request.Request(f"{owner.url}/v1/scrub", method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        found = json.load(answer)["damaged"]
    assert [(line["paths"], line["repaired"]) for line in found] == [(["shard-5.bin"], True)]
    assert damaged.read_bytes() == content(1)["shard-5.bin"]


def _files(node: Daemon, size_bytes: int) -> list[Path]:
    files = [path for path in (node.state / "objects").rglob("*") if path.is_file()]
    return [path for path in files if path.stat().st_size == size_bytes]


def _wants(node: Daemon, number: int) -> bool:
    return any(model["name"] == "big" and model["wanted"] == number for model in node.status()["models"])


def test_the_whole_is_active_where_it_was_asked_for_and_follows_pins_there(fleet: Fleet) -> None:
    nodes = fleet_of(fleet, 3, partitioned(1, 3_000_000))
    publish(nodes[0], "big", content(1))
    settled(nodes[0], "big", 3)
    asked = nodes[2]
    post(asked, "/v1/models/big/load")
    until(lambda: asked.active("big") == 1, "it to be active where it was asked for")
    publish(nodes[0], "big", content(2))
    until(lambda: asked.active("big") == 2, "the next version to be active there")
    assert {path.name: path.read_bytes() for path in (asked.tree("big") or Path()).iterdir()} == content(2)
    fleet.run("pin", "big", "1")
    until(lambda: asked.active("big") == 1, "the pin to hold there")
    fleet.run("unpin", "big")
    until(lambda: asked.active("big") == 2, "it to go on")
    until(lambda: _serving(nodes[0]) == [asked.name], "predictions to go where it runs")
    settled(nodes[0], "big", 3)
    post(asked, "/v1/models/big/unload")
    until(lambda: asked.tree("big") is None, "it to be let go")
    assert whole(asked, "big", 2) == content(2)


def _serving(node: Daemon) -> list[str]:
    with urllib.request.urlopen(f"{node.url}/v1/placement/big", timeout=5) as answer:
        return [one["id"] for one in json.load(answer)["owners"]]


def test_parts_begin_and_end_on_a_live_fleet_and_every_read_succeeds(fleet: Fleet) -> None:
    nodes = fleet_of(fleet, 3, '[storage]\nmode = "replicated"\n')
    files = content(1)
    publish(nodes[0], "big", files)
    until(lambda: all(node.active("big") == 1 for node in nodes), "all to run it")
    failed, asked, over = [], [0], threading.Event()

    def reading(node: Daemon) -> None:
        while not over.wait(0.02):
            path = random.choice(list(SIZES))
            try:
                assert read(node, "big", 1, path) == files[path]
            except (AssertionError, OSError) as error:
                failed.append(f"{node.name} {path}: {error!r}")
            asked[0] += 1

    threads = [threading.Thread(target=reading, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    try:
        for sections, parts in (
            (partitioned(1, 3_000_000), 3),
            (partitioned(2, 3_000_000), 3),
            (partitioned(2, 0), 0),
            (partitioned(1, 3_000_000), 3),
        ):
            for node in nodes:
                node.config.write_text(node.base + sections)
            until(lambda parts=parts: len(placed(nodes[0], "big").get("parts", ())) == parts, f"{parts} parts")  # type: ignore[misc]
            until(lambda: "trouble" not in placed(nodes[0], "big"), "all owners to have them", 40)
            for node in nodes:
                _collected(node)
        for node in nodes:
            node.config.write_text(node.base + '[storage]\nmode = "replicated"\n')
        until(lambda: all(node.active("big") == 1 for node in nodes), "all to run it again")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed, f"{len(failed)} of {asked[0]} reads failed: {failed[:5]}"
    assert asked[0] > 100
