"""History, search, garbage and scrubs on real daemons, as a person meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import Daemon, Fleet, until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def told(fleet: Fleet, *words: str) -> Any:
    return json.loads(fleet.run(*words, "--json").stdout)


def cli(daemon: Daemon, *words: str) -> Any:
    """A command on the host of this daemon."""
    command = [sys.executable, "-m", "modelsync.cli", "--config", str(daemon.config), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def publish(fleet: Fleet, daemon: Daemon, data: bytes, metadata: dict[str, Any], note: str) -> None:
    (daemon.root / "m.bin").write_bytes(data)
    (daemon.root / "meta.json").write_text(json.dumps(metadata))
    fleet.run("publish", "m", str(daemon.root / "m.bin"), "--note", note, "--meta", str(daemon.root / "meta.json"))


def test_who_asked_for_what_and_what_became_of_it(fleet: Fleet) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta", "keep_days = 0\n")
    for number in (1, 2, 3):
        publish(fleet, alpha, b"%d" % number, {"auc": 0.9 + number / 100, "params": {"depth": number}}, f"n{number}")
    fleet.run("rollback", "m")
    fleet.run("pin", "m", "1")
    until(lambda: alpha.active("m") == beta.active("m") == 1, "version 1 everywhere")
    asked = told(fleet, "history", "m", "--asked")
    assert [(c["command"], c["wanted"]) for c in asked] == [("pin m 1", 1), ("rollback m", 2)]
    assert all(c["by"] and c["at"].startswith("20") for c in asked)
    until(lambda: told(fleet, "history", "m")[2]["hosts"] == {"alpha": "active", "beta": "active"}, "the outcome")
    assert told(fleet, "history", "m")[0]["hosts"] == {"alpha": "held", "beta": "held"}
    assert "active on alpha, beta" in fleet.run("history", "m").stdout
    # searching
    assert [v["version"] for v in told(fleet, "find", "auc>=0.92")] == [3, 2]
    assert [v["version"] for v in told(fleet, "find", "params.depth=2", "model=m", "note=n2")] == [2]
    assert told(fleet, "find", "auc>5") == []
    assert fleet.run("find", "nonsense", check=False).returncode == 2


def test_garbage_is_previewed_and_then_goes(fleet: Fleet) -> None:
    alpha = fleet.add("alpha", "keep = 1\n")
    for number in range(1, 5):
        publish(fleet, alpha, b"%d" % number * 1000, {}, "")
    until(lambda: alpha.active("m") == 4, "version 4")
    preview = json.loads(cli(alpha, "gc", "--dry-run", "--json").stdout)
    assert preview["dry_run"] and preview["versions"] == {"m": [1, 2]}, "4 is active, 3 ran before"
    assert len(os.listdir(alpha.state / "store" / "m")) == 4, "nothing was removed"
    done = json.loads(cli(alpha, "gc", "--json").stdout)
    assert (done["versions"], done["trees"]) == (preview["versions"], preview["trees"])
    assert len(os.listdir(alpha.state / "store" / "m")) == 2
    assert "removed 0 trees" in cli(alpha, "gc").stdout


def test_a_version_that_the_fleet_forgets_stays_where_it_runs(fleet: Fleet) -> None:
    """A host's own pin is not the fleet's business, so `delete` does not refuse it; garbage collection must."""
    alpha = fleet.add("alpha", "keep = 1\n[pins]\nm = 1\n")
    for number in (1, 2, 3):
        publish(fleet, alpha, b"%d" % number * 1000, {}, "")
    until(lambda: alpha.active("m") == 1, "the pin")
    fleet.run("delete", "m", "1")
    gone = json.loads(cli(alpha, "gc", "--json").stdout)
    assert gone["trees"] <= 1, "of 2 at most"
    assert (alpha.live / "m" / "current" / "m.bin").read_bytes() == b"1" * 1000
    alpha.stop()
    alpha.start()
    until(alpha.alive, "alpha again")
    assert (alpha.live / "m" / "current" / "m.bin").read_bytes() == b"1" * 1000


def test_what_a_disk_damaged_is_found_and_pulled_anew(fleet: Fleet) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    publish(fleet, alpha, b"good" * 5000, {}, "")
    until(lambda: alpha.active("m") == beta.active("m") == 1, "version 1 everywhere")
    tree = beta.tree("m")
    assert tree is not None
    path = tree / "m.bin"
    os.chmod(path, 0o644)
    with path.open("r+b") as file:
        file.seek(777)
        file.write(b"X")
    done = cli(beta, "scrub", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and [(d["version"], d["paths"], d["repaired"]) for d in found["damaged"]] == [
        (1, ["m.bin"], True)
    ]
    assert (beta.live / "m" / "current" / "m.bin").read_bytes() == b"good" * 5000
    assert len(os.listdir(beta.state / "quarantine")) == 1
    assert json.loads(cli(beta, "scrub", "--json").stdout)["damaged"] == []
    assert cli(beta, "verify").returncode == 0


def test_damage_that_nobody_can_repair_is_said_so(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    publish(fleet, alpha, b"good" * 5000, {}, "")
    until(lambda: alpha.active("m") == 1, "version 1")
    tree = alpha.tree("m")
    assert tree is not None
    os.chmod(tree / "m.bin", 0o644)
    with (tree / "m.bin").open("r+b") as file:
        file.write(b"X")
    done = cli(alpha, "scrub")
    assert done.returncode == 4 and "NOT repaired" in done.stdout
    assert (alpha.live / "m" / "current" / "m.bin").exists(), "a flipped bit is better than no model"


def test_a_fleet_that_its_redis_names_is_verified_by_its_daemons(fleet: Fleet) -> None:
    """Who came by `up` and `join` has no configuration file."""
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    publish(fleet, alpha, b"good" * 5000, {}, "")
    until(lambda: alpha.active("m") == beta.active("m") == 1, "version 1 everywhere")

    def verify(*words: str) -> tuple[int, list[dict[str, Any]]]:
        done = fleet.run("verify", "--json", *words, check=False)
        return done.returncode, json.loads(done.stdout or "[]")

    good = [{"node": node, "model": "m", "version": 1, "fault": None} for node in ("alpha", "beta")]
    assert verify() == verify("m") == (0, good)
    assert verify("nosuch")[0] == 1
    tree = beta.tree("m")
    assert tree is not None
    os.chmod(tree / "m.bin", 0o644)
    with (tree / "m.bin").open("r+b") as file:
        file.write(b"X")
    code, lines = verify("m")
    assert (code, lines[0]) == (4, good[0]) and "m.bin" in lines[1]["fault"]
    assert not list((beta.state / "quarantine").iterdir()), "it only reads"
    beta.kill()
    code, lines = verify()
    assert (code, lines[0]) == (5, good[0]) and lines[1]["version"] is None and beta.url in lines[1]["fault"]
    assert fleet.run("doctor", check=False).returncode == 0


def test_the_doctor(fleet: Fleet) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    until(lambda: len(alpha.status()["nodes"]) == 2, "both")
    well = cli(alpha, "doctor", "--json")
    findings = {f["what"]: f for f in json.loads(well.stdout)}
    assert well.returncode == 0, well.stdout
    assert {
        "configuration",
        "state_dir",
        "disk",
        "kernel",
        "redis",
        "redis version",
        "clock",
        "primary",
    } <= findings.keys()
    assert "answers" in findings["peer beta"]["found"]
    beta.kill()
    ill = {f["what"]: f for f in json.loads(cli(alpha, "doctor", "--json").stdout)}
    assert ill["peer beta"]["advice"]
    fleet.valkey.stop()
    alpha.kill()
    dead = cli(alpha, "doctor")
    assert dead.returncode == 1 and "FAIL  redis" in dead.stdout and "->" in dead.stdout
    alpha.config.write_text("[fleet]\n")
    assert "FAIL  configuration" in cli(alpha, "doctor").stdout


def test_what_changed_between_two_versions(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    data = os.urandom(20 << 20)  # more chunks than stand in a manifest
    publish(fleet, alpha, data, {"params": {"depth": 3, "trees": 100}, "auc": 0.9}, "")
    publish(
        fleet, alpha, data[: 5 << 20] + b"changed" + data[(5 << 20) + 7 :], {"params": {"depth": 4, "trees": 100}}, ""
    )
    found = told(fleet, "diff", "m", "1", "2")
    assert found["metadata"] == {"auc": [0.9, None], "params.depth": [3, 4]}
    assert found["files"][0]["change"] == "changed" and 0 < found["changed_bytes"] <= 2 << 20
