"""``modelsyncd --release`` after a kill: the lease is given back, at once, over every plain way to Redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.integration.daemons import FLEET, Daemon, until

from modelsync.edges.redis.embedded import EmbeddedRedis

LEASE = f"modelsync:{{{FLEET}}}:lease"
PASSWORD = "for tests: @/only"
SLOW_TO_IMPORT = ("redis", "asyncio", "aiohttp", "structlog", "blake3", "watchdog")


@pytest.fixture(params=["port", "password", "password file", "socket", "database"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, redis.Redis]]:
    """A URL that daemons use, and a client that sees what they see."""
    asks = request.param in ("password", "password file")
    socket = tmp_path / "redis.sock" if request.param == "socket" else None
    server = EmbeddedRedis(tmp_path / "valkey", password=PASSWORD if asks else None, unix_socket=socket)
    url = server.start()
    client = redis.Redis.from_url(url, decode_responses=True)
    if request.param == "password file":
        secret = "one-line-of-ascii"
        (tmp_path / "password").write_text(f"{secret}\n")
        (tmp_path / "password").chmod(0o400)
        client.execute_command("ACL", "SETUSER", "daemon", "on", f">{secret}", "~*", "&*", "+@all")
        url = f"redis://daemon@127.0.0.1:{server.port}/0?password_file={tmp_path / 'password'}"
    elif request.param == "database":
        url = url.removesuffix("/0") + "/3"
        client = redis.Redis.from_url(url, decode_responses=True)
    yield url, client
    server.stop()


def released(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words, "-m", "modelsync.main", "--config", str(daemon.config), "--release"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_a_killed_daemon_gives_its_lease_back(way: tuple[str, redis.Redis], tmp_path: Path) -> None:
    url, client = way
    heard = client.pubsub()
    heard.subscribe(f"modelsync:{{{FLEET}}}:events")
    daemon = Daemon("alpha", tmp_path, url).start()
    try:
        until(lambda: client.hget(LEASE, "state") == "held", f"the lease\n{daemon.tail()}")
        alive = released(daemon)
        assert alive.returncode == 75 and client.hget(LEASE, "state") == "held", "of a living daemon it is left alone"
        daemon.kill()
        done = released(daemon, "-X", "importtime")
        assert done.returncode == 0, done.stderr
        assert client.hget(LEASE, "state") == "released"
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not imported.intersection(SLOW_TO_IMPORT), "a fleet without primary waits for these imports"
        until(lambda: "lease.released" in str((heard.get_message() or {}).get("data")), "the others to be told")
        client.hset(LEASE, mapping={"state": "held", "nonce": "of another"})
        assert released(daemon).returncode == 0 and client.hget(LEASE, "state") == "held", "another's lease is not ours"
    finally:
        daemon.end()


def test_a_redis_that_refuses_or_is_away_is_said(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "valkey")
    daemon = Daemon("alpha", tmp_path, server.start()).start()
    client = redis.Redis.from_url(server.url, decode_responses=True)
    try:
        until(lambda: client.hget(LEASE, "state") == "held", "the lease")
        until((daemon.state / "fleet.json").exists, "the grant on its own disk, and the first entry of its term")
        daemon.kill()
        client.config_set("requirepass", "changed")
        refused = released(daemon)
        assert refused.returncode != 0 and "auth" in refused.stderr and "Traceback" not in refused.stderr
        server.stop()
        away = released(daemon)
        assert away.returncode != 0 and "refused" in away.stderr.lower() and "Traceback" not in away.stderr
    finally:
        daemon.end()
        server.stop()
