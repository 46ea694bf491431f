"""Objects pulled from several peers at once that lie, drip, die or hold only parts: over real sockets."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration import lying_peer
from tests.integration.lying_peer import Asked, LyingPeer, head, peers
from tests.integration.test_fetch import Replica, chunks_of, entry_of

from modelsync.core.errors import DigestMismatch, ModelsyncError, PeerUnavailable, TimedOut
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.connections import Connections
from modelsync.edges.pull.fetch import Fetcher, RateLimiter
from modelsync.edges.pull.peer_maps import read_map
from modelsync.ports import Peer, Progress

DATA = random.Random(11).randbytes(12 * CHUNK_BYTES + 777)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    store, limiter = Store(tmp_path / "state"), RateLimiter()
    store.open()
    fetcher = Fetcher(store, limiter, me="me", swarm_from_bytes=1)
    yield Replica(store, fetcher, limiter)
    fetcher.close()
    store.close()


def whole(peer: LyingPeer, primary: bool = False) -> Peer:
    return Peer(peer.id, peer.peer.url, primary=primary, holds=True)


def part(peer: LyingPeer) -> Peer:
    return Peer(peer.id, peer.peer.url, holds=False)


def holding(ranges: list[list[int]], *, pulling: bool = True, coming: list[list[int]] | None = None):  # type: ignore[no-untyped-def]
    """A peer that holds these byte ranges, says so (and which others it waits for), and refuses what it lacks."""
    told = json.dumps(
        {"held": False, "size_bytes": len(DATA), "ranges": ranges, "pulling": pulling, "coming": coming or []}
    ).encode()

    def answer(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
        if not asked.ranged:
            connection.sendall(head("200 OK", len(told)) + told)
        elif any(start <= asked.start and asked.end <= end for start, end in ranges):
            return False
        else:
            connection.sendall(head("404 Not Found", 0))
        return True

    return answer


def test_several_peers_share_the_work(replica: Replica) -> None:
    with peers("a", "b", "c") as made:
        for each in made:
            each.hold(DATA)
        progress = replica.pull(DATA, *(whole(each) for each in made))
        assert replica.held(DATA) == DATA
        assert (progress.done_bytes, progress.wire_bytes, progress.blamed) == (len(DATA), len(DATA), [])
        assert sum(each.body_bytes for each in made) == len(DATA)
        assert all(each.body_bytes for each in made)


def test_parts_of_two_make_a_whole(replica: Replica) -> None:
    half = 6 * CHUNK_BYTES
    with peers("a", "b") as [a, b]:
        a.hold(DATA), b.hold(DATA)
        a.lie, b.lie = holding([[0, half]]), holding([[half, len(DATA)]])
        progress = replica.pull(DATA, part(a), part(b))
        assert replica.held(DATA) == DATA
        assert (a.body_bytes, b.body_bytes) == (half, len(DATA) - half)
        assert progress.blamed == []


def test_what_is_on_its_way_to_a_peer_is_had_from_it_and_asked_of_the_source_once(replica: Replica) -> None:
    half = 6 * CHUNK_BYTES
    with peers("source", "b") as [source, b]:
        source.hold(DATA), b.hold(DATA)
        b.lie = holding([], coming=[[half, len(DATA)]])

        def arrives() -> None:
            b.lie = holding([[half, len(DATA)]])

        threading.Timer(0.5, arrives).start()
        replica.pull(DATA, whole(source, primary=True), part(b))
        assert replica.held(DATA) == DATA
        asked = [(each.start, each.end) for each in source.asked if each.ranged]
        assert asked
        assert all(end <= half for _, end in asked), asked
        assert b.body_bytes == len(DATA) - half


def test_what_was_asked_of_a_source_is_told_while_it_comes(replica: Replica) -> None:
    told: list[tuple[int, int]] = []
    with peers("source") as [source]:
        source.hold(DATA)

        def look(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
            time.sleep(0.2)
            part_held = replica.store.part(entry_of(DATA).digest)
            told.extend(part_held.chunks.coming_ranges() if part_held is not None else ())
            return False

        source.lie = look
        replica.pull(DATA, whole(source, primary=True))
    assert told == [(0, len(DATA))]


def test_the_primary_is_spared(replica: Replica) -> None:
    with peers("p", "r") as [p, r]:
        p.hold(DATA), r.hold(DATA)
        replica.pull(DATA, whole(p, primary=True), whole(r))
        assert (p.body_bytes, r.body_bytes) == (0, len(DATA))


def test_a_liar_is_named_and_left_out_from_then_on(replica: Replica) -> None:
    other = DATA[::-1]
    with peers("liar", "honest") as [liar, honest]:
        for data in (DATA, other):
            liar.hold(data), honest.hold(data)
        liar.lie = lying_peer.flipped_byte
        progress = replica.pull(DATA, whole(liar), whole(honest))
        assert replica.held(DATA) == DATA
        assert {error.source for error in progress.blamed if isinstance(error, DigestMismatch)} == {"liar"}
        assert replica.fetcher.suspects.names(time.monotonic()) == ["liar"]
        before = len(liar.asked)
        assert replica.pull(other, whole(liar), whole(honest)).blamed == []
        assert len(liar.asked) == before


def test_all_bad_is_a_failure_and_what_was_right_is_kept(replica: Replica) -> None:
    with peers("a", "b") as [a, b]:
        a.hold(DATA), b.hold(DATA)
        a.lie = b.lie = lying_peer.flipped_byte
        with pytest.raises(ModelsyncError) as caught:
            replica.pull(DATA, whole(a), whole(b))
        assert isinstance(caught.value, DigestMismatch)
        assert not replica.store.has(entry_of(DATA).digest)
        part_held = replica.store.part(entry_of(DATA).digest)
        assert part_held is not None
        assert not part_held.pulling
        kept = sum(end - start for start, end in part_held.chunks.ranges())
        a.lie = None
        assert replica.pull(DATA, whole(a)).wire_bytes == len(DATA) - kept


def test_a_dripping_peer_is_overtaken(replica: Replica) -> None:
    with peers("slow", "quick") as [slow, quick]:
        slow.hold(DATA), quick.hold(DATA)
        slow.lie = lying_peer.dripping
        started_s = time.monotonic()
        progress = replica.pull(DATA, whole(slow), whole(quick))
        assert time.monotonic() - started_s < 12.0  # 12 MiB by the byte would take days
        assert replica.held(DATA) == DATA
        assert progress.blamed == []


def test_a_peer_that_dies_is_replaced_by_one_that_comes(replica: Replica) -> None:
    with peers("old", "new") as [old, new]:
        old.hold(DATA), new.hold(DATA)
        there = [whole(old, primary=True)]

        def died(connection: object) -> None:
            there[:] = [whole(new, primary=True)]

        old.lie = lying_peer.after(3 * CHUNK_BYTES + 10, died)
        waiting = LyingPeer("waiting")
        waiting.lie = holding([])
        there.append(part(waiting))
        progress = Progress(total_bytes=len(DATA))
        entry, look = entry_of(DATA), (lambda: [*there, part(waiting)])
        replica.fetcher.file(entry, chunks_of(DATA), there, progress, look)
        waiting.close()
        assert replica.held(DATA) == DATA
        assert len(DATA) <= progress.wire_bytes <= len(DATA) + CHUNK_BYTES


def test_cancelled_at_once(replica: Replica) -> None:
    with peers("a") as [a]:
        a.hold(DATA)
        a.lie = lying_peer.silent
        progress = Progress()
        threading.Timer(0.3, progress.cancelled.set).start()
        started_s = time.monotonic()
        with pytest.raises(TimedOut):
            replica.pull(DATA, whole(a), progress=progress)
        assert time.monotonic() - started_s < 3.0


def test_nobody(replica: Replica) -> None:
    with pytest.raises(PeerUnavailable, match="nobody that is known"):
        replica.pull(DATA)


@pytest.mark.parametrize(
    "told",
    [
        b"", b"[]", b"{}", b'{"held": 1}', b'{"held": false, "ranges": {}}', b'{"held": false, "ranges": [[1]]}',
        b'{"held": false, "ranges": [[5, 1]]}', b'{"held": false, "ranges": [[0, 99999999999]]}',
        b'{"held": false, "coming": [[5, 1]]}', b'{"held": false, "coming": 1}',
        b'{"held": false, "ranges": [[true, 2]]}', b'{"held": false, "ranges": [[0.5, 2]]}', b"[" * 10_000,
        json.dumps({"held": False, "ranges": [[2 * n, 2 * n + 1] for n in range(8193)]}).encode(), b"x" * (1 << 20),
    ],
    ids=lambda told: told[:40].decode(),
)  # fmt: skip
def test_what_a_peer_tells_is_hostile_input(told: bytes) -> None:
    def tell(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
        connection.sendall(head("200 OK", len(told)) + told)
        return True

    connections = Connections(dict)
    with peers("a") as [a], contextlib.closing(connections):
        a.lie = tell
        with pytest.raises(ModelsyncError):
            read_map(connections, a.peer, entry_of(DATA).digest, len(DATA))
