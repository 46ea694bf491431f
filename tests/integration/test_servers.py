"""Servers that notice: a real daemon drives each kind through publish, swap, notified and ready, and through a refusal
that is taken back within two seconds and kept away."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.model_servers import AnyServer, ModelServer, Sglang, TensorFlowServing, Triton, Vllm

SIGNALLED = """
import os, pathlib, signal, sys, time
current, out = map(pathlib.Path, sys.argv[1:])
signal.signal(signal.SIGUSR1, lambda *_: out.write_bytes(next(current.glob("*.bin")).read_bytes()))
print("ready", flush=True)
while True:
    time.sleep(60)
"""
RELOAD = """#!/bin/sh
case $(cat "$MODELSYNC_TREE"/*.bin) in bad*) echo "cannot load version $MODELSYNC_VERSION" >&2; exit 3;; esac
cat "$MODELSYNC_TREE"/*.bin > {out}
"""


@dataclass
class Host:
    """One daemon, and the servers that stand beside it: a model for each."""

    fleet: Fleet
    daemon: Daemon
    servers: dict[str, ModelServer]
    out: Path
    told: subprocess.Popen[str]

    def serves(self, model: str) -> bytes | None:
        if model in self.servers:
            return self.servers[model].serving
        path = self.out / model
        return path.read_bytes() if path.exists() else None

    def line(self, model: str) -> dict[str, Any]:
        node = next((n for n in self.daemon.status()["nodes"] if n["id"] == self.daemon.name), {"models": {}})
        found: dict[str, Any] = node["models"].get(model, {})
        return found

    def runs(self, model: str) -> bytes | None:
        tree = self.daemon.tree(model)
        return None if tree is None else (tree / f"{model}.bin").read_bytes()


def section(model: str, hook: str, more: str = "") -> str:
    return f"[model.{model}]\nhooks = [{{ {hook} }}]\n{more}"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("servers")
    out = root / "out"
    out.mkdir()
    fleet, views, live = Fleet(root), root / "alpha" / "views", root / "alpha" / "live"
    servers: dict[str, ModelServer] = {
        "triton": Triton(views / "triton"),
        "tfs": TensorFlowServing(views / "tfs" / "models.config"),
        "vllm": Vllm(live / "vllm" / "current"),
        "lora": Vllm(live / "lora" / "current"),
        "sglang": Sglang(),
        "any": AnyServer(),
    }
    url = {name: server.url for name, server in servers.items()}
    script = root / "reload"
    script.write_text(RELOAD.format(out=out / "command"))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, "-c", SIGNALLED, str(live / "signal" / "current"), str(out / "signal")]
    told = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert told.stdout is not None and told.stdout.readline() == "ready\n"
    (out / "pid").write_text(f"{told.pid}\n")
    body = """body = '{"from": "{tree}", "version": {version}}'"""
    sections = (
        section("triton", f'kind = "triton", url = "{url["triton"]}"', 'views = ["triton"]\n')
        + section("tfs", f'kind = "tfserving", url = "{url["tfs"]}", timeout_s = 8', 'views = ["tfs"]\n')
        + section("vllm", f'kind = "vllm", url = "{url["vllm"]}"')
        + section("lora", f'kind = "vllm", url = "{url["lora"]}", name = "adapter"')
        + section("sglang", f'kind = "sglang", url = "{url["sglang"]}"')
        + section(
            "any",
            f'kind = "url", method = "PUT", url = "{url["any"]}/models/{{model}}", {body}',
            f'health = {{ url = "{url["any"]}/up", ready_s = 5, window_s = 0.2, interval_s = 0.05 }}\n',
        )
        + section("command", f'kind = "command", command = ["{script}"]')
        + section("signal", f'kind = "signal", pid_file = "{out / "pid"}", signal = "USR1"')
    )
    made = Host(fleet, fleet.add("alpha", sections), servers, out, told)
    yield made
    told.kill()
    told.wait()
    for server in servers.values():
        server.close()
    fleet.close()


def put(host: Host, model: str, data: bytes) -> float:
    host.daemon.put(f"{model}.bin", data)
    return time.monotonic()


def is_served(host: Host, model: str, data: bytes, number: int) -> Callable[[], bool]:
    def served() -> bool:
        line = host.line(model)
        return (
            host.serves(model) == data
            and host.runs(model) == data
            and (line["active"], line["state"])
            == (
                number,
                "active",
            )
        )

    return served


@pytest.mark.parametrize("model", ["triton", "tfs", "vllm", "lora", "sglang", "any", "command"])
def test_published_swapped_told_and_ready_or_refused_and_taken_back(host: Host, model: str) -> None:
    for number, data in ((1, b"one"), (2, b"two")):
        put(host, model, data)
        until(is_served(host, model, data, number), f"version {number} to be served")
    began_s = put(host, model, b"bad three")
    until(lambda: "3" in host.line(model).get("rejected", {}), "version 3 to be turned down")
    until(lambda: (host.serves(model), host.runs(model)) == (b"two", b"two"), "version 2 to be served again")
    took_s = time.monotonic() - began_s
    assert took_s < 2.0, f"published, refused and taken back in {took_s:.2f} s"
    until(lambda: host.line(model)["state"] == "rejected" and host.line(model)["active"] == 2, "it to settle")
    assert "rejected" in host.fleet.run("history", model).stdout
    assert stays_away(host, model)
    put(host, model, b"four")
    until(is_served(host, model, b"four", 4), "version 4 to be served")
    host.fleet.run("rollback", model, "2")  # to an older tree, which times alone would not show
    until(lambda: (host.serves(model), host.runs(model)) == (b"two", b"two"), "version 2 after the rollback")


def stays_away(host: Host, model: str) -> bool:
    """Whether the version is not tried again by itself."""
    tries = host.daemon.log.read_text().count("version.rejected")
    time.sleep(1.2)  # longer than poll_s
    return host.daemon.log.read_text().count("version.rejected") == tries and host.runs(model) == b"two"


def test_the_order_in_which_each_was_asked(host: Host) -> None:
    """What the documentation of each asks for, as it went over the wire for the first version."""

    def first(model: str, count: int) -> list[str]:
        return [line for line in host.servers[model].asked if "/health" not in line][:count]

    assert first("triton", 3) == [
        "POST /v2/repository/models/triton/load",
        "POST /v2/repository/index",
        "GET /v2/models/triton/versions/1/ready",
    ]
    assert first("vllm", 4) == [
        "POST /sleep?level=2",
        "POST /wake_up?tags=weights",
        "POST /collective_rpc",
        "POST /wake_up?tags=kv_cache",
    ]
    assert first("lora", 1) == ["POST /v1/load_lora_adapter"] and first("sglang", 1) == [
        "POST /update_weights_from_disk"
    ]
    assert first("tfs", 1)[0] == "GET /v1/models/tfs/versions/1"
    vllm = host.servers["vllm"]
    assert isinstance(vllm, Vllm) and vllm.asleep == set(), "a refusal does not leave it asleep"
    triton = host.servers["triton"]
    assert isinstance(triton, Triton) and triton.stale_loads == 0, "no load was passed over for its time"
    assert all(set(numbers) <= {1, 2, 3, 4} for numbers in triton.listings), "nothing unfinished was listed"


def test_a_process_that_is_signalled_and_one_that_is_gone(host: Host) -> None:
    for number, data in ((1, b"one"), (2, b"two")):
        put(host, "signal", data)
        until(is_served(host, "signal", data, number), f"version {number}")
    (host.out / "pid").rename(host.out / "pid.away")
    put(host, "signal", b"three")
    until(lambda: "3" in host.line("signal").get("rejected", {}), "version 3 to be turned down")
    until(lambda: host.runs("signal") == b"two", "version 2 again", 2.0)
    (host.out / "pid.away").rename(host.out / "pid")
    host.fleet.run("update", "signal", "3")
    until(is_served(host, "signal", b"three", 3), "version 3, since somebody asked for it")
    os.kill(host.told.pid, signal.SIGCONT)


def test_a_live_number_is_never_written_to(host: Host) -> None:
    """What a server has mapped is the same inode with the same bytes, whatever is published beside it."""
    slot = host.daemon.views / "triton" / "triton"
    number = max(int(entry.name) for entry in slot.iterdir() if entry.name.isdigit())
    before = (os.readlink(slot / str(number)), (slot / str(number) / "triton.bin").stat())
    put(host, "triton", b"five")
    until(is_served(host, "triton", b"five", 5), "version 5")
    after = (os.readlink(slot / str(number)), (slot / str(number) / "triton.bin").stat())
    assert (after[0], after[1].st_ino, after[1].st_mtime_ns) == (before[0], before[1].st_ino, before[1].st_mtime_ns)
