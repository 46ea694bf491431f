"""A file that is sent while it is pulled: in order, only what is verified, and never a short body for a whole one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from tests.integration.http_fixture import FakeNode, digest_of, serving

from modelsync.core.errors import PeerUnavailable
from modelsync.core.manifest import CHUNK_BYTES, FileEntry
from modelsync.core.transfer.chunk_map import ChunkMap
from modelsync.edges.disk.partial_maps import PartialMaps
from modelsync.ports import Growing

DATA = os.urandom(5 * CHUNK_BYTES + 1234)
URL = "/v1/models/fraud/versions/1/files/fraud.bin"


class Pull:
    """A pull that a test makes as it likes."""

    def __init__(self, root: Path) -> None:
        self.partial, self.object = root / "partial", root / "object"
        chunks = tuple(digest_of(DATA[at : at + CHUNK_BYTES]) for at in range(0, len(DATA), CHUNK_BYTES))
        self.entry = FileEntry("fraud.bin", len(DATA), 0o644, digest_of(DATA), CHUNK_BYTES, chunks, None)
        self.maps = PartialMaps()
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.growing = Growing(self.entry, lambda: self.maps.find(self.entry.digest), self.object, self.future)
        self.begin()

    def begin(self) -> None:
        """A new file, preallocated, of which nothing is verified."""
        self.partial.write_bytes(bytes(len(DATA)))
        self.again()

    def again(self) -> None:
        """Another pull of the same file, which knows nothing of it yet."""
        self.chunks = ChunkMap(range(0, len(DATA), CHUNK_BYTES), len(DATA))
        self.maps.enter(self.entry.digest, self.partial, self.chunks)

    def write(self, *indexes: int) -> None:
        with self.partial.open("r+b") as file:
            for index in indexes:
                file.seek(index * CHUNK_BYTES)
                file.write(DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        self.verify(*indexes)

    def verify(self, *indexes: int) -> None:
        for index in indexes:
            self.chunks.add(index)

    def finish(self) -> None:
        self.partial.rename(self.object)
        self.maps.forget(self.entry.digest)
        self.future.set_result(None)


@pytest_asyncio.fixture
async def pull(tmp_path: Path) -> AsyncIterator[Pull]:
    made = Pull(tmp_path)
    yield made
    if not made.future.done():
        made.future.set_result(None)


@pytest_asyncio.fixture
async def http(pull: Pull, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    node = FakeNode(tmp_path, growing=pull.growing)
    async with serving(node) as server, aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session


async def test_chunks_leave_in_order_as_they_are_verified(http: aiohttp.ClientSession, pull: Pull) -> None:
    pull.write(0, 2)
    async with http.get(URL) as answer:
        assert (answer.status, answer.content_length, answer.headers["ETag"]) == (
            200,
            len(DATA),
            f'"{pull.entry.digest}"',
        )
        assert await answer.content.readexactly(CHUNK_BYTES) == DATA[:CHUNK_BYTES]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await answer.content.readexactly(1)  # the third is there, but not its turn
        pull.write(1)
        assert await answer.content.readexactly(2 * CHUNK_BYTES) == DATA[CHUNK_BYTES : 3 * CHUNK_BYTES]
        pull.write(5, 4, 3)
        pull.finish()
        assert await answer.read() == DATA[3 * CHUNK_BYTES :]


async def test_what_only_the_whole_file_s_digest_proves_leaves_when_it_has_its_name(
    http: aiohttp.ClientSession, pull: Pull
) -> None:
    """Chunks that were copied from an old version are in no map."""
    pull.write(0)
    async with http.get(URL) as answer:
        await answer.content.readexactly(CHUNK_BYTES)
        pull.partial.write_bytes(DATA)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await answer.content.readexactly(1)
        pull.finish()
        assert await answer.read() == DATA[CHUNK_BYTES:]


async def test_a_range_waits_for_its_own_chunks_alone(http: aiohttp.ClientSession, pull: Pull) -> None:
    pull.write(3, 4)
    start, end = 3 * CHUNK_BYTES + 10, 5 * CHUNK_BYTES
    async with http.get(URL, headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes {start}-{end - 1}/{len(DATA)}")
        assert await answer.read() == DATA[start:end]
    async with http.get(URL, headers={"If-None-Match": f'"{pull.entry.digest}"'}) as answer:
        assert answer.status == 304


async def test_a_pull_that_fails_before_the_first_byte_is_told(http: aiohttp.ClientSession, pull: Pull) -> None:
    pull.future.set_exception(PeerUnavailable(peer="any", reason="nobody holds it"))
    async with http.get(URL) as answer:
        assert answer.status >= 500
        assert "nobody holds it" in await answer.text()


async def test_a_pull_that_fails_later_breaks_the_connection(http: aiohttp.ClientSession, pull: Pull) -> None:
    pull.write(0)
    async with http.get(URL) as answer:
        await answer.content.readexactly(CHUNK_BYTES)
        pull.future.set_exception(PeerUnavailable(peer="any", reason="gone"))
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_another_pull_of_the_same_file_goes_on_with_it(http: aiohttp.ClientSession, pull: Pull) -> None:
    pull.write(0)
    async with http.get(URL) as answer:
        await answer.content.readexactly(CHUNK_BYTES)
        pull.again()
        pull.verify(0)
        pull.write(1, 2, 3, 4, 5)
        assert await answer.read() == DATA[CHUNK_BYTES:]


async def test_what_a_new_file_has_is_not_read_from_the_discarded_one(http: aiohttp.ClientSession, pull: Pull) -> None:
    pull.write(0)
    async with http.get(URL) as answer:
        await answer.content.readexactly(CHUNK_BYTES)
        pull.maps.forget(pull.entry.digest)
        pull.partial.unlink()
        pull.begin()
        pull.write(0, 1, 2, 3, 4, 5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await answer.content.readexactly(1)
        pull.finish()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_a_receiver_that_leaves_ends_the_wait(http: aiohttp.ClientSession, pull: Pull) -> None:
    pull.write(0)
    async with http.get(URL) as answer:
        await answer.content.readexactly(CHUNK_BYTES)
        opened = _descriptors(pull.partial)
        assert opened
        answer.close()
        async with asyncio.timeout(10):
            while _descriptors(pull.partial):
                await asyncio.sleep(0.02)


def _descriptors(path: Path) -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}") == str(path)
        except FileNotFoundError:
            continue
    return found
