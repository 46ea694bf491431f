"""Writes past the page cache on real file systems: refusals fall back, no tail is lost, no fault swallowed."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.disk import noise
from tests.integration.lying_peer import LyingPeer, peers
from tests.integration.test_fetch import Replica, entry_of

from modelsync.core.errors import DiskFailed, DiskFull, PeerUnavailable
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.edges.disk import partial_file
from modelsync.edges.disk.chunk_writer import ChunkWriter
from modelsync.edges.disk.direct import buffer_of
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter

MIB = CHUNK_BYTES
SIZES = [1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 3 * MIB + 4095, 3 * MIB + 4096, 4 * MIB]
DATA = noise(7, 5 * MIB + 777)


@pytest.fixture(params=["disk", "tmpfs"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            yield Path(name)


def written(path: Path, data: bytes, refused: Callable[[str], None] = lambda _: None) -> bool:
    """Write a file chunk by chunk, the last first; whether that was done directly."""
    descriptor = partial_file.open_partial(path, len(data))
    writer = ChunkWriter(path, descriptor, len(data), MIB, from_bytes=1, refused=refused)
    buffer = buffer_of(writer.buffer_bytes)
    for offset in reversed(range(0, len(data), MIB)):
        part = data[offset : offset + MIB]
        buffer[:] = b"x" * len(buffer)  # what a chunk before has left
        buffer[: len(part)] = part
        writer.write(buffer, len(part), offset)
        again = buffer_of(len(buffer))
        assert writer.read(again[: len(part)], offset) == len(part)
        assert again[: len(part)] == part
    writer.cut()
    past_cache = writer.past_cache
    writer.close()
    os.fsync(descriptor)
    os.close(descriptor)
    return past_cache


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_arrives_and_none_beyond(directory: Path, size: int) -> None:
    written(directory / "file", DATA[:size])
    assert (directory / "file").read_bytes() == DATA[:size]


def test_what_pads_the_last_chunk_is_zeros_and_gone_after_the_cut(tmp_path: Path) -> None:
    """Until it is cut, a crash leaves them: not the bytes of another model that went through the same buffer."""
    path, data = tmp_path / "file", DATA[: MIB + 5]
    descriptor = partial_file.open_partial(path, len(data))
    writer = ChunkWriter(path, descriptor, len(data), MIB, from_bytes=1)
    if not writer.past_cache:
        pytest.skip("the file system of the temporary directory takes no direct writes")
    buffer = buffer_of(writer.buffer_bytes)
    buffer[:] = b"x" * len(buffer)
    buffer[:5] = data[MIB:]
    writer.write(buffer, 5, MIB)
    tail = path.read_bytes()[MIB:]
    assert tail == data[MIB:] + bytes(len(tail) - 5) and len(tail) >= 4096
    writer.cut()
    assert path.stat().st_size == len(data)
    writer.close()
    os.close(descriptor)


def is_cached(path: Path) -> bool:
    """Whether the first page is in memory; reading it does not bring it there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(4096)], 0, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_what_is_written_directly_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "through").write_bytes(DATA)
    assert is_cached(tmp_path / "through")
    if not written(tmp_path / "past", DATA):
        pytest.skip("the file system of the temporary directory takes no direct writes")
    assert not is_cached(tmp_path / "past")


