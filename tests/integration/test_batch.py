"""Many small files in one answer: from a real server, and from peers that lie about them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from tests.integration.http_fixture import FakeNode, digest_of, serving
from tests.integration.test_fetch import Replica, opened

from modelsync.core.errors import DigestMismatch, ModelsyncError, PeerRefused, PeerUnavailable
from modelsync.core.manifest import FileEntry
from modelsync.core.transfer.batches import NOT_HELD, SIZE_BYTES
from modelsync.edges.disk import durable
from modelsync.edges.http.server import HttpServer
from modelsync.ports import Peer, Progress

RANDOM = random.Random(5)
FILES = [RANDOM.randbytes(size) for size in (0, 1, 5000, 1 << 20, *range(40))]
UNIQUE = list(dict.fromkeys(FILES))


def entry_of(data: bytes) -> FileEntry:
    digest = digest_of(data)
    return FileEntry(digest.hex[:8], len(data), 0o644, digest, (digest,))


ENTRIES = [entry_of(data) for data in UNIQUE]


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    (tmp_path / "node").mkdir()
    yield FakeNode(tmp_path / "node")


@pytest_asyncio.fixture
async def server(node: FakeNode) -> AsyncIterator[HttpServer]:
    async with serving(node) as made:
        yield made


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    with opened(tmp_path / "state") as made:
        yield made


# --- the server -------------------------------------------------------------------------------------------------------


async def ask(server: HttpServer, body: bytes) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
        session.post("/v1/batch", data=body) as answer,
    ):
        return answer.status, await answer.read()


async def test_the_answer_is_sizes_and_bytes_in_order(node: FakeNode, server: HttpServer) -> None:
    a, b = node.hold(b"first"), node.hold(b"")
    large, absent = node.hold(bytes((1 << 20) + 1)), digest_of(b"absent")
    link = digest_of(b"link")
    (node.root / "link").symlink_to("/etc/passwd")
    node.objects[link] = node.root / "link"
    status, body = await ask(server, b"".join(digest.raw for digest in (absent, a, large, link, b, a)))
    none = NOT_HELD.to_bytes(8, "big")
    first = (5).to_bytes(8, "big") + b"first"
    assert (status, body) == (200, none + first + none + none + bytes(8) + first)


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"x" * 31, 400), (b"x" * 33, 400), (b"x" * 32 * 1025, 413)])
async def test_bodies_that_are_no_digests(server: HttpServer, body: bytes, status: int) -> None:
    assert (await ask(server, body))[0] == status


async def test_an_object_that_goes_while_it_is_sent_breaks_the_answer_off(
    node: FakeNode, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = node.hold(b"first")
    monkeypatch.setattr(os, "pread", lambda *_: b"fir")
    with pytest.raises(aiohttp.ClientError):
        await ask(server, digest.raw)


# --- the two together -------------------------------------------------------------------------------------------------


async def in_thread(call: Callable[[], None]) -> None:
    await asyncio.to_thread(call)


async def test_many_files_take_one_request(node: FakeNode, server: HttpServer, replica: Replica) -> None:
    for data in UNIQUE:
        node.hold(data)
    progress = Progress()
    peer = Peer("a", f"http://127.0.0.1:{server.port}")
    await in_thread(lambda: replica.fetcher.files(ENTRIES, [peer], progress))
    for data, entry in zip(UNIQUE, ENTRIES, strict=True):
        path = replica.store.object_path(entry.digest)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o7777 == 0o444
    size = sum(len(data) for data in UNIQUE)
    assert (progress.done_bytes, progress.blamed) == (size, [])
    assert progress.wire_bytes == size + SIZE_BYTES * len(UNIQUE)
    assert replica.partials() == []


async def test_what_one_peer_lacks_comes_from_the_next(node: FakeNode, tmp_path: Path, replica: Replica) -> None:
    (tmp_path / "other").mkdir()
    other = FakeNode(tmp_path / "other")
    for number, data in enumerate(UNIQUE):
        (node, other)[number % 2].hold(data)
    async with serving(node) as one, serving(other) as two:
        chosen = [Peer("one", f"http://127.0.0.1:{one.port}"), Peer("two", f"http://127.0.0.1:{two.port}")]
        await in_thread(lambda: replica.fetcher.files(ENTRIES, chosen, Progress()))
        assert all(replica.store.has(entry.digest) for entry in ENTRIES)
        with pytest.raises(PeerRefused, match="it holds none of 1 files"):
            await in_thread(lambda: replica.fetcher.files([entry_of(b"nobody's")], chosen, Progress()))


async def test_what_an_earlier_try_left_is_used_if_it_is_right(
    node: FakeNode, server: HttpServer, replica: Replica
) -> None:
    for data in UNIQUE:
        node.hold(data)
    right, wrong, short = ENTRIES[3], ENTRIES[2], ENTRIES[20]
    replica.store.partial_path(right.digest).write_bytes(UNIQUE[3])
    replica.store.partial_path(wrong.digest).write_bytes(b"x" * wrong.size_bytes)
    replica.store.partial_path(short.digest).write_bytes(UNIQUE[20][:-1])
    progress, peer = Progress(), Peer("a", f"http://127.0.0.1:{server.port}")
    await in_thread(lambda: replica.fetcher.files(ENTRIES, [peer], progress))
    assert progress.done_bytes == sum(len(data) for data in UNIQUE)
    assert progress.wire_bytes == progress.done_bytes - right.size_bytes + SIZE_BYTES * (len(UNIQUE) - 1)
    assert all(replica.store.object_path(digest_of(data)).read_bytes() == data for data in UNIQUE)


# --- lies -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(body: bytes, *, length: int | None = None, status: str = "200 OK") -> Iterator[Peer]:
    """A peer that answers every request with these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    request = b""
                    while b"\r\n\r\n" not in request:
                        request += connection.recv(65536)
                    size = len(body) if length is None else length
                    connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + body)

    threading.Thread(target=serve, daemon=True).start()
    yield Peer("liar", f"http://127.0.0.1:{listener.getsockname()[1]}")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


