"""Bodies that end early: the receiver sees it, and the journal names this host's disk but not a receiver that left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from pathlib import Path

import pytest
from tests.integration.http_fixture import FakeNode, serving

from modelsync.edges.http.sending import Sender

SIZE = 64 << 20


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


async def begun(port: int, digest: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A response whose head was read, and as little of its body as the buffers allow."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    writer.write(f"GET /v1/objects/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_an_object_cut_short_while_it_is_sent_never_looks_whole(
    node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """The receiver must see a broken connection, not a short body that its length confirms."""
    digest = node.hold(b"x" * SIZE)
    async with serving(node, idle_timeout_s=60.0) as server:
        reader, writer = await begun(server.port, digest)
        with node.objects[digest].open("r+b") as file:
            file.truncate(1000)
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(reader.read(1 << 20), 5):
                received += len(data)
        writer.close()
    assert received < SIZE
    assert "were left" in caplog.text


async def test_a_receiver_that_leaves_fills_no_journal(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    digest = node.hold(b"x" * SIZE)
    async with serving(node, idle_timeout_s=60.0) as server:
        for _ in range(3):
            _, writer = await begun(server.port, digest)
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, no FIN
            writer.transport.abort()
        await asyncio.sleep(0.3)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH])
async def test_a_receiver_without_power_fills_no_journal(
    node: FakeNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nobody says that it has gone: the kernel gives the connection up, by an error of its own."""

    async def given_up(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Sender, "send", given_up)
    digest = node.hold(b"x" * SIZE)
    async with serving(node, idle_timeout_s=60.0) as server:
        reader, _ = await begun(server.port, digest)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_disk_that_fails_is_named(
    node: FakeNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failed(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Sender, "send", failed)
    digest = node.hold(b"x" * SIZE)
    async with serving(node, idle_timeout_s=60.0) as server:
        reader, _ = await begun(server.port, digest)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
    assert "Input/output error" in caplog.text
