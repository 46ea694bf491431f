"""Placements on real daemons that change while somebody reads: copies, zones, a host that leaves, one that was away."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import Daemon, Fleet, until

NAMES = [f"model-{number}" for number in range(5)]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def storage(more: str) -> str:
    return f"[storage]\nreplace_after_s = 1\n{more}\n"


def partitioned(copies: int, more: str = "") -> str:
    return storage(f'mode = "partitioned"\ncopies = {copies}\n{more}')


def placements(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.status().get("placement", {})
    return found


def settled(daemon: Daemon, copies: int, names: list[str] = NAMES) -> bool:
    """Whether every model has so many owners, and all of them hold it."""
    lines = placements(daemon)
    found = [lines.get(name, {}) for name in names]
    return all(len(line.get("owners", ())) == copies and "trouble" not in line for line in found)


def content(name: str, number: int = 1) -> bytes:
    return f"{name} {number} ".encode() * 5000


def publish(daemon: Daemon, number: int = 1, names: list[str] = NAMES) -> None:
    for name in names:
        daemon.put(f"{name}.bin", content(name, number))


def read(daemon: Daemon, name: str, number: int = 1) -> bytes:
    url = f"{daemon.url}/v1/models/{name}/versions/{number}/files/{name}.bin"
    with urllib.request.urlopen(url, timeout=20) as answer:
        data: bytes = answer.read()
        return data


@contextlib.contextmanager
def readers(*daemons: Daemon) -> Iterator[None]:
    """Threads that read all models from these daemons all the time; not one read may fail."""
    failed: list[str] = []
    asked, over = [0], threading.Event()

    def reading(daemon: Daemon) -> None:
        while not over.wait(0.03):
            name = random.choice(NAMES)
            try:
                assert read(daemon, name) == content(name)
            except (AssertionError, OSError) as error:
                failed.append(f"{name} from {daemon.name}: {error!r}")
            asked[0] += 1

    threads = [threading.Thread(target=reading, args=(daemon,)) for daemon in daemons]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed, f"{len(failed)} of {asked[0]} reads failed: {failed[:5]}"
    assert asked[0] > 50


def edit(daemons: list[Daemon], sections: str) -> None:
    for daemon in daemons:
        daemon.config.write_text(daemon.base + sections)


def test_mode_and_copies_change_under_a_reader_and_nothing_is_unavailable(fleet: Fleet) -> None:
    nodes = [fleet.add(name, storage('mode = "replicated"')) for name in ("one", "two", "three")]
    publish(nodes[0])
    until(lambda: all(node.active(name) == 1 for node in nodes for name in NAMES), "all to run all")
    with readers(*nodes):
        for copies in (1, 3, 2):
            edit(nodes, partitioned(copies))
            until(lambda copies=copies: settled(nodes[0], copies), f"{copies} copies of all", 40)  # type: ignore[misc]
            for node in nodes:
                urllib.request.urlopen(urllib.request.Request(f"{node.url}/v1/gc", method="POST"), timeout=10).close()
        edit(nodes, storage('mode = "replicated"'))
        until(lambda: all(node.active(name) == 1 for node in nodes for name in NAMES), "all to run all again")


def test_copies_lie_in_different_zones_and_fewer_hosts_than_copies_are_said(fleet: Fleet) -> None:
    one = in_zone(fleet, "one", "left")
    publish(one)
    until(lambda: len(placements(one)) == len(NAMES), "all to be published")
    until(lambda: "no node to give it to" in json.dumps(placements(one)), "what is missing to be said")
    assert all(read(one, name) == content(name) for name in NAMES)
    zones = {"one": "left", "two": "left", "three": "right"}
    for name in ("two", "three"):
        in_zone(fleet, name, zones[name])
    until(lambda: settled(one, 2), "two copies of all, once there are hosts", 40)

    def spread() -> bool:
        found = placements(one).values()
        return settled(one, 2) and all(
            {zones[owner] for owner in line["owners"]} == set(zones.values()) for line in found
        )

    until(spread, "a copy in each zone, once there are two zones", 40)


def in_zone(fleet: Fleet, name: str, zone: str) -> Daemon:
    daemon = Daemon(name, fleet.root, fleet.redis_url)
    daemon.base = daemon.base.replace("[node]\n", f'[node]\nzone = "{zone}"\n')
    edit([daemon], partitioned(2))
    fleet.daemons.append(daemon.start())
    until(lambda: daemon.alive() and daemon.status()["primary"], f"{name} to answer")
    return daemon


def test_a_host_that_leaves_is_emptied_first_and_never_takes_the_last_copy(fleet: Fleet) -> None:
    nodes = [fleet.add(name, partitioned(1)) for name in ("one", "two", "three")]
    until(lambda: len(nodes[0].status()["nodes"]) == 3, "all to report")
    publish(nodes[0])
    until(lambda: settled(nodes[0], 1), "all to be placed")
    owners = {name: placements(nodes[0])[name]["owners"][0] for name in NAMES}
    leaver = next(node for node in nodes if node.name in owners.values())
    stay = [node for node in nodes if node is not leaver]
    with readers(*nodes):
        edit([leaver], partitioned(1, "leaving = true"))
        until(lambda: settled(nodes[0], 1) and not _owns(nodes[0], leaver), "what it had to lie on others", 40)
        until(lambda: all(leaver.tree(name) is None for name in NAMES), "it to have let go of everything")
    leaver.stop()
    for node in stay:
        until(lambda node=node: node.status()["primary"] in {other.name for other in stay}, "a primary")  # type: ignore[misc]
        assert all(read(node, name) == content(name) for name in NAMES)


def _owns(daemon: Daemon, owner: Daemon) -> bool:
    return any(owner.name in line["owners"] for line in placements(daemon).values())


def test_a_host_that_was_away_for_a_week_brings_nothing_back(fleet: Fleet) -> None:
    """The week is what it does to the fleet: its report has expired, its entries are trimmed, versions have gone."""
    nodes = [fleet.add(name, partitioned(2)) for name in ("one", "two", "three")]
    until(lambda: len(nodes[0].status()["nodes"]) == 3, "all to report")
    publish(nodes[0])
    until(lambda: settled(nodes[0], 2), "all to be placed")
    away, here = nodes[2], nodes[:2]
    assert _owns(nodes[0], away)
    away.kill()
    fleet.redis.delete(fleet.key("node:three"))
    until(lambda: settled(nodes[0], 2) and not _owns(nodes[0], away), "it to be replaced", 45)
    publish(nodes[0], 2)
    until(lambda: settled(nodes[0], 2) and _all_want(nodes[0], 2), "the second version of all")
    for name in NAMES[:2]:
        fleet.run("delete", name, "1")
    fleet.redis.xtrim(fleet.key("log"), maxlen=1, approximate=False)
    away.start()
    until(lambda: away.alive() and len(nodes[0].status()["nodes"]) == 3, "it to be back")
    until(lambda: _all_want(away, 2), "it to know what is wanted now")
    until(lambda: settled(nodes[0], 2) and _owns(nodes[0], away), "it to have a share again", 40)
    for node in nodes:
        assert all(read(node, name, 2) == content(name, 2) for name in NAMES)
        assert all(read(node, name, 1) == content(name, 1) for name in NAMES[2:])
    line = next(each for each in here[0].status()["nodes"] if each["id"] == "three")
    assert not any(1 in line["models"].get(name, {}).get("held", ()) for name in NAMES[:2]), "it offers nothing deleted"


def _all_want(daemon: Daemon, number: int) -> bool:
    return all(model["wanted"] == number for model in daemon.status()["models"])


def test_a_rollout_and_a_pin_reach_owners_and_those_who_asked(fleet: Fleet) -> None:
    nodes = [fleet.add(name, partitioned(2)) for name in ("one", "two", "three")]
    until(lambda: len(nodes[0].status()["nodes"]) == 3, "all to report")
    publish(nodes[0], 1, NAMES[:1])
    until(lambda: settled(nodes[0], 2, NAMES[:1]), "it to be placed")
    name, owners = NAMES[0], placements(nodes[0])[NAMES[0]]["owners"]
    (other,) = [node for node in nodes if node.name not in owners]
    urllib.request.urlopen(
        urllib.request.Request(f"{other.url}/v1/models/{name}/load", method="POST"), timeout=10
    ).close()
    until(lambda: all(node.active(name) == 1 for node in nodes), "all three to run it")
    fleet.run("pin", name, "1")
    publish(nodes[0], 2, NAMES[:1])
    until(lambda: [model["head"] for model in nodes[0].status()["models"]] == [2], "the second to be published")
    assert all(node.active(name) == 1 for node in nodes)
    fleet.run("unpin", name)
    until(lambda: all(node.active(name) == 2 for node in nodes), "the second to be active on all three")
    fleet.run("rollout", name, "1", "--strategy", "together")
    until(lambda: all(node.active(name) == 1 for node in nodes), "all three to have flipped")