GOOD = b"good"
FIRST = (4).to_bytes(8, "big") + GOOD


@pytest.mark.parametrize(
    ("body", "length", "status", "kind"),
    [
        ((4).to_bytes(8, "big") + b"evil", None, "200 OK", DigestMismatch),
        ((5).to_bytes(8, "big") + b"evil!", None, "200 OK", PeerRefused),
        ((1 << 60).to_bytes(8, "big") + b"x", None, "200 OK", PeerRefused),
        (b"\0\0\0", None, "200 OK", PeerRefused),
        (FIRST[:-1], None, "200 OK", PeerRefused),
        (FIRST[:-1], len(FIRST), "200 OK", PeerUnavailable),
        (b"", None, "200 OK", PeerRefused),
        (FIRST, None, "206 Partial Content", PeerRefused),
        (b"", None, "404 Not Found", PeerRefused),
        (b"", None, "307 Temporary Redirect", PeerRefused),
    ],
)
def test_lies(replica: Replica, body: bytes, length: int | None, status: str, kind: type[ModelsyncError]) -> None:
    with answering(body, length=length, status=status) as liar, pytest.raises(kind):
        replica.fetcher.files([entry_of(GOOD)], [liar], Progress())
    assert not replica.store.has(digest_of(GOOD))
    with answering(FIRST) as honest:
        replica.fetcher.files([entry_of(GOOD)], [honest], Progress())
    assert replica.store.has(digest_of(GOOD))


def test_after_a_failed_barrier_nothing_is_trusted(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def failing(_: object) -> Iterator[Callable[[], None]]:
        def barrier() -> None:
            raise OSError(5, "Input/output error")

        yield barrier

    monkeypatch.setattr(durable, "filesystem_barrier", failing)
    with answering(FIRST) as honest, pytest.raises(ModelsyncError, match="EIO"):
        replica.fetcher.files([entry_of(GOOD)], [honest], Progress())
    assert replica.partials() == []
    assert not replica.store.has(digest_of(GOOD))
