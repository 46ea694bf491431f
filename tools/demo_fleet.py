"""The demonstration that tools/demo runs: real processes, real Valkey, real HTTP, a real scikit-learn model."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeClassifier

from modelsync.edges.redis.embedded import EmbeddedRedis

# scikit-learn warns when a forest predicts in a thread of ours; it is right, and no concern of this demonstration.
warnings.filterwarnings("ignore", category=UserWarning, module=r"sklearn\.utils\.parallel")

MODEL = "tumour"
NODES = ("alpha", "beta", "gamma")
BIN = Path(sys.executable).parent


def say(text: str = "") -> None:
    print(text, flush=True)


def step(number: int, text: str) -> None:
    say(f"\n{number}. {text}")


class Host:
    """One daemon: what an operator would have on one machine."""

    def __init__(self, name: str, root: Path, redis_url: str) -> None:
        self.name = name
        self.root = root / name
        self.models = self.root / "models"
        self.live = self.root / "live"
        self.log = self.root / "log"
        self.config = self.root / "modelsync.toml"
        self.process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.models.mkdir(parents=True)
        self.config.write_text(
            f"""[fleet]
name = "demo"
redis = "{redis_url}"
[node]
id = "{name}"
listen = "{self.url.removeprefix("http://")}"
state_dir = "{self.root / "state"}"
live_dir = "{self.live}"
[models]
watch = "{self.models}"
"""
        )

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [BIN / "modelsyncd", "--config", self.config]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def alive(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=1):
                return True
        except OSError:
            return False

    def current(self) -> str:
        """The tree that applications on this host open now; empty before the first."""
        try:
            return os.readlink(self.live / MODEL / "current")
        except OSError:
            return ""

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(15)


class Readers:
    """An application on every host: opens what `current` means, predicts, again and again, and counts what fails."""

    def __init__(self, hosts: list[Host], rows: Any) -> None:
        self.predictions = 0
        self.failures: list[str] = []
        self.seen: dict[str, set[str]] = {host.name: set() for host in hosts}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(host, rows), daemon=True) for host in hosts]
        for thread in self._threads:
            thread.start()

    def _read(self, host: Host, rows: Any) -> None:
        tree, model = "", None
        while not self._stop.is_set():
            try:
                now = host.current()
                if now != tree:
                    model, tree = joblib.load(host.live / MODEL / "current" / f"{MODEL}.joblib"), now
                    self.seen[host.name].add(now)
                assert model is not None
                model.predict(rows)
                self.predictions += 1
            except Exception as error:
                self.failures.append(f"{host.name}: {error!r}")
            time.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def until(condition: Any, what: str, timeout_s: float = 20.0) -> float:
    """Wait for something; returns how long it took, in milliseconds."""
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > timeout_s:
            raise SystemExit(f"demo: waited {timeout_s:g} s in vain for: {what}")
        time.sleep(0.001)
    return 1000 * (time.perf_counter() - started)


def modelsync(redis_url: str, *words: str) -> str:
    command = [BIN / "modelsync", "--redis", redis_url, "--fleet", "demo", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def status(redis_url: str) -> dict[str, Any]:
    return json.loads(modelsync(redis_url, "status", "--json"))


def put(host: Host, estimator: Any, scratch: Path) -> tuple[float, int]:
    """Save beside, rename into the models directory: how an operator would publish. Returns (time, bytes)."""
    ready = scratch / f"{MODEL}.joblib"
    joblib.dump(estimator, ready)
    size_bytes = ready.stat().st_size
    started = time.perf_counter()
    ready.rename(host.models / f"{MODEL}.joblib")
    return started, size_bytes


def live_everywhere(hosts: list[Host], before: dict[str, str], started: float) -> str:
    """Wait until `current` has changed on every host; returns the times as text."""
    arrived: dict[str, float] = {}

    def all_switched() -> bool:
        for host in hosts:
            if host.name not in arrived and host.current() != before[host.name]:
                arrived[host.name] = 1000 * (time.perf_counter() - started)
        return len(arrived) == len(hosts)

    until(all_switched, "the new version on every host")
    return ", ".join(f"{name} {arrived[name]:.0f} ms" for name in sorted(arrived))


def run(root: Path, redis: EmbeddedRedis, keep: bool) -> None:
    say("modelsync demo: one primary, two replicas, one Valkey, all real processes on this machine")
    rows, labels = load_breast_cancer(return_X_y=True)
    train_rows, test_rows, train_labels, test_labels = train_test_split(rows, labels, random_state=7)

    step(1, "Start a fleet")
    started = time.perf_counter()
    redis_url = redis.start()
    hosts = [Host(name, root, redis_url) for name in NODES]
    try:
        scenario(hosts, redis_url, root, started, (train_rows, train_labels, test_rows, test_labels))
        if keep:
            look_around(hosts, redis_url, redis)
    finally:
        if not keep:
            for host in hosts:
                host.stop()


def scenario(hosts: list[Host], redis_url: str, root: Path, started: float, data: tuple[Any, ...]) -> None:
    train_rows, train_labels, test_rows, test_labels = data
    hosts[0].start()
    until(lambda: hosts[0].alive() and status(redis_url)["primary"] == "alpha", "alpha to be primary")
    for host in hosts[1:]:
        host.start()
    until(lambda: all(host.alive() for host in hosts) and len(status(redis_url)["nodes"]) == 3, "three nodes")
    say(f"   alpha is primary, beta and gamma follow; up in {time.perf_counter() - started:.1f} s")

    step(2, "Train a model on real data and drop it into alpha's models directory")
    first = DecisionTreeClassifier(max_depth=2, random_state=7).fit(train_rows, train_labels)
    before = {host.name: host.current() for host in hosts}
    moved, size_bytes = put(hosts[0], first, root)
    times = live_everywhere(hosts, before, moved)
    accuracy = first.score(test_rows, test_labels)
    say(f"   version 1: a decision tree, {size_bytes / 1024:.0f} KiB, accuracy {accuracy:.3f}")
    say(f"   verified and live, counted from the rename: {times}")

    step(3, "Publish a better one while an application on every host predicts without a pause")
    readers = Readers(hosts, test_rows[:20])
    better = ExtraTreesClassifier(60, random_state=7).fit(train_rows, train_labels)
    before = {host.name: host.current() for host in hosts}
    moved, size_bytes = put(hosts[0], better, root)
    times = live_everywhere(hosts, before, moved)
    say(f"   version 2: extra trees, {size_bytes / 1024:.0f} KiB, accuracy {better.score(test_rows, test_labels):.3f}")
    say(f"   verified and live, counted from the rename: {times}")

    step(4, "Kill the primary (SIGKILL), and publish through whoever takes over")
    assert hosts[0].process is not None
    killed = time.perf_counter()
    hosts[0].stop(signal.SIGKILL)
    survivors = hosts[1:]
    until(lambda: status(redis_url)["primary"] in ("beta", "gamma"), "a promotion")
    primary = status(redis_url)["primary"]
    took_s = time.perf_counter() - killed
    third = ExtraTreesClassifier(90, random_state=11).fit(train_rows, train_labels)
    joblib.dump(third, root / f"{MODEL}.joblib")
    before = {host.name: host.current() for host in survivors}
    asked = time.perf_counter()
    modelsync(redis_url, "publish", MODEL, str(root / f"{MODEL}.joblib"), "--note", "after the failover")
    times = live_everywhere(survivors, before, asked)
    epoch = status(redis_url)["epoch"]
    say(f"   {primary} was promoted {took_s:.1f} s after the kill (the lease lasts 3 s), epoch {epoch}")
    say(f"   version 3, uploaded to it by `modelsync publish`: {times} (with the command's own start)")

    step(5, "alpha comes back, as a replica, and catches up")
    before = {"alpha": hosts[0].current()}
    back = time.perf_counter()
    hosts[0].start()
    live_everywhere(hosts[:1], before, back)
    say(f"   in step again {time.perf_counter() - back:.1f} s after its start")

    step(6, "Roll back, with one command and no transfer")
    before = {host.name: host.current() for host in hosts}
    asked = time.perf_counter()
    modelsync(redis_url, "rollback", MODEL)
    say(f"   version 2 live again: {live_everywhere(hosts, before, asked)} (with the command's own start)")
    readers.stop()
    for host in hosts:
        tree = host.live / MODEL / "current" / f"{MODEL}.joblib"
        assert (joblib.load(tree).predict(test_rows) == better.predict(test_rows)).all()

    say()
    say(modelsync(redis_url, "status").rstrip())
    say()
    say(modelsync(redis_url, "history", MODEL).rstrip())
    say()
    say(f"Throughout, the three applications made {readers.predictions} predictions; {len(readers.failures)} failed.")
    if readers.failures:
        raise SystemExit(f"demo: failed reads: {readers.failures[:5]}")


def look_around(hosts: list[Host], redis_url: str, redis: EmbeddedRedis) -> None:
    pids = [str(host.process.pid) for host in hosts if host.process]
    say("\nIt is still running. Look around:")
    say(f"   {BIN}/modelsync --redis {redis_url} --fleet demo status")
    say(f"   {BIN}/modelsync --redis {redis_url} --fleet demo pin {MODEL} 1")
    say(f"   redis-cli -u {redis_url} PUBLISH 'modelsync:{{demo}}:control' 'update {MODEL} 3'")
    say(f"   a browser: {hosts[1].url}/")
    say(f"   files and logs: {hosts[0].root.parent}")
    say(f"Stop it: kill {' '.join(pids)} {redis.pid}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running and say how to look around")
    keep = parser.parse_args().keep
    root = Path(tempfile.mkdtemp(prefix="modelsync-demo-"))
    redis = EmbeddedRedis(root / "valkey")
    started = time.perf_counter()
    try:
        run(root, redis, keep)
    except BaseException:
        for log in sorted(root.glob("*/log")):
            say(f"--- the end of {log.parent.name}'s log\n{log.read_text()[-1500:]}")
        raise
    finally:
        if not keep:
            redis.stop()
            shutil.rmtree(root, ignore_errors=True)
    say(f"\nDone in {time.perf_counter() - started:.0f} s." + ("" if keep else " Everything was stopped and removed."))


if __name__ == "__main__":
    main()
