"""Connections to Redis: the URL's forms, refused credentials, lost cancellations, and Sentinel followed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import exceptions as faults

from modelsync.core.errors import ConfigurationFault, MalformedMessage, RedisRefused, RedisUnavailable
from modelsync.edges.redis.connect import connect
from modelsync.edges.redis.embedded import EmbeddedRedis
from modelsync.edges.redis.faults import redis_faults


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "guarded", password="s p@ce/:é")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "h:6379",
        "redis://",
        "redis://h:99999",
        "redis://h:x",
        "redis://h/zero",
        "redis://h?socket_timeout=9",
        "redis://h?db=x",
        "sentinel://h1,h2",
        "sentinel://h1,,h3/m",
        "",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_before_anything_is_connected(url: str) -> None:
    with pytest.raises(ConfigurationFault, match=r"fleet\.redis"):
        connect(url)


def test_a_ca_file_without_tls_is_refused() -> None:
    with pytest.raises(ConfigurationFault, match="rediss://"):
        connect("redis://h", tls_ca_file="/ca.pem")


async def test_passwords_in_the_url_the_argument_and_a_file(guarded: EmbeddedRedis, tmp_path: Path) -> None:
    bare = f"redis://127.0.0.1:{guarded.port}/1"
    file = tmp_path / "password"
    file.write_text("s p@ce/:é\nmore\n")
    file.chmod(0o600)
    for client in (
        connect(guarded.url),
        connect(bare, password="s p@ce/:é"),
        connect(f"{bare}?password_file={file}"),
    ):
        assert await client.ping()
        await client.aclose()


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_refused_credentials_are_a_refusal_and_not_an_outage(
    guarded: EmbeddedRedis, password: str | None
) -> None:
    client = connect(f"redis://127.0.0.1:{guarded.port}", password=password)
    with pytest.raises(RedisRefused):
        async with redis_faults("ping"):
            await client.ping()
    await client.aclose()


async def test_a_rotated_password_is_read_again(guarded: EmbeddedRedis, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("wrong")
    client = connect(f"redis://127.0.0.1:{guarded.port}?password_file={file}")
    with pytest.raises(faults.AuthenticationError):
        await client.ping()
    file.write_text("s p@ce/:é")
    assert await client.ping()
    await client.aclose()


async def test_a_password_file_that_everyone_may_read_is_refused(guarded: EmbeddedRedis, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s p@ce/:é")
    file.chmod(0o644)
    client = connect(f"redis://127.0.0.1:{guarded.port}?password_file={file}")
    with pytest.raises(RedisRefused, match="chmod"):
        async with redis_faults("ping"):
            await client.ping()
    await client.aclose()


async def test_one_attempt_and_one_time_limit() -> None:
    accepted = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = connect(f"redis://127.0.0.1:{port}", timeout_s=0.2)
    began_s = time.monotonic()
    with pytest.raises(RedisUnavailable):
        async with redis_faults("ping"):
            await client.ping()
    assert time.monotonic() - began_s < 1 and len(accepted) == 1
    await client.aclose()
    for writer in accepted:
        writer.close()
    server.close()


@pytest.mark.parametrize(
    ("error", "translated"),
    [
        (faults.ConnectionError("x"), RedisUnavailable),
        (faults.BusyLoadingError("LOADING"), RedisUnavailable),
        (faults.TimeoutError("x"), RedisUnavailable),
        (TimeoutError(), RedisUnavailable),
        (ConnectionResetError(), RedisUnavailable),
        (faults.AuthenticationError("x"), RedisRefused),
        (faults.NoPermissionError("x"), RedisRefused),
        (faults.OutOfMemoryError("x"), RedisRefused),
        (faults.ReadOnlyError("x"), RedisRefused),
        (faults.ResponseError("WRONGTYPE"), RedisRefused),
        (faults.InvalidResponse("x"), MalformedMessage),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), MalformedMessage),
        (ValueError("x"), MalformedMessage),
    ],
)
async def test_whose_fault_an_exception_is(error: Exception, translated: type[Exception]) -> None:
    with pytest.raises(translated):
        async with redis_faults("do it"):
            raise error


async def test_a_cancellation_that_the_library_lost_is_raised() -> None:
    async def work() -> str:
        async with redis_faults("do it"):
            # as asyncio.wait_for does before Python 3.12 when the result comes in the same turn
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)
        return "went on"

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_task_may_still_tell_redis_what_it_leaves() -> None:
    told = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            async with redis_faults("release"):
                await asyncio.sleep(0)
                told.append(1)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told == [1]


# --- Sentinel -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[tuple[str, EmbeddedRedis, EmbeddedRedis]]:
    """A master, a replica, three sentinels; and a URL whose first sentinel does not exist."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on PATH to be a sentinel (Debian: apt-get install redis-sentinel)")
    master, replica = EmbeddedRedis(tmp_path / "master"), EmbeddedRedis(tmp_path / "replica")
    master.start()
    replica.start()
    _cli(replica.port, "REPLICAOF", "127.0.0.1", str(master.port))
    children, ports = [], [_free() for _ in range(3)]
    for port in ports:
        conf = tmp_path / f"sentinel-{port}.conf"
        conf.write_text(
            f"port {port}\nsentinel monitor m 127.0.0.1 {master.port} 2\nsentinel down-after-milliseconds m 500\n"
            f"sentinel failover-timeout m 3000\ndir {tmp_path}\n"
        )
        children.append(subprocess.Popen(["redis-server", str(conf), "--sentinel"], stdout=subprocess.DEVNULL))
    _until(lambda: all("num-other-sentinels\n2" in _cli(port, "SENTINEL", "MASTER", "m") for port in ports))
    _until(lambda: all("num-slaves\n1" in _cli(port, "SENTINEL", "MASTER", "m") for port in ports), 20)
    yield "sentinel://127.0.0.1:1," + ",".join(f"127.0.0.1:{port}" for port in ports) + "/m", master, replica
    for child in children:
        child.terminate()
        child.wait()
    replica.stop()
    master.stop()


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cli(port: int | None, *words: str) -> str:
    argv = ["redis-cli", "-p", str(port), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def _until(done: object, within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


async def test_sentinel_is_followed_when_the_master_dies(
    sentinels: tuple[str, EmbeddedRedis, EmbeddedRedis],
) -> None:
    url, master, replica = sentinels
    client = connect(url, timeout_s=0.3)
    assert await client.set("k", "before")
    await asyncio.to_thread(_until, lambda: _cli(replica.port, "GET", "k").strip() == "before")
    master.stop()
    deadline_s = time.monotonic() + 20
    while True:
        try:
            async with redis_faults("set"):
                await client.set("k", "after")
            break
        except RedisUnavailable:
            assert time.monotonic() < deadline_s, "no new master was followed"
            await asyncio.sleep(0.1)
    assert _cli(replica.port, "GET", "k").strip() == "after"
    await client.aclose()


async def test_a_master_that_became_a_replica_under_an_open_connection_is_left(
    sentinels: tuple[str, EmbeddedRedis, EmbeddedRedis],
) -> None:
    url, master, replica = sentinels
    client = connect(url, timeout_s=0.3)
    assert await client.set("k", "before")
    _cli(int(url.split(":")[3].split(",")[0]), "SENTINEL", "FAILOVER", "m")
    await asyncio.to_thread(_until, lambda: "master" in _cli(replica.port, "ROLE"), 20.0)
    await asyncio.to_thread(_until, lambda: "slave" in _cli(master.port, "ROLE"), 20.0)
    deadline_s = time.monotonic() + 10
    while True:
        try:
            async with redis_faults("set"):
                await client.set("k", "after")
            break
        except RedisUnavailable:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)
    assert _cli(replica.port, "GET", "k").strip() == "after"
    await client.aclose()


async def test_no_sentinel_is_an_outage() -> None:
    client = connect("sentinel://127.0.0.1:1,127.0.0.1:2/m", timeout_s=0.3)
    with pytest.raises(RedisUnavailable, match="no sentinel knows"):
        async with redis_faults("ping"):
            await client.ping()
    await client.aclose()
