"""Chunks in frames: between real daemons, with one side that knows nothing of them, and from liars."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from tests.integration import lying_peer
from tests.integration.http_fixture import FakeNode, digest_of, serving
from tests.integration.lying_peer import Asked, LyingPeer, framed, in_parts, peers
from tests.integration.test_fetch import Replica, entry_of, opened

from modelsync.core.compression.frames import ASK_HEADER, RAW, STOP, Ask, Compression, Head
from modelsync.core.compression.pace import Pace
from modelsync.core.compression.way import Way
from modelsync.core.errors import DigestMismatch, ModelsyncError, PeerRefused, PeerUnavailable, TimedOut
from modelsync.core.manifest import CHUNK_BYTES, FileEntry
from modelsync.core.transfer.chunk_map import ChunkMap
from modelsync.edges.disk.store import Store
from modelsync.edges.http import framing
from modelsync.edges.http.server import HttpServer
from modelsync.edges.pull import codec
from modelsync.edges.pull import framed as framed_bodies
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import HeldPart, Peer, Progress

pytest.importorskip("zstandard", reason="a node without it sends and receives bytes as they are")

LINES = b"".join(b'{"token": "tok%d", "id": %d}' % (n, n) for n in range(250_000))
TEXT = LINES[: 5 * CHUNK_BYTES + 54_321]
NOISE = random.Random(3).randbytes(3 * CHUNK_BYTES + 777)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    with opened(tmp_path / "state") as made:
        yield made


@contextlib.contextmanager
def asking(root: Path, mode: Compression, swarm_from_bytes: int = 1 << 40) -> Iterator[Replica]:
    store, limiter = Store(root), RateLimiter()
    store.open()
    fetcher = Fetcher(store, limiter, me="me", compression=lambda: mode, swarm_from_bytes=swarm_from_bytes)
    yield Replica(store, fetcher, limiter)
    fetcher.close()
    store.close()


# --- by hand: a peer that packs, and how it may lie -------------------------------------------------------------------


def frame(chunk: bytes, kind: int = 1) -> bytes:
    packed = chunk if kind == RAW else codec.pack(chunk, kind)
    return Head(kind, len(chunk), len(packed)).encode() + packed


def honest(chunks: list[bytes]) -> bytes:
    return in_parts(b"".join(frame(chunk) for chunk in chunks))


def test_frames_are_unpacked_and_the_connection_is_kept(replica: Replica) -> None:
    with peers("a") as [a]:
        a.hold(TEXT), a.hold(NOISE)
        a.lie = framed(honest)
        progress = replica.pull(TEXT, a)
        assert replica.held(TEXT) == TEXT
        assert progress.done_bytes == len(TEXT) and progress.blamed == []
        assert progress.wire_bytes < len(TEXT) / 3
        a.lie = None
        replica.pull(NOISE, a)
        assert a.connections == 1


@pytest.mark.parametrize("kinds", [(0,), (2,), (4,), (8,), (0, 1, 2, 4, 8, 1)])
def test_every_kind_of_frame(replica: Replica, kinds: tuple[int, ...]) -> None:
    each = lambda chunks: in_parts(b"".join(frame(c, kinds[n % len(kinds)]) for n, c in enumerate(chunks)), 7777)  # noqa: E731
    with peers("a") as [a]:
        a.hold(TEXT)
        a.lie = framed(each)
        assert replica.pull(TEXT, a).blamed == []
        assert replica.held(TEXT) == TEXT


def test_what_comes_after_a_stop_is_asked_for_again(replica: Replica) -> None:
    stop = Head(STOP, 0, 0).encode()
    stops = lambda chunks: in_parts(frame(chunks[0]) + (stop if len(chunks) > 1 else b""))  # noqa: E731
    with peers("a") as [a]:
        a.hold(TEXT)
        a.lie = framed(stops)
        assert replica.pull(TEXT, a).blamed == []
        assert replica.held(TEXT) == TEXT
        assert [asked.start // CHUNK_BYTES for asked in a.asked] == [0, 1, 2, 3, 4, 5]
        assert a.connections == 1


def with_first(change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], bytes]:
    """The first chunk's frame changed, the others honest."""
    return lambda chunks: in_parts(change(chunks[0]) + b"".join(frame(chunk) for chunk in chunks[1:]))


