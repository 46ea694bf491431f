"""Rollouts on real daemons over a real Valkey: staged everywhere, switched together, or nobody moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import Daemon, Fleet, until

TOGETHER = '[model.fraud]\nstrategy = "together"\nstraggler_s = 3.0\n'
TRIO = ("gpu-01", "gpu-02", "gpu-03")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def three(fleet: Fleet, sections: str = "") -> list[Daemon]:
    daemons = [fleet.add(name, sections) for name in TRIO]
    until(lambda: len(daemons[0].status()["nodes"]) == 3, "all three to report")
    return daemons


def publish(fleet: Fleet, data: bytes) -> int:
    file = fleet.root / "fraud.joblib"
    file.write_bytes(data)
    return int(json.loads(fleet.run("publish", "fraud", str(file), "--json").stdout)["version"])


def served(daemon: Daemon) -> bytes | None:
    tree = daemon.tree("fraud")
    return None if tree is None else (tree / "fraud.joblib").read_bytes()


def rollout(daemon: Daemon) -> dict[str, Any]:
    model = next((m for m in daemon.status()["models"] if m["name"] == "fraud"), {})
    return model.get("rollout") or {}


def ended(daemon: Daemon, version: int, state: str) -> bool:
    found = rollout(daemon)
    return found.get("version") == version and found["state"] == state


def test_a_publish_of_a_together_model_stages_everywhere_and_switches_everywhere(fleet: Fleet) -> None:
    daemons = three(fleet, TOGETHER)
    assert publish(fleet, b"one") == 1
    until(lambda: all(served(d) == b"one" for d in daemons), "the first version on all three")
    assert publish(fleet, b"two") == 2
    until(lambda: all(served(d) == b"two" for d in daemons), "the second version on all three")
    until(lambda: ended(daemons[0], 2, "done"), "the rollout to end")


def test_a_straggler_stops_it_before_anyone_moved_and_catches_up_with_the_next(fleet: Fleet) -> None:
    daemons = three(fleet, TOGETHER)
    publish(fleet, b"one")
    until(lambda: all(served(d) == b"one" for d in daemons), "the first version on all three")
    daemons[2].kill()
    publish(fleet, b"two")
    until(lambda: ended(daemons[0], 2, "aborted"), "the rollout to be given up")
    assert "gpu-03" in rollout(daemons[0])["reason"]
    assert [served(d) for d in daemons] == [b"one"] * 3
    shown = fleet.run("rollout", "status", "fraud").stdout
    assert "aborted: not staged within 3 s: gpu-03" in shown and "runs 1" in shown
    daemons[2].start()
    until(daemons[2].alive, "gpu-03 to be back")
    until(lambda: all(n["state"] == "ok" for n in daemons[0].status()["nodes"]), "all three to report")
    assert "staging" in fleet.run("rollout", "fraud", "2").stdout
    until(lambda: all(served(d) == b"two" for d in daemons), "the second version on all three")
    assert fleet.run("rollout", "abort", "fraud", check=False).returncode == 6, "it has ended"


def test_waves_soak_and_pass_or_are_taken_back(fleet: Fleet) -> None:
    waves = (
        '[model.fraud]\nstrategy = "waves"\nstraggler_s = 5.0\nsoak_s = 1.0\ncanaries = ["gpu-02"]\n'
        "waves_percent = [60]\n"
    )
    daemons = three(fleet, waves)
    publish(fleet, b"one")
    until(lambda: all(served(d) == b"one" for d in daemons), "the first version on all three, wave by wave")
    until(lambda: ended(daemons[0], 1, "done"), "the rollout to end")
    publish(fleet, b"two")
    until(lambda: served(daemons[1]) == b"two", "the canary to switch")
    assert [served(daemons[0]), served(daemons[2])] == [b"one", b"one"]
    assert rollout(daemons[0])["waves"] == [["gpu-02"], ["gpu-01"], ["gpu-03"]]
    assert "aborted" in fleet.run("rollout", "abort", "fraud").stdout
    until(lambda: served(daemons[1]) == b"one", "the canary to return")

    def why() -> str:
        nodes = {node["id"]: node for node in daemons[0].status()["nodes"]}
        return str(nodes["gpu-02"]["models"]["fraud"]["why"])

    until(lambda: "version 1 stays: the rollout of version 2 was aborted: stopped by" in why(), "the reason")
