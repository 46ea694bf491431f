"""Redis under three real Sentinels: its master dies or sleeps while versions are published, and the daemons follow."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.integration.daemons import FLEET, Daemon, free_port, until
from tests.integration.terms import QUICK_LEASE, Ledger, in_step

from modelsync.edges.redis.embedded import server_binary

MASTER = "the-master"
RESUMED_WITHIN_S = 30.0
SENTINEL_CONF = """port {port}
bind 127.0.0.1
dir {dir}
sentinel monitor {master} 127.0.0.1 {redis} 2
sentinel down-after-milliseconds {master} 1000
sentinel failover-timeout {master} 5000
"""


class Watched:
    """Three Redis servers, the first of them master, and three Sentinels."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._program = shutil.which("redis-server") or str(server_binary())
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self._sentinels: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        ports = [free_port() for _ in range(6)]
        for port in ports[:3]:
            directory = self._root / str(port)
            directory.mkdir()
            words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
            words += [] if port == ports[0] else ["--replicaof", "127.0.0.1", str(ports[0])]
            self.servers[port] = self._run(port, *words)
        replicated = [redis.Redis(port=port) for port in ports[1:3]]
        until(lambda: all(_linked(server) for server in replicated), "the replication")
        for port in ports[3:]:
            directory = self._root / str(port)
            directory.mkdir()
            conf = directory / "sentinel.conf"
            conf.write_text(SENTINEL_CONF.format(port=port, dir=directory, master=MASTER, redis=ports[0]))
            self._sentinels[port] = self._run(port, str(conf), "--sentinel")
        until(lambda: all(self._sees_all(port) for port in self._sentinels), "the sentinels to know each other", 30)

    def _run(self, port: int, *words: str) -> subprocess.Popen[bytes]:
        with (self._root / f"{port}.log").open("wb") as log:
            return subprocess.Popen([self._program, *words], stdout=log, stderr=log)

    def _sees_all(self, port: int) -> bool:
        with contextlib.suppress(redis.RedisError):
            state = redis.Redis(port=port, decode_responses=True).sentinel_master(MASTER)
            return state["num-other-sentinels"] == 2 and state["num-slaves"] == 2
        return False

    @property
    def url(self) -> str:
        return f"sentinel://{','.join(f'127.0.0.1:{port}' for port in self._sentinels)}/{MASTER}"

    def master(self) -> int:
        """Its port, as most sentinels have it."""
        said = [redis.Redis(port=port).sentinel_get_master_addr_by_name(MASTER) for port in self._sentinels]
        ports = [int(address[1]) for address in said if address]
        return max(set(ports), key=ports.count)

    def close(self) -> None:
        for process in (*self._sentinels.values(), *self.servers.values()):
            process.kill()
            process.wait(10)


def _linked(server: redis.Redis) -> bool:
    with contextlib.suppress(redis.RedisError):
        return server.info("replication")["master_link_status"] == "up"  # type: ignore[no-any-return,index]
    return False


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def daemons(watched: Watched, tmp_path: Path) -> Iterator[list[Daemon]]:
    made = [Daemon(name, tmp_path, watched.url, QUICK_LEASE) for name in ("alpha", "beta", "gamma")]
    try:
        for daemon in made:
            daemon.start()
        until(lambda: in_step(made), "a fleet in step", 60)
        yield made
    finally:
        for daemon in made:
            daemon.end()


class Publishing(threading.Thread):
    """Publishes through whoever takes it until it is told to stop, and remembers when it was accepted."""

    def __init__(self, ledger: Ledger, daemons: list[Daemon]) -> None:
        super().__init__(daemon=True)
        self.times_s: list[float] = []
        self.stopping = threading.Event()
        self._ledger = ledger
        self._daemons = daemons

    def run(self) -> None:
        while not self.stopping.is_set():
            self._ledger.await_accepted(self._daemons, "looped", os.urandom(30), timeout_s=2 * RESUMED_WITHIN_S)
            self.times_s.append(time.monotonic())
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "sleeps and comes back writable"])
def test_a_failover_while_publishing(watched: Watched, daemons: list[Daemon], number: signal.Signals) -> None:
    ledger = Ledger()
    publishing = Publishing(ledger, daemons)
    publishing.start()
    until(lambda: len(publishing.times_s) > 5, "some versions")
    old = watched.master()
    at_s = time.monotonic()
    watched.servers[old].send_signal(number)
    until(lambda: watched.master() != old, "another master", RESUMED_WITHIN_S)
    watched.servers[old].send_signal(signal.SIGCONT)  # awake again: until it is told otherwise, it takes writes
    until(lambda: publishing.times_s[-1] > at_s + 1.5, "publishing to resume", RESUMED_WITHIN_S)
    resumed_s = next(time_s for time_s in publishing.times_s if time_s > at_s + 1.5) - at_s
    time.sleep(3.0)
    publishing.stopping.set()
    publishing.join(30)
    print(f"publishing resumed {resumed_s:.1f} s after the master was lost")
    assert resumed_s < RESUMED_WITHIN_S
    new = redis.Redis(port=watched.master(), decode_responses=True)
    last = ledger.accepted[-1]
    head = f"modelsync:{{{FLEET}}}:model:looped"
    until(lambda: new.hget(head, "head") == str(last[1]), "the new master to know what was accepted", RESUMED_WITHIN_S)
    until(lambda: in_step(daemons), "a fleet in step", 30)
    for daemon in daemons:
        until(lambda d=daemon: d.active("looped") == last[1], "the last version everywhere")
    ledger.check(new, daemons)
