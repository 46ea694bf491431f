"""Preload, then fork: children share what the parent loaded and follow switches by themselves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import joblib
import numpy
import pytest
from sklearn.linear_model import LinearRegression
from tests.livedir import LiveDir

ROWS = numpy.arange(10.0).reshape(-1, 1)
ROOT = Path(__file__).parents[2]


def publish(directory: LiveDir, root: Path, factor: float) -> None:
    joblib.dump(LinearRegression().fit(ROWS, ROWS[:, 0] * factor), root / "m.joblib")
    directory.publish("m", root / "m.joblib")


class Server:
    """A preforking server: its program prints a line for each question on its standard input."""

    def __init__(self, program: str, live: Path, *words: str) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(live), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> int:
        try:
            return self.process.wait(20)
        finally:
            self.process.send_signal(signal.SIGKILL)


PRELOADING = """
    import os, sys, time
    from modelsync.client import preload

    client = preload(sys.argv[1], ["m"], trust_pickle=["m"])
    handle = client.load("m")
    print("parent", handle.version, client.stats()["client"]["watching"], flush=True)
    sys.stdin.readline()

    def child(number):
        loads = client.stats()["models"]["m"]["1"]["loads"]
        deadline = time.monotonic() + 15
        while handle.version != 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        answer = round(handle.predict([[2.0]])[0], 6)
        os.write(1, f"child {handle.version} {answer} {loads} {client.stats()['client']['watching']}\\n".encode())
        client.close()
        os._exit(0)

    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            child(number)
        children.append(pid)
    print("forked", handle.version, flush=True)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    late = os.fork()
    if late == 0:
        child(3)
    assert os.waitpid(late, 0)[1] == 0
    print("parent", handle.version, round(handle.predict([[2.0]])[0], 6), flush=True)
"""


def test_children_share_what_was_preloaded_and_follow_by_themselves(tmp_path: Path) -> None:
    directory = LiveDir(tmp_path)
    publish(directory, tmp_path, 3)
    server = Server(PRELOADING, directory.live)
    assert server.line() == "parent 1 off"
    server.go_on()
    assert server.line() == "forked 1"
    publish(directory, tmp_path, 5)
    assert [server.line() for _ in range(3)] == ["child 2 10.0 1 inotify"] * 3
    assert server.line() == "child 2 10.0 1 inotify"  # forked after the switch: it caught up
    assert server.line() == "parent 1 6.0"
    assert server.end() == 0


UNFORKED = """
    import sys, time
    from modelsync.client import preload

    client = preload(sys.argv[1], ["m"], trust_pickle=["m"])
    handle = client.load("m")
    print(client.stats()["client"]["watching"], flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "lease":
        with handle.lease():
            pass
    elif sys.argv[2] == "evicted":
        client.unload("m")
        handle.predict([[2.0]])
    else:
        handle.predict([[2.0]])
    deadline = time.monotonic() + 15
    while handle.version != 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    for _ in range(20):
        handle.predict([[2.0]])
    counted = client.stats()["models"]["m"]
    print(handle.version, client.stats()["client"]["watching"], counted["3"]["hits"], flush=True)
    client.close()
"""


@pytest.mark.parametrize("asked", ["predict", "lease", "evicted"])
def test_a_worker_that_nobody_forks_follows_from_its_first_request_on(tmp_path: Path, asked: str) -> None:
    directory = LiveDir(tmp_path)
    publish(directory, tmp_path, 3)
    server = Server(UNFORKED, directory.live, asked)
    assert server.line() == "off"
    publish(directory, tmp_path, 4)
    server.go_on()
    if asked != "evicted":
        time.sleep(0.2)
    publish(directory, tmp_path, 5)
    assert server.line() == "3 inotify 20"
    assert server.end() == 0


FORKING_WHILE_BUSY = """
    import os, signal, sys, threading, time
    from modelsync.client import Client

    client = Client(sys.argv[1], trust_pickle="all")
    handle = client.load("m")
    ended = False

    def ask():
        while not ended:
            handle.predict([[2.0]])
            client.unload("m")

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(20):
        time.sleep(0.02)
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            assert round(handle.predict([[2.0]])[0], 6) == 6.0
            assert client.load("m").version == 1
            os._exit(0)
        if os.waitpid(pid, 0)[1] != 0:
            print("a child hung or failed", flush=True)
            os._exit(1)
    ended = True
    print("done", flush=True)
"""


def test_a_fork_in_the_middle_of_loads_leaves_a_child_that_works(tmp_path: Path) -> None:
    directory = LiveDir(tmp_path)
    publish(directory, tmp_path, 3)
    server = Server(FORKING_WHILE_BUSY, directory.live)
    assert server.line() == "done"
    assert server.end() == 0


GUNICORN = """
    from modelsync.client import preload
    import os
    client = preload(os.environ["LIVE"], trust_pickle="all")
    handle = client.load("m")

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{os.getpid()} {handle.version}".encode()]
"""


def test_under_gunicorn_preload(tmp_path: Path) -> None:
    directory = LiveDir(tmp_path)
    publish(directory, tmp_path, 3)
    (tmp_path / "served.py").write_text(textwrap.dedent(GUNICORN))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}", "LIVE": str(directory.live)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-b", f"127.0.0.1:{port}", "served:app"]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=(tmp_path / "log").open("w"))
    try:

        def answer() -> tuple[str, str]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                pid, version = response.read().decode().split()
                return pid, version

        deadline_s = time.monotonic() + 15
        while time.monotonic() < deadline_s:
            try:
                assert answer()[1] == "1"
                break
            except OSError:
                time.sleep(0.1)
        publish(directory, tmp_path, 5)
        seen: dict[str, str] = {}
        while time.monotonic() < deadline_s and (len(seen) < 2 or set(seen.values()) != {"2"}):
            pid, version = answer()
            seen[pid] = version
        assert len(seen) == 2 and set(seen.values()) == {"2"}
    finally:
        server.terminate()
        server.wait(10)
