"""The main job on real processes: what is put into a directory is live and verified on every host; what goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemon, Fleet, free_port, sha256_of, until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def live(daemon: Daemon, model: str, data: bytes) -> bool:
    tree = daemon.tree(model)
    return tree is not None and [path.read_bytes() for path in tree.iterdir()] == [data]


def test_the_three_layouts_arrive_byte_for_byte(fleet: Fleet) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    alpha.put("single.joblib", b"one file" * 1000)
    tree = alpha.root / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "weights.bin").write_bytes(os.urandom(3 << 20))
    (tree / "sub" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (tree / "sub" / "run.sh").chmod(0o755)
    (tree / "sub" / "empty").write_bytes(b"")
    wanted = sha256_of(tree)
    tree.rename(alpha.models / "tree")
    (alpha.models / "numbered" / "7").mkdir(parents=True)
    (alpha.models / "numbered" / "7" / "model.onnx").write_bytes(b"seven")
    for daemon in (alpha, beta):
        until(lambda d=daemon: live(d, "single", b"one file" * 1000), "the single file")
        until(lambda d=daemon: d.tree("tree"), "the tree")
        until(lambda d=daemon: live(d, "numbered", b"seven"), "the numbered version")
        found = daemon.tree("tree")
        assert found is not None and sha256_of(found) == wanted
        assert os.access(found / "sub" / "run.sh", os.X_OK) and not os.access(found / "weights.bin", os.X_OK)
        assert os.readlink(daemon.live / "tree" / "current").startswith("../../state/store/tree/")
    assert beta.active("numbered") == 7


def test_a_slow_copy_is_never_published_half(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    with (alpha.models / "slow.bin").open("wb") as file:
        for _ in range(5):
            file.write(b"x" * 1000)
            file.flush()
            time.sleep(0.5)  # longer than settle_s
            assert alpha.tree("slow") is None
    until(lambda: live(alpha, "slow", b"x" * 5000), "the whole file")
    until(lambda: alpha.active("slow") == 1, "its report")


def test_what_is_not_a_model_is_refused_with_a_visible_reason(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    os.mkfifo(alpha.models / "pipe.bin")
    (alpha.models / "empty.onnx").write_bytes(b"")
    (alpha.models / "out.npz").symlink_to("/etc/passwd")
    (alpha.models / "readme.xyz").write_text("hello")
    refused = until(
        lambda: len(r := (alpha.status()["nodes"] or [{}])[0].get("refusals", {})) >= 4 and r, "four refusals, shown"
    )
    assert {"pipe.bin", "empty.onnx", "out.npz", "readme.xyz"} <= refused.keys() and all(refused.values())
    assert alpha.status()["models"] == []


def test_the_same_bytes_again_are_a_no_op_that_says_so(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    alpha.put("m.bin", b"bytes")
    until(lambda: live(alpha, "m", b"bytes"), "version 1")
    (alpha.root / "m.bin").write_bytes(b"bytes")
    assert "unchanged" in fleet.run("publish", "m", str(alpha.root / "m.bin")).stdout
    assert [v["version"] for v in json.loads(fleet.run("history", "m", "--json").stdout)] == [1]


def received_bytes(daemon: Daemon) -> int:
    """What this host has pulled since it was started."""
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as response:
        found = re.search(r"^modelsync_received_bytes_total (\S+)$", response.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found.group(1)))


def test_history_pin_rollback_and_update_by_command(fleet: Fleet) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    meta = alpha.root / "meta.json"
    meta.write_text('{"auc": 0.97, "rows": 12}')
    for number in (1, 2, 3):
        source = alpha.root / "m.bin"
        source.write_bytes(b"%d" % number)
        words = ["--note", f"note {number}", "--author", "ada", "--meta", str(meta), "--json"]
        answer = json.loads(fleet.run("publish", "m", str(source), *words).stdout)
        assert (answer["version"], answer["copies"]) == (number, 2)
    newest = json.loads(fleet.run("history", "m", "--json").stdout)[0]
    assert (newest["version"], newest["author"], newest["note"], newest["size_bytes"]) == (3, "ada", "note 3", 1)
    assert json.loads(fleet.run("show", "m", "3", "--json").stdout)["metadata"] == {"auc": 0.97, "rows": 12}
    until(lambda: live(beta, "m", b"3"), "version 3")
    pulled = received_bytes(beta)
    assert pulled > 0
    fleet.run("rollback", "m")
    for daemon in (alpha, beta):
        until(lambda d=daemon: live(d, "m", b"2"), "version 2")
        assert (daemon.live / "m" / "previous").resolve().joinpath("m.bin").read_bytes() == b"3"
    fleet.run("pin", "m", "1")
    until(lambda: live(beta, "m", b"1"), "version 1")
    assert received_bytes(beta) == pulled, "what is retained is not pulled again"
    alpha.put("m.bin", b"4")
    until(lambda: beta.status()["models"][0]["head"] == 4, "version 4 to be published")
    assert live(beta, "m", b"1"), "a pin holds"
    refused = fleet.run("update", "m", "4", check=False)
    assert refused.returncode == 6 and "pinned" in refused.stderr
    assert fleet.run("pin", "m", "99", check=False).returncode == 1
    fleet.run("unpin", "m")
    until(lambda: live(beta, "m", b"4"), "version 4")


def test_commands_by_redis_cli(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    for number in (1, 2):
        alpha.put("m.bin", b"%d" % number)
        until(lambda n=number: live(alpha, "m", b"%d" % n), "a version")
    client, channel = fleet.redis, fleet.key("control")
    for text, wanted in (("rollback m", b"1"), ("update m 2", b"2"), ("pin m 1", b"1"), ("unpin m", b"2")):
        client.publish(channel, text)
        until(lambda w=wanted: live(alpha, "m", w), text)
    client.publish(channel, "fly to the moon")
    answers = until(lambda: len(a := client.lrange(fleet.key("answers"), 0, -1)) == 5 and a, "five answers")
    assert [json.loads(text)["event"] for text in answers] == ["command.refused", *["command.done"] * 4]
    assert "fly" in json.loads(answers[0])["command"] and "update NAME" in json.loads(answers[0])["reason"]


def test_a_pin_in_the_file_takes_effect_within_a_second_and_a_bad_edit_changes_nothing(fleet: Fleet) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    for number in (1, 2):
        alpha.put("m.bin", b"%d" % number)
        until(lambda n=number: live(beta, "m", b"%d" % n), "a version")
    good = beta.config.read_text()
    beta.config.write_text(good + "[pins]\nm = 1\n")
    until(lambda: live(beta, "m", b"1"), "the pin", timeout_s=1.5)
    assert live(alpha, "m", b"2")
    beta.config.write_text(good + "[pins]\nm = -1\n[nonsense]\n")
    error = until(lambda: next(n for n in alpha.status()["nodes"] if n["id"] == "beta").get("error"), "the fault", 5)
    assert "pins.m" in error and "nonsense" in error
    assert live(beta, "m", b"1"), "the last good configuration stays in force"
    assert "config.refused" in beta.log.read_text()
    waiting = good + "[pins]\nm = 9\n"
    beta.config.write_text(waiting)
    line = until(
        lambda: (m := beta.status()["nodes"][1]["models"]["m"])["state"] == "waiting" and m, "a pin that waits", 5
    )
    assert live(beta, "m", b"1") and "waiting" in line["why"]
    beta.config.write_text(good)
    until(lambda: live(beta, "m", b"2"), "the fleet's version again")


def test_replicas_converge_with_every_message_lost(fleet: Fleet) -> None:
    client = fleet.redis
    client.execute_command("ACL", "SETUSER", "deaf", "on", ">deaf", "~*", "+@all", "resetchannels", "-subscribe")
    deaf = fleet.redis_url.replace("redis://", "redis://deaf:deaf@")
    alpha = fleet.add("alpha")
    beta = fleet.add("beta", redis_url=deaf)
    alpha.put("m.bin", b"unheard")
    until(lambda: live(beta, "m", b"unheard"), "convergence by polling", timeout_s=1.0 + 5.0)


def test_redis_away_at_the_start_restarted_and_flushed(fleet: Fleet) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    alpha.put("m.bin", b"1")
    until(lambda: live(beta, "m", b"1"), "version 1")
    epoch = alpha.status()["epoch"]
    fleet.valkey.stop()
    assert beta.stop() == 0
    beta.start()
    until(beta.alive, "beta without Redis")
    assert live(beta, "m", b"1")
    until(lambda: alpha.status()["redis"] != "ok", "the status to say so")
    fleet.valkey.start()
    until(lambda: alpha.status()["redis"] == "ok" and beta.status()["redis"] == "ok", "Redis to be found again")
    alpha.put("m.bin", b"2")
    until(lambda: live(beta, "m", b"2"), "version 2")
    fleet.redis.flushall()
    until(lambda: fleet.redis.hget(fleet.key("model:m"), "head") == "2", "the catalog to be written back")
    alpha.put("m.bin", b"3")
    until(lambda: live(beta, "m", b"3"), "version 3")
    assert [v["version"] for v in json.loads(fleet.run("history", "m", "--json").stdout)] == [3, 2, 1]
    assert alpha.status()["epoch"] == epoch and alpha.status()["primary"] == "alpha"


def test_a_second_daemon_on_a_state_directory_ends_with_75_and_writes_nothing(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    second = Daemon("second", fleet.root, fleet.redis_url)
    text = second.config.read_text().replace(str(second.state), str(alpha.state))
    second.config.write_text(text)
    until((alpha.state / "fleet.json").exists, "the first entry of its term")
    alpha.signal(signal.SIGSTOP)  # so that whatever changes is the other's doing; the lock stays held
    names = sorted(str(path) for path in alpha.state.rglob("*") if "redis" not in str(path))
    assert second.start().process is not None
    assert second.process is not None and second.process.wait(15) == 75
    assert str(alpha.state) in second.log.read_text()
    assert names == sorted(str(path) for path in alpha.state.rglob("*") if "redis" not in str(path))


def test_a_pull_resumes_after_a_kill(fleet: Fleet) -> None:
    alpha = fleet.add("alpha")
    data = os.urandom(1 << 20) * 40
    alpha.put("big.bin", data)
    until(lambda: live(alpha, "big", data), "the primary's own")
    beta = fleet.add("beta", "[transfer]\nrate_limit_bytes_per_s = 8388608\n", wait=False)
    until(beta.alive, "beta")

    def pulled_bytes() -> int:
        nodes = {node["id"]: node for node in beta.status()["nodes"]}
        return int(nodes.get("beta", {}).get("transfers", {}).get("big", {}).get("done_bytes", 0))

    until(lambda: pulled_bytes() > 12_000_000, "12 MB of a pull")
    beta.kill()
    beta.config.write_text(beta.base)
    beta.start()
    until(lambda: live(beta, "big", data), "the whole")
    wire = [int(n) for n in re.findall(r'"wire_bytes": (\d+)', beta.log.read_text())]
    assert wire and wire[-1] < len(data) - 5_000_000, "what was verified before the kill is not fetched again"


class Corrupter(threading.Thread):
    """A proxy before a daemon that damages bodies of objects: flips a byte, cuts short, or hangs up."""

    def __init__(self, target_port: int, port: int) -> None:
        super().__init__(daemon=True)
        self.target_port = target_port
        self.how = ""
        self.damaged = 0
        self.listener = socket.create_server(("127.0.0.1", port))

    def run(self) -> None:
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target_port)) as server:
            head = b""
            while b"\r\n\r\n" not in head:
                got = client.recv(65536)
                if not got:
                    return
                head += got
            server.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            body = b""
            while got := server.recv(1 << 20):
                body += got
            if self.how and b"/v1/objects/" in head:
                self.damaged += 1
                body = body[:-1] + bytes([body[-1] ^ 1]) if self.how == "flip" else body[: len(body) - 7]
            client.sendall(body)


@pytest.mark.parametrize("how", ["flip", "short"])
def test_damaged_bodies_are_never_installed_and_the_peer_is_named(fleet: Fleet, how: str) -> None:
    port = free_port()
    alpha = fleet.add("alpha", advertise=f"http://127.0.0.1:{port}")
    proxy = Corrupter(int(alpha.url.rpartition(":")[2]), port)
    proxy.start()
    beta = fleet.add("beta")
    alpha.put("m.bin", b"good" * 1000)
    until(lambda: live(beta, "m", b"good" * 1000), "the first version through an honest proxy")
    proxy.how = how
    alpha.put("m.bin", b"better" * 1000)
    until(lambda: proxy.damaged >= 2, "two damaged answers")
    assert live(beta, "m", b"good" * 1000)
    line = until(lambda: (m := beta.status()["nodes"][1]["models"]["m"])["error"] and m, "the fault in the status")
    assert "alpha" in line["error"]
    proxy.how = ""
    until(lambda: live(beta, "m", b"better" * 1000), "the honest bytes")


def test_ctrl_c_is_clean_and_up_and_join_work_by_hand(tmp_path: Path) -> None:
    base = [sys.executable, "-u", "-m", "modelsync.cli"]
    listen = f"127.0.0.1:{free_port()}"
    up = subprocess.Popen(
        [*base, "up", str(tmp_path / "models"), "--listen", listen, "--id", "one"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        assert up.stdout is not None
        said = [up.stdout.readline() for _ in range(5)]
        url = re.search(r"modelsync join (\S+)", "".join(said))
        assert url is not None, said
        join = subprocess.Popen(
            [*base, "join", url[1], "--id", "two", "--live", str(tmp_path / "live2")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
        )  # fmt: skip
        try:
            (tmp_path / "m.bin").write_bytes(b"by hand")
            (tmp_path / "m.bin").rename(tmp_path / "models" / "m.bin")
            arrived = tmp_path / "live2" / "m" / "current" / "m.bin"
            until(lambda: arrived.exists() and arrived.read_bytes() == b"by hand", "the model on the second node")
            join.send_signal(signal.SIGINT)
            assert join.wait(10) == 0
        finally:
            join.kill()
        up.send_signal(signal.SIGINT)
        output, errors = up.communicate(timeout=10)
        assert up.returncode == 0 and "stopped" in output and "Traceback" not in errors
    finally:
        up.kill()


def test_numbered_versions_found_together_are_published_in_their_order_and_not_again(fleet: Fleet) -> None:
    alpha = Daemon("alpha", fleet.root, fleet.redis_url)
    fleet.daemons.append(alpha)
    for number in (11, 2, 1, 10):
        (alpha.models / "m" / str(number)).mkdir(parents=True)
        (alpha.models / "m" / str(number) / "w.bin").write_bytes(b"%d" % number)
    for _ in range(2):
        alpha.start()
        until(alpha.alive, "alpha")
        until(lambda: alpha.status()["primary"] and alpha.active("m") == 11, "version 11", 30)
        versions = json.loads(fleet.run("history", "m", "--json").stdout)
        assert [(v["version"], v["id"]) for v in versions] == [(11, "1-5"), (10, "1-4"), (2, "1-3"), (1, "1-2")]
        assert "refusals" not in alpha.status()["nodes"][0]
        assert alpha.stop() == 0
