"""Gates on real daemons: what does not pass never runs, or is taken back; it is remembered, and says why."""

from __future__ import annotations

import http.server
import json
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.marked import alive, marked

MARK = marked(0)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


class Server:
    """Stands for an inference server: answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.well = True
        self.refuse: set[str] = set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.command, self.path, json.loads(body) if body[:1] in b"{[" and body else body))
                good = outer.well and not any(part in self.path or part in body.decode() for part in outer.refuse)
                self.send_response(200 if good else 503)
                self.end_headers()
                self.wfile.write(b"{}" if good else b"no")

            do_GET = do_POST = answer

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def line(daemon: Daemon, model: str = "m") -> dict[str, Any]:
    nodes = daemon.status()["nodes"]  # it may not have reported yet
    node = next((n for n in nodes if n["id"] == daemon.name), {"models": {}})
    found: dict[str, Any] = node["models"].get(model, {})
    return found


def content(daemon: Daemon, model: str = "m") -> list[bytes]:
    tree = daemon.tree(model)
    return [path.read_bytes() for path in sorted(tree.iterdir())] if tree else []


def rejected(daemon: Daemon, number: int) -> str:
    found = until(lambda: line(daemon).get("rejected", {}).get(str(number)), f"version {number} to be rejected")
    return str(found)


def test_a_cut_pickle_is_turned_down_before_the_swap_and_not_tried_again(fleet: Fleet, tmp_path: Path) -> None:
    alpha = fleet.add("alpha", '[model.m]\nvalidate = { check = "structure" }\n')
    good, better = pickle.dumps(list(range(1000))), pickle.dumps(list(range(2000)))
    alpha.put("m.pkl", good)
    until(lambda: content(alpha) == [good], "version 1")
    events = fleet.redis.pubsub()
    events.subscribe(fleet.key("events"))
    alpha.put("m.pkl", better[:-20])
    assert "cut short" in rejected(alpha, 2)
    assert content(alpha) == [good] and line(alpha)["state"] == "rejected" and line(alpha)["active"] == 1
    heard = [json.loads(m["data"]) for m in iter(lambda: events.get_message(timeout=1), None) if m["type"] == "message"]
    told = [event for event in heard if event["event"] == "version.rejected"]
    assert [(event["version"], event["node"]) for event in told] == [(2, "alpha")] and "cut short" in told[0]["reason"]
    # neither by itself nor by a restart nor by what others change; only when somebody asks
    marks = alpha.log.read_text().count("version.rejected")
    alpha.kill()
    alpha.start()
    until(alpha.alive, "alpha again")
    until(lambda: alpha.status()["primary"], "a primary")
    fleet.run("alias", "m", "stable", "1")
    until(lambda: line(alpha).get("state") == "rejected", "the rejection to be known again")
    time.sleep(1)
    assert alpha.log.read_text().count("version.rejected") == marks
    fleet.run("update", "m", "2")
    until(lambda: alpha.log.read_text().count("version.rejected") == marks + 1, "another try, since it was asked for")
    alpha.put("m.pkl", better)
    until(lambda: content(alpha) == [better] and line(alpha)["state"] == "active", "version 3")


def test_the_operators_command_and_what_it_may_not_do(fleet: Fleet, tmp_path: Path) -> None:
    check = tmp_path / "check"
    check.write_text(
        f"#!/bin/sh\nkill -9 $PPID; kill -9 -1\nsetsid sleep {MARK} &\n"
        f"case $(cat $MODELSYNC_TREE/m.bin) in\nhang) sleep {MARK};;\nflood) yes {MARK};;\n"
        'bad) echo "no good: $MODELSYNC_VERSION" >&2; exit 4;;\nesac\n'
    )
    check.chmod(0o755)
    alpha = fleet.add("alpha", f'[model.m]\nvalidate = {{ command = ["{check}"], timeout_s = 1 }}\n')
    process = alpha.process
    alpha.put("m.bin", b"good")
    until(lambda: content(alpha) == [b"good"], "version 1")
    for number, (data, reason) in enumerate(
        [(b"bad", "no good: 2"), (b"hang", "longer than 1 s"), (b"flood", "longer than 1 s")], start=2
    ):
        alpha.put("m.bin", data)
        assert reason in rejected(alpha, number)
        assert content(alpha) == [b"good"]
    assert process is not None and process.poll() is None, "it killed nobody"
    assert not alive(MARK), "and left nobody behind"


def test_a_validator_that_eats_memory_and_hooks_that_misbehave(fleet: Fleet, tmp_path: Path) -> None:
    """A hook runs after the swap: whatever it does, what ran before runs again, and the daemon lives."""
    eater, hook = tmp_path / "eater", tmp_path / "hook"
    eater.write_text(
        "#!/bin/sh\ncase $(cat $MODELSYNC_TREE/m.bin) in\n"
        f"eat) exec {sys.executable} -c 'x = bytearray(1 << 30); print(sum(x))';;\nesac\n"
    )
    hook.write_text(
        f"#!/bin/sh\ncase $(cat $MODELSYNC_TREE/m.bin) in\nhang) trap '' TERM INT HUP; sleep {MARK};;\n"
        f"fork) while :; do setsid sleep {MARK} & done;;\nflood) yes {MARK} >&2;;\n"
        "kill) kill -9 $PPID; kill -9 -1; exit 9;;\nesac\n"
    )
    for script in (eater, hook):
        script.chmod(0o755)
    alpha = fleet.add(
        "alpha",
        f'[model.m]\nvalidate = {{ command = ["{eater}"], timeout_s = 20, memory_bytes = {256 << 20} }}\n'
        f'hooks = [{{ kind = "command", command = ["{hook}"], timeout_s = 1 }}]\n',
    )
    alpha.put("m.bin", b"good")
    until(lambda: line(alpha).get("state") == "active", "version 1")
    for number, data in enumerate((b"eat", b"hang", b"fork", b"flood", b"kill"), start=2):
        alpha.put("m.bin", data)
        assert rejected(alpha, number), data
        until(lambda: content(alpha) == [b"good"], "version 1 again")
    assert alpha.process is not None and alpha.process.poll() is None, "the daemon lives"
    until(lambda: not alive(MARK), "nobody is left")
    alpha.put("m.bin", b"better")
    until(lambda: content(alpha) == [b"better"] and line(alpha)["state"] == "active", "the next good version")


def test_a_version_that_its_server_refuses_is_rolled_back_and_the_old_one_loaded_again(
    fleet: Fleet, server: Server
) -> None:
    hook = f'{{ kind = "url", url = "{server.url}/load", body = \'{{"v": {{version}}, "t": "{{tree}}"}}\' }}'
    alpha = fleet.add("alpha", f"[model.m]\nhooks = [{hook}]\n")
    alpha.put("m.bin", b"one")
    until(lambda: line(alpha).get("state") == "active", "version 1")
    server.refuse.add('"v": 2,')
    alpha.put("m.bin", b"two")
    assert "503" in rejected(alpha, 2)
    until(lambda: [b["v"] for _, path, b in server.asked if path == "/load"] == [1, 2, 1], "1, then 2, then 1 again")
    assert content(alpha) == [b"one"] and line(alpha)["active"] == 1
    assert Path(server.asked[-1][2]["t"]).joinpath("m.bin").read_bytes() == b"one"
    alpha.put("m.bin", b"three")
    until(lambda: content(alpha) == [b"three"] and line(alpha)["state"] == "active", "version 3")


def test_a_version_that_makes_its_server_ill_is_taken_back_within_two_seconds(fleet: Fleet, server: Server) -> None:
    health = f'{{ url = "{server.url}/ready", ready_s = 5, window_s = 60, interval_s = 0.1 }}'
    alpha = fleet.add("alpha", f"[model.m]\nhealth = {health}\n")
    alpha.put("m.bin", b"one")
    until(lambda: content(alpha) == [b"one"], "version 1")
    alpha.put("m.bin", b"two")  # the first one's window is over: something else is wanted
    until(lambda: content(alpha) == [b"two"] and line(alpha)["state"] == "settling", "version 2 on trial")
    server.well = False
    began_s = time.monotonic()
    until(lambda: content(alpha) == [b"one"], "the rollback")
    took_s = time.monotonic() - began_s
    assert "unhealthy" in rejected(alpha, 2)
    assert took_s < 2.0, took_s


def test_a_daemon_that_dies_during_the_trial_finishes_it(fleet: Fleet, server: Server) -> None:
    health = f'{{ url = "{server.url}/ready", ready_s = 1, window_s = 60, interval_s = 0.1 }}'
    alpha = fleet.add("alpha", f"[model.m]\nhealth = {health}\n")
    alpha.put("m.bin", b"one")
    until(lambda: content(alpha) == [b"one"], "version 1")
    alpha.put("m.bin", b"two")
    until(lambda: content(alpha) == [b"two"] and line(alpha)["state"] == "settling", "version 2 on trial")
    alpha.signal(signal.SIGKILL)
    server.well = False
    assert alpha.process is not None
    alpha.process.wait(10)
    alpha.start()
    until(lambda: content(alpha) == [b"one"], "the rollback after the restart")
    until(alpha.alive, "alpha")
    until(lambda: "not ready" in line(alpha).get("rejected", {}).get("2", ""), "the reason")
