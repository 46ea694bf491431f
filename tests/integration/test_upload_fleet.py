"""`modelsync publish` over links that break and hosts that die: only what is missing is sent, no version is half."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import FLEET, Daemon, Fleet, until
from tests.integration.slow_link import SlowLink
from tests.integration.terms import QUICK_LEASE, Ledger, in_step, primary_of

MIB = 1 << 20
SIZE = 24 * MIB
RATE = 16 * MIB


@pytest.fixture(scope="module")
def links() -> Iterator[dict[str, SlowLink]]:
    made = {name: SlowLink(RATE) for name in ("alpha", "beta", "gamma")}
    yield made
    for link in made.values():
        link.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, links: dict[str, SlowLink]) -> Iterator[Fleet]:
    """Three daemons, each reached over a link of its own."""
    fleet = Fleet(tmp_path_factory.mktemp("uploads"))
    try:
        for name, link in links.items():
            daemon = Daemon(name, fleet.root, fleet.redis_url, QUICK_LEASE, advertise=link.url)
            link.target = daemon.url
            fleet.daemons.append(daemon.start())
        until(lambda: in_step(fleet.daemons), "a fleet in step", 30)
        yield fleet
    finally:
        fleet.close()


class Sender:
    """A `modelsync publish` that runs."""

    def __init__(self, fleet: Fleet, name: str, path: Path) -> None:
        command = [sys.executable, "-m", "modelsync.cli", "--redis", fleet.redis_url, "--fleet", FLEET]
        self.process = subprocess.Popen(
            [*command, "publish", name, str(path), "--wait", "1", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def random_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def after(link: SlowLink, size_bytes: int) -> None:
    begun = link.in_bytes
    until(lambda: link.in_bytes - begun > size_bytes, f"{size_bytes} bytes over the link")


def moving(daemon: Daemon, name: str) -> dict[str, Any] | None:
    """What a daemon says of the upload that arrives there, once it knows how fast it is."""
    node = next(node for node in daemon.status()["nodes"] if node["id"] == daemon.name)
    line: dict[str, Any] = node.get("uploads", {}).get(name, {})
    return line if line.get("rate_bytes_per_s") and line.get("left_s") else None


def whole(daemon: Daemon, name: str, path: Path) -> bool:
    tree = daemon.tree(name)
    return tree is not None and (tree / path.name).read_bytes() == path.read_bytes()


def test_a_sender_that_was_killed_and_runs_again_sends_what_is_missing(
    fleet: Fleet, links: dict[str, SlowLink], tmp_path: Path
) -> None:
    path, primary = random_file(tmp_path), primary_of(fleet.daemons)
    link = links[primary.name]
    begun = link.in_bytes
    first = Sender(fleet, "killed", path)
    after(link, SIZE // 2)
    line = until(lambda: moving(primary, "killed"), "a rate")
    assert SIZE // 4 < line["done_bytes"] < line["total_bytes"] == SIZE
    assert RATE / 4 < line["rate_bytes_per_s"] < 2 * RATE and 0 < line["left_s"] < 10
    first.process.send_signal(signal.SIGSTOP)  # a slow machine's `status` would come after the end
    assert "receives" in fleet.run("status").stdout
    with urllib.request.urlopen(f"{primary.url}/metrics", timeout=5) as answer:
        assert b'modelsync_upload_left_seconds{model="killed"}' in answer.read()
    first.process.kill()
    first.ended()
    code, out, err = Sender(fleet, "killed", path).ended()
    assert code == 0 and json.loads(out)["version"] == 1, err
    assert SIZE < link.in_bytes - begun < SIZE + 3 * MIB, "what had arrived went once"
    for daemon in fleet.daemons:
        until(lambda d=daemon: whole(d, "killed", path), f"it on {daemon.name}")


def test_a_broken_connection_and_a_killed_primary_that_comes_back(
    fleet: Fleet, links: dict[str, SlowLink], tmp_path: Path
) -> None:
    """Paused, so that nobody is promoted meanwhile: the sender waits, and goes on by itself."""
    path, primary = random_file(tmp_path), primary_of(fleet.daemons)
    link = links[primary.name]
    fleet.run("pause")
    try:
        begun = link.in_bytes
        sender = Sender(fleet, "patient", path)
        after(link, SIZE // 4)
        link.cut()
        after(link, SIZE // 4)
        primary.kill()
        primary.start()
        code, out, err = sender.ended()
    finally:
        until(primary.alive, "the primary to be back")
        fleet.run("resume")
    assert code == 0 and json.loads(out)["version"] == 1, err
    assert err.count("broke off") >= 2, "and it says so, on stderr alone"
    assert SIZE < link.in_bytes - begun < SIZE + 8 * MIB
    until(lambda: whole(primary, "patient", path), "it on the primary")


def test_a_primary_that_dies_leaves_the_upload_to_the_next_one(
    fleet: Fleet, links: dict[str, SlowLink], tmp_path: Path
) -> None:
    ledger = Ledger()
    until(lambda: in_step(fleet.daemons), "a fleet in step", 30)
    path, old = random_file(tmp_path), primary_of(fleet.daemons)
    epoch = old.status()["epoch"]
    sender = Sender(fleet, "orphaned", path)
    after(links[old.name], SIZE // 2)
    old.signal(signal.SIGKILL)
    code, out, err = sender.ended()
    answer = json.loads(out)
    others = [daemon for daemon in fleet.daemons if daemon is not old]
    new = primary_of(others, above=epoch)
    assert code == 0 and answer["version"] == 1 and int(answer["id"].partition("-")[0]) > epoch, err
    assert f"the primary is {links[new.name].url} now: {SIZE} of {SIZE} bytes go to it" in err
    for daemon in others:
        until(lambda d=daemon: whole(d, "orphaned", path), f"it on {daemon.name}")
    old.start()
    until(lambda: whole(old, "orphaned", path), "it on the old primary")
    until(lambda: in_step(fleet.daemons), "a fleet in step", 30)
    ledger.check(fleet.redis, fleet.daemons)


def test_a_second_version_sends_what_changed(fleet: Fleet, links: dict[str, SlowLink], tmp_path: Path) -> None:
    """And a directory: whole files that are the same, and chunks of the one that is not."""
    root, primary = tmp_path / "model", primary_of(fleet.daemons)
    root.mkdir()
    (root / "body.bin").write_bytes(os.urandom(12 * MIB))
    (root / "head.bin").write_bytes(os.urandom(6 * MIB))
    assert Sender(fleet, "tuned", root).ended()[0] == 0
    with (root / "head.bin").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(os.urandom(100))
    link = links[primary.name]
    begun = link.in_bytes
    code, out, err = Sender(fleet, "tuned", root).ended()
    assert code == 0 and json.loads(out)["version"] == 2, err
    assert link.in_bytes - begun < 2 * MIB
    tree = until(lambda: primary.active("tuned") == 2 and primary.tree("tuned"), "version 2 on the primary")
    assert {path.name: path.read_bytes() for path in tree.iterdir()} == {
        path.name: path.read_bytes() for path in root.iterdir()
    }


def test_a_terminal_sees_a_bar_and_a_script_sees_json(fleet: Fleet, tmp_path: Path) -> None:
    path = random_file(tmp_path)
    seen, terminal = pty.openpty()
    command = [sys.executable, "-m", "modelsync.cli", "--redis", fleet.redis_url, "--fleet", FLEET, "publish", "bar"]
    process = subprocess.Popen([*command, str(path), "--wait", "3"], stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    shown = b""
    while process.poll() is None or not shown.endswith(b"\x1b[K"):
        try:
            shown += os.read(seen, 65536)
        except OSError:  # EIO: the other end was closed
            break
    os.close(seen)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out.startswith("bar published as version 1"), out
    lines = [line for line in shown.decode().replace("\x1b[K", "").split("\r") if line]
    sending = [line for line in lines if line.startswith("sending  [")]
    assert len(sending) > 5 and "MiB/s" in sending[-2] and " left" in sending[len(sending) // 2]
    assert any(line.startswith("held by ") and " of 3 hosts" in line for line in lines)
    assert shown.endswith(b"\r\x1b[K"), "the line is left empty"


def test_an_upload_in_one_request_is_seen_arriving(fleet: Fleet) -> None:
    """`curl -T`: whoever looks at the status must not take it for nothing."""
    primary, size = primary_of(fleet.daemons), 8 * MIB
    with socket.create_connection(("127.0.0.1", int(primary.url.rpartition(":")[2]))) as sender:
        head = f"PUT /v1/models/at-once?filename=w.bin HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
        sender.sendall(head.encode())
        line = None
        for _ in range(200):
            sender.sendall(os.urandom(size // 256))
            time.sleep(0.05)
            if line := moving(primary, "at-once"):
                break
        assert line and 0 < line["done_bytes"] < line["total_bytes"] == size
    until(lambda: not primary_line(primary).get("uploads"), "it to be gone with its sender")


def primary_line(primary: Daemon) -> dict[str, Any]:
    return next(node for node in primary.status()["nodes"] if node["id"] == primary.name)