def test_a_refusal_at_the_opening_is_said_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, said = os.open, []

    def refusing(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes here")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    assert not written(tmp_path / "file", DATA, said.append)
    assert (tmp_path / "file").read_bytes() == DATA
    assert said == ["open: no direct writes here"]


class FailingWrites:
    """pwrite(2) that fails on directly opened files, from the n-th on."""

    def __init__(self, number: int, sound: int = 0) -> None:
        self.number, self.sound = number, sound
        self._real = os.pwrite

    def __call__(self, descriptor: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            self.sound -= 1
            if self.sound < 0:
                raise OSError(self.number, os.strerror(self.number))
        return self._real(descriptor, data, offset)


@pytest.mark.parametrize("sound", [0, 2])
def test_a_refusal_at_a_write_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: int) -> None:
    said: list[str] = []
    monkeypatch.setattr(os, "pwrite", FailingWrites(errno.EINVAL, sound))
    assert not written(tmp_path / "file", DATA, said.append)
    assert (tmp_path / "file").read_bytes() == DATA
    assert len(said) == 1


# --- whole pulls ------------------------------------------------------------------------------------------------------


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    store, limiter = Store(tmp_path / "state"), RateLimiter()
    store.open()
    fetcher = Fetcher(store, limiter, direct_from_bytes=1, room_bytes=lambda: 0)
    yield Replica(store, fetcher, limiter)
    fetcher.close()
    store.close()


@pytest.mark.parametrize("size", [1, MIB, MIB + 1, len(DATA)])
def test_a_pull_leaves_the_file_and_nothing_more(replica: Replica, size: int) -> None:
    with peers("a") as [a]:
        a.hold(DATA[:size])
        assert replica.pull(DATA[:size], a).wire_bytes == size
    assert replica.held(DATA[:size]) == DATA[:size]
    assert replica.partials() == []


def broken_after(chunks: int) -> Callable[..., bool]:
    def lie(_: LyingPeer, connection: object, asked: object, data: bytes) -> bool:
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {asked.end - asked.start}\r\n"  # type: ignore[attr-defined]
        head += f"Content-Range: bytes {asked.start}-{asked.end - 1}/{len(data)}\r\n\r\n"  # type: ignore[attr-defined]
        connection.sendall(head.encode() + data[asked.start : asked.start + chunks * MIB])  # type: ignore[attr-defined]
        return True

    return lie


def test_what_was_written_before_a_break_is_not_asked_for_again(replica: Replica) -> None:
    with peers("a") as [a]:
        a.hold(DATA)
        a.lie = broken_after(2)
        with pytest.raises(PeerUnavailable):
            replica.pull(DATA, a)
        a.lie = None
        assert replica.pull(DATA, a).wire_bytes == len(DATA) - 2 * MIB
    assert replica.held(DATA) == DATA


def test_the_zeros_after_the_last_chunk_do_not_outlive_a_crash(replica: Replica) -> None:
    entry = entry_of(DATA)
    path = replica.store.partial_path(entry.digest)
    end = -(-len(DATA) // 4096) * 4096
    path.write_bytes(bytes(5 * MIB) + DATA[5 * MIB :] + bytes(end - len(DATA)))  # only the last chunk, not cut yet
    with peers("a") as [a]:
        a.hold(DATA)
        assert replica.pull(DATA, a).wire_bytes == 5 * MIB
    assert replica.held(DATA) == DATA


@pytest.mark.parametrize(("number", "fault"), [(errno.EIO, DiskFailed), (errno.ENOSPC, DiskFull)])
def test_a_write_that_fails_ends_the_pull_and_discards_the_file(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, number: int, fault: type[Exception]
) -> None:
    with peers("a") as [a]:
        a.hold(DATA)
        with monkeypatch.context() as patched:
            failing = FailingWrites(number, sound=2)
            patched.setattr(os, "pwrite", failing)
            if not written(replica.store.tmp / "probe", DATA[:MIB]):
                pytest.skip("the file system of the temporary directory takes no direct writes")
            failing.sound = 2
            with pytest.raises(fault):
                replica.pull(DATA, a)
        assert replica.partials() == []
        assert not replica.store.has(entry_of(DATA).digest)
        assert replica.pull(DATA, a).done_bytes == len(DATA)
    assert replica.held(DATA) == DATA


def test_with_room_the_page_cache_keeps_what_was_pulled(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.open()
    fetcher = Fetcher(store, RateLimiter(), direct_from_bytes=1, room_bytes=lambda: 2 * len(DATA))
    with peers("a") as [a]:
        a.hold(DATA)
        Replica(store, fetcher, RateLimiter()).pull(DATA, a)
    assert is_cached(store.object_path(entry_of(DATA).digest))
    fetcher.close()
    store.close()
