"""Daemons as real processes over a real Valkey, for tests: what an operator would have, on one machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from modelsync.edges.redis.embedded import EmbeddedRedis, lasting_port

FLEET = "test"


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Wait for something to hold; returns what it returned."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.01)
    return found


def free_port() -> int:
    """A port that is free, and the one two above it too: `up` puts its embedded Redis there."""
    while True:
        port = lasting_port("127.0.0.1")
        with socket.socket() as after, contextlib.suppress(OSError, OverflowError):
            after.bind(("127.0.0.1", port + 2))
            return port


class Daemon:
    """One modelsyncd with directories and a configuration file of its own."""

    def __init__(
        self,
        name: str,
        root: Path,
        redis_url: str,
        sections: str = "",
        advertise: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.root = root / name
        self.models, self.live, self.state = self.root / "models", self.root / "live", self.root / "state"
        self.views = self.root / "views"
        self.log, self.config = self.root / "log", self.root / "modelsync.toml"
        self.models.mkdir(parents=True)
        self.url = f"http://{host}:{free_port()}"
        self.base = (
            f'[fleet]\nname = "{FLEET}"\nredis = "{redis_url}"\npoll_s = 1.0\n'
            f'[node]\nid = "{name}"\nlisten = "{self.url.removeprefix("http://")}"\n'
            + (f'advertise = "{advertise}"\n' if advertise else "")
            + f'state_dir = "{self.state}"\nlive_dir = "{self.live}"\nview_dir = "{self.views}"\n'
            f'[models]\nwatch = "{self.models}"\nsettle_s = 0.3\n'
        )
        self.config.write_text(self.base + sections)
        self.config.chmod(0o600)  # a Redis URL may hold a password, and then nobody else may read the file
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "modelsync.main", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self

    def alive(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2):
                return True
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/v1/status", timeout=5) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def tree(self, model: str) -> Path | None:
        """What `current` means now."""
        try:
            link = self.live / model / "current"
            return (link.parent / os.readlink(link)).resolve()
        except OSError:
            return None

    def active(self, model: str) -> int | None:
        """The version that this node says it runs."""
        node = next((n for n in self.status()["nodes"] if n["id"] == self.name), {"models": {}})
        line = node["models"].get(model, {})
        return line.get("active")

    def head(self, model: str) -> int:
        """The newest version that was published; 0: none."""
        return next((int(m["head"] or 0) for m in self.status()["models"] if m["name"] == model), 0)

    def put(self, name: str, data: bytes) -> None:
        """A file renamed into the models directory."""
        beside = self.root / "beside"
        beside.write_bytes(data)
        beside.rename(self.models / name)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)

    def end(self) -> None:
        """SIGKILL, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def tail(self) -> str:
        return self.log.read_text()[-2000:]

    def stop(self, timeout_s: float = 15) -> int:
        """SIGTERM and its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(timeout_s)


class Fleet:
    """A Valkey and daemons; the first is primary before the others start. Stopped at the end, whatever happened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.valkey = EmbeddedRedis(root / "valkey")
        self.redis_url = self.valkey.start()
        self.daemons: list[Daemon] = []

    def add(
        self, name: str, sections: str = "", *, wait: bool = True, redis_url: str = "", advertise: str = ""
    ) -> Daemon:
        daemon = Daemon(name, self.root, redis_url or self.redis_url, sections, advertise).start()
        self.daemons.append(daemon)
        if wait:
            try:
                until(daemon.alive, f"{name} to answer")
                until(lambda: daemon.status()["primary"], "a primary")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{daemon.log.read_text()[-3000:]}") from error
        return daemon

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url, decode_responses=True)

    def key(self, name: str) -> str:
        return f"modelsync:{{{FLEET}}}:{name}"

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the command line."""
        command = [sys.executable, "-m", "modelsync.cli", "--redis", self.redis_url, "--fleet", FLEET, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.end()
        self.valkey.stop()


def sha256_of(root: Path) -> dict[str, str]:
    """Every regular file below a directory, by its path; SHA-256, so that it is not our own hash that agrees."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