def lied_head(kind: int, raw_bytes: int | None = None, wire_bytes: int | None = None) -> Callable[[bytes], bytes]:
    def change(chunk: bytes) -> bytes:
        packed = codec.pack(chunk, 1)
        raw, wire = raw_bytes or len(chunk), wire_bytes or len(packed)
        return bytes([kind]) + struct.pack(">II", raw, wire) + packed

    return change


def zeros(size_bytes: int) -> bytes:
    return codec.pack(bytes(size_bytes), 1)


def said_as_a_chunk(packed: bytes) -> bytes:
    return Head(1, CHUNK_BYTES, len(packed)).encode() + packed


def flipped(chunk: bytes) -> bytes:
    body = bytearray(frame(chunk))
    body[len(body) // 2] ^= 1
    return bytes(body)


HOSTILE: dict[str, Callable[[list[bytes]], bytes]] = {
    "a bomb": with_first(lambda _: said_as_a_chunk(zeros(64 << 20))),
    "a bomb behind an honest head": with_first(
        lambda chunk: said_as_a_chunk(codec.pack(chunk, 1)[:9] + zeros(64 << 20)[10:])
    ),
    "a size that lies": with_first(lied_head(1, raw_bytes=CHUNK_BYTES - 1)),
    "four gigabytes": with_first(lied_head(1, raw_bytes=2**32 - 1)),
    "more on the wire than it becomes": with_first(lied_head(1, wire_bytes=CHUNK_BYTES)),
    "four gigabytes on the wire": with_first(lied_head(1, wire_bytes=2**32 - 1)),
    "an unknown kind": with_first(lied_head(3)),
    "another number of planes": with_first(lied_head(4)),
    "cut off": with_first(lambda chunk: said_as_a_chunk(codec.pack(chunk, 1)[:-1])),
    "a trailing byte": with_first(lambda chunk: said_as_a_chunk(codec.pack(chunk, 1) + b"x")),
    "a flipped bit": with_first(flipped),
    "another chunk": with_first(lambda chunk: frame(chunk[1:] + chunk[:1])),
    "other bytes as they are": with_first(lambda chunk: frame(bytes(len(chunk)), RAW)),
    "no zstd": with_first(lambda _: said_as_a_chunk(b"weights of a small model")),
    "a stop first": lambda _: in_parts(Head(STOP, 0, 0).encode()),
    "a stop with bytes": lambda _: in_parts(bytes([STOP]) + struct.pack(">II", 1, 1) + b"x"),
    "nothing": lambda _: in_parts(b""),
    "half a head": lambda _: in_parts(b"\1\0\0"),
    "ends after a chunk": lambda chunks: in_parts(frame(chunks[0])),
    "a frame too many": lambda chunks: in_parts(b"".join(frame(chunk) for chunk in [*chunks, chunks[0]])),
    "not in parts": lambda chunks: b"".join(frame(chunk) for chunk in chunks) * 2,
    "a part of a negative size": lambda chunks: b"-5\r\n" + frame(chunks[0]),
    "a part of an endless size": lambda chunks: b"f" * 100_000 + b"\r\n",
    "an underscore in a size": lambda chunks: honest(chunks)[:1] + b"_" + honest(chunks)[1:],
    "trailers": lambda chunks: honest(chunks)[:-2] + b"X-More: 1\r\n\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_liar_installs_nothing_and_another_is_asked(replica: Replica, name: str) -> None:
    with peers("a", "b") as [a, b]:
        a.hold(TEXT), b.hold(TEXT)
        a.lie = framed(HOSTILE[name])
        progress = Progress()
        with pytest.raises((DigestMismatch, PeerRefused, PeerUnavailable)):
            for _ in range(9):  # each may deliver something before it fails
                replica.pull(TEXT, a, progress=progress)
                break
        assert not replica.store.has(entry_of(TEXT).digest)
        assert [getattr(error, "source", getattr(error, "peer", "")) for error in progress.blamed] == ["a"]
        assert replica.pull(TEXT, a, b).done_bytes == len(TEXT)
        assert replica.held(TEXT) == TEXT


def test_wrong_bytes_in_a_frame_accuse_their_peer(replica: Replica) -> None:
    told: list[str] = []
    replica.fetcher.suspects.accused = told.append
    for name in ("a flipped bit", "a bomb", "cut off"):
        with peers(name) as [liar]:
            liar.hold(TEXT)
            liar.lie = framed(HOSTILE[name])
            with pytest.raises(DigestMismatch, match=name):
                replica.pull(TEXT, liar)
    assert told == ["a flipped bit", "a bomb", "cut off"]


def test_after_wrong_frames_the_same_peer_is_asked_without(replica: Replica) -> None:
    with peers("a") as [a]:
        a.hold(TEXT)
        a.lie = framed(HOSTILE["a flipped bit"])
        with pytest.raises(DigestMismatch):
            replica.pull(TEXT, a)
        replica.pull(TEXT, a)
        assert replica.held(TEXT) == TEXT
        assert [bool(asked.frames) for asked in a.asked] == [True, False]


def test_frames_that_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    def pushes(peer: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool | str:
        assert not asked.frames
        return framed(honest)(peer, connection, Asked(asked.digest, asked.start, asked.end, True, "x"), data)

    with asking(tmp_path / "never", "never") as replica, peers("a") as [a]:
        a.hold(TEXT)
        a.lie = pushes
        with pytest.raises(PeerRefused):
            replica.pull(TEXT, a)


def test_frames_with_a_length_are_refused(replica: Replica) -> None:
    with peers("a") as [a]:
        a.hold(TEXT)
        a.lie = framed(lambda chunks: frame(chunks[0]), "X-Modelsync-Frames: 1", f"Content-Length: {len(TEXT)}")
        with pytest.raises(PeerRefused, match="not in chunks"):
            replica.pull(TEXT, a)


def test_a_drip_of_frames_is_given_up(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed_bodies, "FRAME_TIMEOUT_S", 0.3)

    def drips(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
        content_range = f"Content-Range: bytes {asked.start}-{asked.end - 1}/{len(data)}"
        begun = b"100000\r\n" + frame(data[:CHUNK_BYTES])[:20]
        connection.sendall(lying_peer.head("206 Partial Content", None, content_range, *lying_peer.FRAMED) + begun)
        for _ in range(100):
            connection.sendall(b"0")
            time.sleep(0.05)
        return True

    with peers("a") as [a]:
        a.hold(TEXT)
        a.lie = drips
        with pytest.raises(PeerUnavailable, match="no whole frame"):
            replica.pull(TEXT, a)


def test_a_cancelled_pull_leaves_its_frame(replica: Replica) -> None:
    sent = threading.Event()

    def stalls(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
        content_range = f"Content-Range: bytes {asked.start}-{asked.end - 1}/{len(data)}"
        connection.sendall(lying_peer.head("206 Partial Content", None, content_range, *lying_peer.FRAMED))
        for _ in range(100):
            connection.sendall(b"1\r\n\1\r\n")
            sent.set()
            time.sleep(0.02)
        return True

    progress = Progress()
    with peers("a") as [a]:
        a.hold(TEXT)
        a.lie = stalls
        threading.Thread(target=lambda: (sent.wait(), progress.cancelled.set()), daemon=True).start()
        with pytest.raises(TimedOut):
            replica.pull(TEXT, a, progress=progress)


def test_a_break_in_mid_frame_keeps_the_chunks_before(replica: Replica) -> None:
    with peers("a") as [a]:
        a.hold(TEXT)

        def breaks(peer: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
            framed(lambda chunks: honest(chunks)[: -len(honest(chunks)) // 4])(peer, connection, asked, data)
            return True

        a.lie = breaks
        with pytest.raises(PeerUnavailable):
            replica.pull(TEXT, a)
        a.lie = None
        progress = replica.pull(TEXT, a)
        assert replica.held(TEXT) == TEXT
        assert a.asked[-1].start >= 3 * CHUNK_BYTES
        assert progress.wire_bytes == len(TEXT) - a.asked[-1].start


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    (tmp_path / "node").mkdir()
    yield FakeNode(tmp_path / "node")


@pytest_asyncio.fixture
async def server(node: FakeNode) -> AsyncIterator[HttpServer]:
    async with serving(node) as made:
        yield made


@pytest.fixture(autouse=True)
def gigabit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine does, tests see a link on which compressing pays, and quick processors."""
    link(monkeypatch, lambda: 125e6)
    monkeypatch.setattr(codec.time, "thread_time", lambda: 0.0)
    monkeypatch.setattr(Pace, "lately", lambda pace, now_s: pace.usual)


def link(monkeypatch: pytest.MonkeyPatch, speed: Callable[[], float | None]) -> None:
    """What every way is known to do, each time that somebody asks."""
    known = property(lambda _: speed(), lambda *_: None)
    monkeypatch.setattr(framing, "Way", type("Known", (Way,), {"bytes_per_s": known, "__init__": lambda _: None}))
    monkeypatch.setattr(Way, "saw", lambda *_, plain: True)
    monkeypatch.setattr(Way, "may_be_quicker", lambda *_: False)


def at(server: HttpServer) -> Peer:
    return Peer("a", f"http://127.0.0.1:{server.port}")


async def pulled(replica: Replica, server: HttpServer, data: bytes) -> Progress:
    progress: Progress = await asyncio.to_thread(replica.pull, data, at(server))
    assert replica.held(data) == data and progress.blamed == []
    assert progress.done_bytes == len(data)
    return progress


async def test_what_compresses_takes_fewer_bytes(node: FakeNode, server: HttpServer, replica: Replica) -> None:
    node.hold(TEXT)
    progress = await pulled(replica, server, TEXT)
    assert progress.wire_bytes < len(TEXT) / 3
    assert server.sent_bytes == progress.wire_bytes
    assert server.sent_content_bytes == len(TEXT)


async def test_what_does_not_goes_as_it_is(node: FakeNode, server: HttpServer, replica: Replica) -> None:
    node.hold(NOISE)
    progress = await pulled(replica, server, NOISE)
    assert progress.wire_bytes == len(NOISE) == server.sent_bytes  # to the byte: not a frame's head more


async def test_a_file_of_both_is_packed_where_it_pays(node: FakeNode, server: HttpServer, replica: Replica) -> None:
    data = NOISE[: 3 * CHUNK_BYTES] + TEXT + NOISE
    node.hold(data)
    progress = await pulled(replica, server, data)
    assert progress.wire_bytes < len(data) - len(TEXT) / 2


@pytest.mark.parametrize(("asks", "gives"), [("never", "auto"), ("auto", "never"), ("always", "never")])
async def test_either_side_can_refuse(tmp_path: Path, node: FakeNode, asks: Compression, gives: Compression) -> None:
    node.hold(TEXT)
    async with serving(node, compression=lambda: gives) as server:
        with asking(tmp_path / "state", asks) as replica:
            progress = await pulled(replica, server, TEXT)
    assert progress.wire_bytes == len(TEXT)


async def test_always_packs_on_a_link_where_auto_does_not(
    tmp_path: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(monkeypatch, lambda: 5e9)
    node.hold(TEXT)
    wire = {}
    async with serving(node) as server:
        for mode in ("auto", "always"):
            with asking(tmp_path / mode, mode) as replica:  # type: ignore[arg-type]
                wire[mode] = (await pulled(replica, server, TEXT)).wire_bytes
    assert wire["auto"] == len(TEXT) > 3 * wire["always"]


async def test_a_limit_of_the_pullers_own_makes_it_pay(
    node: FakeNode, server: HttpServer, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(monkeypatch, lambda: 5e9)
    node.hold(TEXT)
    taken: list[int] = []
    monkeypatch.setattr(replica.limiter, "take", lambda size, _: taken.append(size))
    replica.limiter.rate_bytes_per_s = 100_000_000
    progress = await pulled(replica, server, TEXT)
    assert progress.wire_bytes < len(TEXT) / 3
    assert sum(taken) == progress.wire_bytes  # the limit is one of the wire


async def test_a_link_that_turns_out_quick_gets_the_rest_as_it_is(
    node: FakeNode, server: HttpServer, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = iter([None, None, None])
    link(monkeypatch, lambda: next(known, 5e9))
    plain: list[object] = []
    monkeypatch.setattr(framing.Framing, "sent_plain", lambda _, request: plain.append(request))
    data = LINES + LINES
    node.hold(data)
    progress = await pulled(replica, server, data)
    assert len(plain) == 1
    assert CHUNK_BYTES < len(data) - progress.wire_bytes < 4 * CHUNK_BYTES


async def test_the_setting_is_read_for_each_request(tmp_path: Path, node: FakeNode) -> None:
    node.hold(TEXT), node.hold(LINES)
    mode: list[Compression] = ["never"]
    async with serving(node, compression=lambda: mode[0]) as server:
        with asking(tmp_path / "state", "auto") as replica:
            assert (await pulled(replica, server, TEXT)).wire_bytes == len(TEXT)
            mode[0] = "auto"
            assert (await pulled(replica, server, LINES)).wire_bytes < len(LINES) / 3


async def test_packing_never_runs_on_the_event_loop(
    node: FakeNode, server: HttpServer, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    honestly = codec.pack

    def noted(data: bytes, planes: int) -> bytes:
        threads.add(threading.current_thread().name)
        return honestly(data, planes)

    monkeypatch.setattr(codec, "pack", noted)
    node.hold(TEXT)
    await pulled(replica, server, TEXT)
    assert threads and all(name.startswith("pack") for name in threads)


async def test_a_daemon_that_knows_nothing_of_it_gets_bytes_with_their_length(
    node: FakeNode, server: HttpServer
) -> None:
    digest = node.hold(TEXT)
    for ask in ({}, {ASK_HEADER: "2; zstd"}, {ASK_HEADER: Ask("auto", 999_999_999).text()}):
        headers = {"Range": "bytes=0-2097151", **ask}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{server.port}/v1/objects/{digest}", headers=headers) as answer,
        ):
            assert (answer.status, answer.content_length) == (206, 2 * CHUNK_BYTES)
            assert ASK_HEADER not in answer.headers
            assert await answer.read() == TEXT[: 2 * CHUNK_BYTES]


async def test_a_peer_that_knows_nothing_of_it_is_pulled_from(replica: Replica) -> None:
    with peers("old") as [old]:
        old.hold(TEXT)
        progress = await asyncio.to_thread(replica.pull, TEXT, old)
        assert old.asked[0].frames and progress.wire_bytes == len(TEXT)


async def test_a_resumed_pull_asks_for_the_rest_in_frames(node: FakeNode, server: HttpServer, replica: Replica) -> None:
    node.hold(TEXT)
    with peers("dies") as [dies]:
        dies.hold(TEXT)
        dies.lie = lying_peer.after(2 * CHUNK_BYTES + 5)
        with pytest.raises(PeerUnavailable):
            await asyncio.to_thread(replica.pull, TEXT, dies)
    progress = await pulled(replica, server, TEXT)
    assert server.sent_content_bytes == len(TEXT) - 2 * CHUNK_BYTES
    assert progress.wire_bytes < len(TEXT) / 4


async def test_what_is_verified_of_a_pull_under_way_is_served_in_frames(
    tmp_path: Path, node: FakeNode, server: HttpServer
) -> None:
    entry = entry_of(TEXT)
    path = tmp_path / "partial"
    path.write_bytes(TEXT[: 3 * CHUNK_BYTES] + bytes(len(TEXT) - 3 * CHUNK_BYTES))
    chunks = ChunkMap(range(0, len(TEXT), CHUNK_BYTES), len(TEXT))
    for index in range(3):
        chunks.add(index)
    node.parts[entry.digest] = HeldPart(path, chunks, pulling=True)
    with asking(tmp_path / "state", "auto", swarm_from_bytes=1) as replica, peers("b") as [b]:
        b.hold(TEXT)
        b.lie = lambda peer, connection, asked, data: asked.start < 3 * CHUNK_BYTES
        sources = [Peer("a", at(server).url, holds=False), Peer("b", b.peer.url, primary=True)]
        progress = await asyncio.to_thread(replica.pull, TEXT, *sources)
        assert replica.held(TEXT) == TEXT
    assert server.sent_content_bytes == 3 * CHUNK_BYTES > 3 * server.sent_bytes
    assert progress.done_bytes == len(TEXT)


async def test_a_file_that_shrinks_under_an_answer_breaks_it_off(
    node: FakeNode, server: HttpServer, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = node.hold(TEXT)
    honestly = framing.reads_of

    def shrunk(part: framing.Part, chunk_bytes: int) -> Iterator[framing.Read]:
        os.truncate(node.objects[digest], 2 * CHUNK_BYTES + 1)
        return honestly(part, chunk_bytes)

    monkeypatch.setattr("modelsync.edges.http.ranges.reads_of", shrunk)
    with pytest.raises(PeerUnavailable):
        await asyncio.to_thread(replica.pull, TEXT, at(server))
    assert not replica.store.has(digest)


async def test_a_crowd_gets_its_bytes_as_they_are(
    node: FakeNode, server: HttpServer, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "MAX_ANSWERS", 0)
    node.hold(TEXT)
    assert (await pulled(replica, server, TEXT)).wire_bytes == len(TEXT)


# --- small files ------------------------------------------------------------------------------------------------------

SMALL = [b'{"layer": %d, "weights": [%s]}' % (n, b"0.125, " * n) for n in range(1, 900)]


def small_entry(data: bytes) -> FileEntry:
    digest = digest_of(data)
    return FileEntry(digest.hex[:8], len(data), 0o644, digest, (digest,))


async def test_a_batch_goes_in_frames(node: FakeNode, server: HttpServer, replica: Replica) -> None:
    for data in SMALL[1:]:
        node.hold(data)
    node.hold(NOISE[:CHUNK_BYTES])
    chosen = [*SMALL[1:], NOISE[:CHUNK_BYTES]]
    progress = Progress()
    entries = [small_entry(data) for data in chosen]
    await asyncio.to_thread(replica.fetcher.files, entries, [at(server)], progress)
    assert all(replica.store.has(entry.digest) for entry in entries)
    content = sum(map(len, SMALL[1:]))
    assert progress.done_bytes == content + CHUNK_BYTES
    assert CHUNK_BYTES < progress.wire_bytes < CHUNK_BYTES + content / 3
    assert progress.wire_bytes == server.sent_bytes


async def test_a_batch_in_frames_without_a_file_that_is_not_held(
    node: FakeNode, server: HttpServer, replica: Replica
) -> None:
    for data in SMALL[5:]:
        node.hold(data)
    with peers("other") as [other]:
        other.lie = lying_peer.not_found
        with pytest.raises(ModelsyncError):
            entries = [small_entry(data) for data in SMALL]
            await asyncio.to_thread(replica.fetcher.files, entries, [at(server), other.peer], Progress())
    assert len(list(replica.store.partial.iterdir())) == len(SMALL) - 5  # verified, and used by the next try


BATCHES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda body: said_as(codec.pack(body, 1)[:-1], len(body)),
    "a bomb": lambda body: said_as(zeros(64 << 20), len(body)),
    "a stop": lambda _: Head(STOP, 0, 0).encode(),
    "too short": lambda body: frame(body[: len(body) // 2]),
    "too long": lambda body: frame(body) + frame(body),
    "goes on in its last frame": lambda body: frame(body + b"more"),
    "other bytes": lambda body: frame(body[:-1] + b"?"),
}


def said_as(packed: bytes, raw_bytes: int) -> bytes:
    return Head(1, raw_bytes, len(packed)).encode() + packed


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_in_frames_that_lies(replica: Replica, name: str) -> None:
    chosen = sorted(SMALL[:40], key=lambda data: digest_of(data).raw)
    body = b"".join(len(data).to_bytes(8, "big") + data for data in chosen)

    def lies(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
        assert asked.frames
        connection.settimeout(0.05)
        with contextlib.suppress(TimeoutError):  # the question's body, if it is not in the reader's buffer
            connection.recv(1 << 20)
        connection.sendall(lying_peer.head("200 OK", None, *lying_peer.FRAMED) + in_parts(BATCHES[name](body)))
        return True

    with peers("a") as [a]:
        a.lie = lies
        with pytest.raises((DigestMismatch, PeerRefused, PeerUnavailable)):
            replica.fetcher.files([small_entry(data) for data in chosen], [a.peer], Progress())
    assert not any(replica.store.has(digest_of(data)) for data in chosen)
