"""Bodies that leave in threads of their own: all sizes around what the event loop sends itself, and how they end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import aiohttp
import pytest
from tests.integration.http_fixture import FakeNode, serving

from modelsync.edges.http import sending


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


@pytest.mark.parametrize("more", [-1, 0, 1, 3 << 20])
async def test_every_byte_arrives_in_order(node: FakeNode, more: int) -> None:
    data = os.urandom(sending.FIRST_BYTES + more)
    digest = node.hold(data)
    async with serving(node) as server, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{server.port}/v1/objects/{digest}"
        for _ in range(2):  # over one connection: the second answer begins where the first has ended
            async with http.get(url) as response:
                assert await response.read() == data
        async with http.get(url, headers={"Range": f"bytes=7-{len(data) - 2}"}) as response:
            assert await response.read() == data[7:-1]


async def test_a_body_whose_connection_this_side_closes_leaves_no_thread_and_no_descriptor(node: FakeNode) -> None:
    digest = node.hold(b"x" * (64 << 20))
    before = len(os.listdir("/proc/self/fd"))
    async with serving(node, drain_s=0.2) as server:
        _, writer = await _nobody_reads(server.port, digest)
        await asyncio.sleep(0.3)
        assert any(thread.name.startswith("send") for thread in threading.enumerate())
        await server.stop()
        deadline_s = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) > before + 1 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the receiver's own, which is still there
        writer.transport.abort()


async def test_bodies_that_nobody_reads_hold_up_no_other_answer(node: FakeNode) -> None:
    """Each of them waits in a thread; the event loop goes on, and there is a thread for each place."""
    large, small = node.hold(b"x" * (64 << 20)), node.hold(b"y" * (2 << 20))
    async with serving(node, idle_timeout_s=60.0, drain_s=0.2) as server, aiohttp.ClientSession() as http:
        writers = [(await _nobody_reads(server.port, large))[1] for _ in range(40)]
        async with http.get(f"http://127.0.0.1:{server.port}/v1/objects/{small}") as response:
            assert len(await asyncio.wait_for(response.read(), 10)) == 2 << 20
        for writer in writers:
            writer.transport.abort()


async def _nobody_reads(port: int, digest: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
    writer.write(f"GET /v1/objects/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer
