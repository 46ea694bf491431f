"""A Valkey and daemons as real processes on loopback, in a directory of their own, and what the kernel says of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelsync.edges.redis.embedded import EmbeddedRedis

NAME = "bench"
START_TIMEOUT_S = 20.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait for something that is no part of a measurement."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.01)


class Daemon:
    """One modelsyncd and the directories it was given."""

    def __init__(self, name: str, root: Path, redis_url: str, sections: str, node: str = "") -> None:
        self.name = name
        self.root = root / name
        self.models, self.live, self.log = self.root / "models", self.root / "live", self.root / "log"
        self.models.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{address}"
        self.config = self.root / "modelsync.toml"
        self._base = (
            f'[fleet]\nname = "{NAME}"\nredis = "{redis_url}"\n'
            f'[node]\nid = "{name}"\nlisten = "{address}"\n'
            f'state_dir = "{self.root / "state"}"\nlive_dir = "{self.live}"\nview_dir = "{self.root / "views"}"\n'
            f'{node}[models]\nwatch = "{self.models}"\n'
        )
        self.rewrite(sections)
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "modelsync.main", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def status(self) -> dict[str, Any]:
        """The fleet as this daemon sees it; empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/v1/status", timeout=2) as response:
                found: dict[str, Any] = json.load(response)
                return found
        except OSError:
            return {}

    def current(self, model: str) -> str:
        """The tree that applications open now; empty before the first."""
        try:
            return os.readlink(self.live / model / "current")
        except OSError:
            return ""

    def memory_bytes(self, field: str) -> int:
        """``VmRSS``: resident now; ``VmHWM``: the most since the process began or ``forget_peak``."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    def forget_peak(self) -> None:
        """Let VmHWM begin again at what is resident now (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """Processor time in user and kernel mode, of all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def rewrite(self, sections: str) -> None:
        """Replace what follows in its file; most of it is taken on while it runs."""
        beside = self.config.with_suffix(".new")
        beside.write_text(self._base + sections)
        beside.rename(self.config)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


class Fleet:
    """A context: one Valkey and so many daemons, the first of them primary. Everything is removed at its end.

    Args:
        names: of the daemons.
        sections: TOML for every daemon's file; it begins within [models].
        node: by name, lines for a daemon's [node].
        root: where to work; a directory of its own below the system's temporary one if None.
    """

    def __init__(
        self, *names: str, sections: str = "", root: Path | None = None, node: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.names = names
        self.daemons: list[Daemon] = []
        self._sections, self._node = sections, node
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(prefix="modelsync-bench-", dir=root))
        self._redis = EmbeddedRedis(self.root / "valkey")
        self.redis_url = ""

    @property
    def primary(self) -> Daemon:
        return self.daemons[0]

    @property
    def replica(self) -> Daemon:
        return self.daemons[1]

    def __enter__(self) -> Fleet:
        try:
            self.redis_url = self._redis.start()
            for name in self.names:
                self.add(name)
            until(self._complete, "every daemon in every status")
        except BaseException:
            self.__exit__()
            raise
        return self

    def add(self, name: str) -> Daemon:
        """Start one more, and wait until it follows the first."""
        daemon = Daemon(name, self.root, self.redis_url, self._sections, self._node.get(name, ""))
        self.daemons.append(daemon)
        until(lambda: daemon.status().get("primary") == self.names[0], f"{name} to follow")
        return daemon

    def _complete(self) -> bool:
        return all(len(daemon.status().get("nodes", [])) == len(self.names) for daemon in self.daemons)

    def __exit__(self, *raised: object) -> None:
        if (raised and raised[0] is not None) or len(self.daemons) < len(self.names):
            for daemon in self.daemons:
                print(f"--- the end of {daemon.name}'s log\n{daemon.log.read_text()[-2000:]}", file=sys.stderr)
        for daemon in reversed(self.daemons):
            daemon.stop()
        self._redis.stop()
        shutil.rmtree(self.root, ignore_errors=True)
