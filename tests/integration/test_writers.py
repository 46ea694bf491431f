"""Who must never write: nodes configured not to, a second node with the same id, a write that comes too late."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path

import pytest
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.terms import QUICK_LEASE, TTL_S, Ledger, in_step, primary_of

import modelsync.edges.redis

PUBLISH_SCRIPT = (Path(modelsync.edges.redis.__file__).parent / "lua" / "publish.lua").read_bytes()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def add(fleet: Fleet, name: str, node_keys: str = "", root: Path | None = None, redis_url: str = "") -> Daemon:
    """A daemon with more keys in its [node] section."""
    daemon = Daemon(name, root or fleet.root, redis_url or fleet.redis_url, QUICK_LEASE)
    daemon.config.write_text(daemon.config.read_text().replace("[models]", f"{node_keys}\n[models]"))
    fleet.daemons.append(daemon.start())
    until(daemon.alive, f"{name} to answer\n{daemon.tail()}")
    return daemon


def test_replicas_by_configuration_are_never_promoted(fleet: Fleet) -> None:
    ledger = Ledger()
    alpha = add(fleet, "alpha")
    until(lambda: primary_of([alpha]), "the first primary")
    beta, gamma = add(fleet, "beta", 'role = "replica"'), add(fleet, "gamma", "nofailover = true")
    until(lambda: in_step(fleet.daemons), "a fleet in step")
    ledger.publish(alpha, "m", b"1")
    epoch = alpha.status()["epoch"]
    refused = fleet.run("switchover", "gamma", check=False)
    assert refused.returncode == 6 and "may not be primary" in refused.stderr
    alpha.kill()
    end_s = time.monotonic() + 3 * TTL_S
    while time.monotonic() < end_s:
        assert [ledger.publish(daemon, "m", b"x")[0] in (307, 503) for daemon in (beta, gamma)] == [True, True]
        assert {daemon.status()["epoch"] for daemon in (beta, gamma)} == {epoch}
        time.sleep(0.2)
    alpha.start()
    assert ledger.await_accepted([alpha], "m", b"2")["version"] == 2
    ledger.check(fleet.redis, fleet.daemons)


def test_two_nodes_with_one_id_never_write_in_one_epoch(fleet: Fleet, tmp_path: Path) -> None:
    """A copied configuration: whatever the two do to each other, an epoch has one grant and a version one content."""
    ledger = Ledger()
    alpha = add(fleet, "alpha")
    ledger.await_accepted([alpha], "m", b"1")
    twin = add(fleet, "alpha", root=tmp_path / "twin")
    nonces: dict[str, set[str]] = {}
    for number in range(40):
        for daemon in (alpha, twin):
            with contextlib.suppress(OSError):
                ledger.publish(daemon, "m", b"%s %d" % (daemon.url.encode(), number), timeout_s=2)
        lease = fleet.redis.hgetall(fleet.key("lease"))
        nonces.setdefault(lease["epoch"], set()).add(lease["nonce"])
        time.sleep(0.1)
    alpha.kill()
    ledger.await_accepted([twin], "m", b"the twin's", timeout_s=10)
    assert all(len(found) == 1 for found in nonces.values()), nonces
    ledger.check(fleet.redis, [alpha, twin])


class Holding:
    """A proxy before Redis that keeps back the next publish, and all that follows it on that connection, until told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.wanted, self.caught, self.go_on = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            redis = socket.create_connection(("127.0.0.1", self._port))
            for source, target, held in ((client, redis, True), (redis, client, False)):
                threading.Thread(target=self._pump, args=(source, target, held), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, held: bool) -> None:
        sha = sha1(PUBLISH_SCRIPT).hexdigest().encode()
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if held and self.wanted.is_set() and (sha in data or PUBLISH_SCRIPT[:200] in data):
                    self.wanted.clear()
                    self.caught.set()
                    self.go_on.wait(30)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_publish_that_reaches_redis_after_the_lease_was_lost(fleet: Fleet) -> None:
    """The primary sleeps between its own check and Redis's: the script that arrives late is refused there."""
    ledger = Ledger()
    assert fleet.valkey.port is not None
    proxy = Holding(fleet.valkey.port)
    alpha = add(fleet, "alpha", redis_url=f"redis://127.0.0.1:{proxy.port}/0")
    until(lambda: primary_of([alpha]), "the first primary")
    others = [add(fleet, name) for name in ("beta", "gamma")]
    until(lambda: in_step(fleet.daemons), "a fleet in step")
    ledger.publish(alpha, "m", b"1")
    epoch = alpha.status()["epoch"]
    proxy.wanted.set()
    outcome: list[int] = []
    late = threading.Thread(target=lambda: outcome.append(ledger.publish(alpha, "m", b"late", timeout_s=60)[0]))
    late.start()
    assert proxy.caught.wait(10)
    alpha.signal(19)  # SIGSTOP: neither renewals nor answers
    answer = ledger.await_accepted(others, "m", b"2")
    assert answer["version"] == 2 and int(answer["id"].partition("-")[0]) > epoch
    proxy.go_on.set()
    time.sleep(0.5)  # the script runs now, under the old grant
    assert fleet.redis.hget(fleet.key("model:m"), "head") == "2"
    alpha.signal(18)
    late.join(60)
    assert outcome and outcome[0] not in (200, 201), outcome
    for daemon in fleet.daemons:
        until(lambda d=daemon: d.active("m") == 2, f"version 2 on {daemon.name}")
    ledger.check(fleet.redis, fleet.daemons)
