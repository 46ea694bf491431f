"""Delta: what a host holds is copied, what moved is found, and a map that lies costs a copy and never a byte."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.disk import sources
from tests.integration.lying_peer import LyingPeer, peers

from modelsync.core import manifest as manifests
from modelsync.core.errors import DigestMismatch, DiskFailed, DiskFull
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import CHUNK_BYTES, FileEntry, Manifest
from modelsync.core.transfer import seeds
from modelsync.core.transfer.seeds import Span
from modelsync.edges.disk import alignment
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.pull import copying
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Progress

MIB = CHUNK_BYTES
RANDOM = random.Random(11)
OLD = RANDOM.randbytes(6 * MIB + 777)
SIZE = len(OLD)


def changed(data: bytes, at: int, size: int) -> bytes:
    return data[:at] + random.Random(at).randbytes(size) + data[at + size :]


EDITS = {
    "inserted near the start": (OLD[:1000] + b"inserted" * 8 + OLD[1000:], 64),
    "cut out in the middle": (OLD[: 2 * MIB + 5] + OLD[2 * MIB + 905 :], 0),
    "one changed range": (changed(OLD, 3 * MIB - 500, 1000), 1000),
    "a longer head": (RANDOM.randbytes(MIB + 17) + OLD[MIB:], MIB + 17),
    "the halves changed places": (OLD[3 * MIB :] + OLD[: 3 * MIB], 0),
    "appended": (OLD + RANDOM.randbytes(5000), 5000),
    "truncated": (OLD[: 4 * MIB + 9], 0),
    "zeros put in": (OLD[:MIB] + bytes(MIB) + OLD[MIB:], MIB),
    "all new": (RANDOM.randbytes(SIZE), SIZE),
}


# --- finding ----------------------------------------------------------------------------------------------------------


def aligned(tmp_path: Path, old: bytes, new: bytes) -> list[alignment.Match]:
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    blocks = [[data[at : at + MIB] for at in range(0, len(data), MIB)] for data in (old, new)]
    equal = {index for index, (a, b) in enumerate(zip(*blocks, strict=False)) if a == b}
    with (tmp_path / "old").open("rb") as a, (tmp_path / "new").open("rb") as b:
        return alignment.align(b.fileno(), len(new), a.fileno(), len(old), equal)


@pytest.mark.parametrize("name", EDITS)
def test_equal_ranges_are_found_to_the_byte(tmp_path: Path, name: str) -> None:
    new, new_bytes = EDITS[name]
    found = aligned(tmp_path, OLD, new)
    end = 0
    for match in found:
        assert match.offset >= end
        end = match.offset + match.size_bytes
        assert OLD[match.base_offset :][: match.size_bytes] == new[match.offset : end]
    uncovered = len(new) - sum(match.size_bytes for match in found)
    assert new_bytes - 16 <= uncovered <= new_bytes + 16  # a neighbouring byte may be equal by chance


@pytest.mark.parametrize(("old", "new"), [(b"", b"x" * 9), (b"x", b""), (bytes(MIB), bytes(2 * MIB)), (b"ab", b"b")])
def test_degenerate_files(tmp_path: Path, old: bytes, new: bytes) -> None:
    for match in aligned(tmp_path, old, new):
        assert old[match.base_offset :][: match.size_bytes] == new[match.offset :][: match.size_bytes] != b""


# --- from publish to pull ---------------------------------------------------------------------------------------------


class Host:
    """A store with its ways in and out, and the versions that it holds."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.store = IngestingStore(root / "state")
        self.store.open()
        self.fetcher = Fetcher(self.store, RateLimiter(), **options)
        self.root = root
        self.versions: list[Manifest] = []
        self.digests: list[Digest] = []

    def publish(self, data: bytes) -> FileEntry:
        source = Path(tempfile.mkdtemp(dir=self.root))
        (source / "model.bin").write_bytes(data)
        bases = self.versions[-1].files if self.versions else ()
        return self.hold(self.store.ingest(source, sources(source), bases))

    def hold(self, files: tuple[FileEntry, ...]) -> FileEntry:
        number = len(self.versions) + 1
        made = Manifest(
            ModelName("m"), Version(number), EntryId(1, number), 0, "", "", None, files[0].digest, {}, files
        )
        self.versions.append(manifests.decode(manifests.encode(made)))
        self.digests.append(self.store.put_document(manifests.encode(made)))
        self.store.build_tree(made, self.digests[-1])
        return files[0]

    def offer(self, peer: LyingPeer) -> None:
        """Everything that is held, served."""
        for path in (*self.store.objects.glob("??/*"), *self.store.manifests.glob("*")):
            peer.hold(path.read_bytes())

    def pull(self, entry: FileEntry, peer: LyingPeer) -> Progress:
        progress = Progress(total_bytes=entry.size_bytes)
        chunks = entry.chunks
        if entry.chunk_list is not None:
            data = self.fetcher.document(entry.chunk_list, [peer.peer], 1 << 20, Progress())
            chunks = manifests.decode_chunk_list(data, entry)
        self.fetcher.file(entry, chunks, [peer.peer], progress)
        self.hold((entry,))
        return progress

    def read(self, entry: FileEntry) -> bytes:
        return self.store.object_path(entry.digest).read_bytes()

    def close(self) -> None:
        self.fetcher.close()
        self.store.close()


WAYS = {
    "one thread": (1 << 60, {}),
    "two threads": (1, {}),
    "past the page cache": (1, {"direct_from_bytes": 1, "room_bytes": lambda: 0}),
}


@pytest.fixture(params=WAYS)
def hosts(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Host, Host, LyingPeer]]:
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    thread_from_bytes, options = WAYS[request.param]
    monkeypatch.setattr(copying, "THREAD_FROM_BYTES", thread_from_bytes)
    primary, replica = Host(tmp_path / "primary"), Host(tmp_path / "replica", swarm_from_bytes=1, **options)
    with peers("primary") as [peer]:
        yield primary, replica, peer
    primary.close()
    replica.close()


@pytest.mark.parametrize("name", EDITS)
def test_only_what_is_new_crosses_the_wire(
    hosts: tuple[Host, Host, LyingPeer], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    primary, replica, peer = hosts
    proved, finish = [], Fetcher._finish
    monkeypatch.setattr(Fetcher, "_finish", lambda *given: proved.append(finish(*given)) or proved[-1])
    new, new_bytes = EDITS[name]
    first = primary.publish(OLD)
    primary.offer(peer)
    assert replica.pull(first, peer).wire_bytes == SIZE
    second = primary.publish(new)
    primary.offer(peer)
    peer.body_bytes = 0
    progress = replica.pull(second, peer)
    assert replica.read(second) == new
    assert progress.done_bytes == len(new)
    # Beside it: the map, and the whole of a chunk of which more than half is new.
    assert peer.body_bytes <= max(new_bytes + 3000, -(-new_bytes // MIB + 1) * MIB if new_bytes >= MIB // 2 else 0)
    assert progress.wire_bytes == peer.body_bytes
    assert progress.blamed == []
    assert proved == [True, True]  # what is sound is not looked through twice


def test_a_host_that_is_versions_behind_pulls_what_changed_since(hosts: tuple[Host, Host, LyingPeer]) -> None:
    primary, replica, peer = hosts
    texts = [OLD]
    for number in range(3):
        texts.append(texts[-1][: 1000 * number + 9] + b"more" * 20 + texts[-1][1000 * number + 9 :])
    entries = [primary.publish(text) for text in texts]
    primary.offer(peer)
    replica.pull(entries[0], peer)
    peer.body_bytes = 0
    replica.pull(entries[3], peer)
    assert replica.read(entries[3]) == texts[3]
    assert peer.body_bytes < 20_000


def test_chunks_of_any_model_are_found_by_digest_alone(hosts: tuple[Host, Host, LyingPeer]) -> None:
    primary, replica, peer = hosts
    data = OLD[2 * MIB : 5 * MIB] + RANDOM.randbytes(MIB)
    first = primary.publish(OLD)
    primary.offer(peer)
    replica.pull(first, peer)
    primary.versions.clear()  # no base: no map
    other = primary.publish(data)
    assert other.seeds is None
    primary.offer(peer)
    peer.body_bytes = 0
    replica.pull(other, peer)
    assert replica.read(other) == data
    assert peer.body_bytes == MIB


def test_a_map_that_lies_costs_a_copy_and_no_byte(hosts: tuple[Host, Host, LyingPeer]) -> None:
    primary, replica, peer = hosts
    first = primary.publish(OLD)
    new = changed(OLD, MIB, 3 * MIB)
    second = primary.publish(new)
    primary.offer(peer)
    replica.pull(first, peer)
    lie = seeds.encode([(Span(0, SIZE, first.digest, 0),), (Span(0, 6 * MIB, first.digest, 5 * MIB),)])
    lied = replace(second, seeds=peer.hold(lie))
    progress = replica.pull(lied, peer)
    assert replica.read(second) == new
    assert progress.blamed == []


@pytest.mark.parametrize("damage", ["gone", "not a map", "flipped"])
def test_without_its_map_a_file_is_pulled_by_chunks(hosts: tuple[Host, Host, LyingPeer], damage: str) -> None:
    primary, replica, peer = hosts
    first = primary.publish(OLD)
    new, _ = EDITS["inserted near the start"]
    second = primary.publish(new)
    assert second.seeds is not None
    primary.offer(peer)
    replica.pull(first, peer)
    if damage == "gone":
        del peer.objects[str(second.seeds)]
    elif damage == "flipped":
        peer.objects[str(second.seeds)] = b"{}"
    else:
        second = replace(second, seeds=peer.hold(b"no map at all"))
    replica.pull(second, peer)
    assert replica.read(second) == new


# --- copies are proved by the whole file's digest ---------------------------------------------------------------------


def rot(replica: Host, entry: FileEntry, offset: int = 2 * MIB + 9) -> Path:
    """Spoil a few bytes of a file that is held."""
    path = replica.store.object_path(entry.digest)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"rot")
    return path


def test_a_base_whose_bytes_rotted_is_not_passed_on(hosts: tuple[Host, Host, LyingPeer]) -> None:
    primary, replica, peer = hosts
    first = primary.publish(OLD)
    new, _ = EDITS["inserted near the start"]
    second = primary.publish(new)
    primary.offer(peer)
    replica.pull(first, peer)
    rot(replica, first)
    progress = replica.pull(second, peer)
    assert replica.read(second) == new
    assert progress.done_bytes == len(new)
    assert progress.blamed == []  # a map led there: the publisher may be wrong, or the disk


def test_rot_is_found_named_healed_and_not_copied_again(hosts: tuple[Host, Host, LyingPeer]) -> None:
    primary, replica, peer = hosts
    texts = [OLD, changed(OLD, 0, 1000), changed(OLD, 5 * MIB, 1000)]
    first, second, third = (primary.publish(text) for text in texts)
    primary.offer(peer)
    replica.pull(first, peer)
    path = rot(replica, first)
    progress = replica.pull(second, peer)
    assert replica.read(second) == texts[1]
    assert progress.done_bytes == SIZE
    [fault] = progress.blamed
    assert isinstance(fault, DigestMismatch)
    assert (fault.path, fault.chunk, fault.source) == (str(path), 2, "disk")
    assert fault.expected == str(second.chunks[2]) != fault.actual
    assert MIB < progress.wire_bytes < MIB + 3000
    shutil.rmtree(replica.store.tree_path(ModelName("m"), replica.digests[-1]))  # it has a sound copy of that chunk
    replica.store.object_path(second.digest).unlink()
    progress = replica.pull(third, peer)
    assert replica.read(third) == texts[2]
    assert progress.blamed == []
    assert MIB < progress.wire_bytes < MIB + 3000


class Stopped(Exception):
    pass


def test_what_is_copied_is_shown_to_nobody_before_it_is_proved(
    hosts: tuple[Host, Host, LyingPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor after a pull that stopped: the next one looks at each chunk of what it finds."""
    primary, replica, peer = hosts
    first = primary.publish(OLD)
    new = changed(OLD, 3 * MIB, MIB)
    second = primary.publish(new)
    primary.offer(peer)
    replica.pull(first, peer)
    rot(replica, first)

    def stop(*_: object) -> bool:
        raise Stopped

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Fetcher, "_finish", stop)
        replica.pull(second, peer)
    part = replica.store.part(second.digest)
    assert part is not None
    assert part.chunks.ranges() == [(3 * MIB, 4 * MIB)]
    assert part.path.read_bytes()[: 2 * MIB] == new[: 2 * MIB]  # they do lie there
    progress = replica.pull(second, peer)
    assert replica.read(second) == new
    assert progress.wire_bytes == MIB
    assert len(progress.blamed) == 1


def test_bytes_that_no_copy_explains_are_the_manifests_fault(hosts: tuple[Host, Host, LyingPeer]) -> None:
    primary, replica, peer = hosts
    first = primary.publish(OLD)
    second = primary.publish(changed(OLD, 3 * MIB, MIB))
    primary.offer(peer)
    replica.pull(first, peer)
    wrong = replace(second, digest=first.chunks[0])
    peer.objects[str(wrong.digest)] = peer.objects[str(second.digest)]
    with pytest.raises(DigestMismatch) as raised:
        replica.pull(wrong, peer)
    assert raised.value.source == "manifest"
    assert not replica.store.has(wrong.digest)
    assert list(replica.store.partial.iterdir()) == []


@pytest.mark.parametrize(("number", "fault"), [(errno.EIO, DiskFailed), (errno.ENOSPC, DiskFull)])
def test_a_copy_that_cannot_be_written_ends_the_pull(
    hosts: tuple[Host, Host, LyingPeer], monkeypatch: pytest.MonkeyPatch, number: int, fault: type[Exception]
) -> None:
    primary, replica, peer = hosts
    first, second = primary.publish(OLD), primary.publish(changed(OLD, 0, 1000))
    primary.offer(peer)
    replica.pull(first, peer)
    real = os.pwrite

    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        if offset >= 6 * MIB:  # the last chunk: nobody asks for a buffer after it
            raise OSError(number, os.strerror(number))
        return real(descriptor, data, offset)

    def not_shared(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "so that it is written")

    with monkeypatch.context() as patched, pytest.raises(fault):
        patched.setattr(fcntl, "ioctl", not_shared)
        patched.setattr(os, "pwrite", failing)
        replica.pull(second, peer)
    assert list(replica.store.partial.iterdir()) == []
    replica.pull(second, peer)
    assert replica.read(second) == changed(OLD, 0, 1000)


def test_more_files_than_threads_are_copied_as_well(
    hosts: tuple[Host, Host, LyingPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica, peer = hosts
    first, second = primary.publish(OLD), primary.publish(changed(OLD, 0, 1000))
    primary.offer(peer)
    replica.pull(first, peer)
    monkeypatch.setattr(replica.fetcher, "_slots", copying.Slots(0))
    assert replica.pull(second, peer).wire_bytes < 3000
    assert replica.read(second) == changed(OLD, 0, 1000)


@pytest.mark.parametrize("answer", ["shared", "not at a border", "not at all"])
def test_a_file_system_that_shares_blocks_or_does_not(
    hosts: tuple[Host, Host, LyingPeer], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    asked: list[bytes] = []

    def ioctl(descriptor: int, _: int, arguments: bytes) -> None:
        asked.append(arguments)
        if answer != "shared":
            raise OSError(errno.EINVAL if answer == "not at a border" else errno.EOPNOTSUPP, answer)
        base, base_offset, size, offset = struct.unpack("=qQQQ", arguments)
        os.pwrite(descriptor, os.pread(base, size, base_offset), offset)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    primary, replica, peer = hosts
    first = primary.publish(OLD)
    second = primary.publish(EDITS["cut out in the middle"][0])
    primary.offer(peer)
    replica.pull(first, peer)
    peer.body_bytes = 0
    replica.pull(second, peer)
    assert replica.read(second) == EDITS["cut out in the middle"][0]
    assert peer.body_bytes < 3000
    assert len(asked) == 1 if answer == "not at all" else len(asked) > 1


def test_a_file_that_is_held_under_another_name_is_not_asked_for(hosts: tuple[Host, Host, LyingPeer]) -> None:
    primary, replica, peer = hosts
    first = primary.publish(OLD)
    primary.offer(peer)
    replica.pull(first, peer)
    peer.asked.clear()
    replica.fetcher.file(replace(first, path="renamed.bin"), first.chunks, [peer.peer], Progress())
    assert peer.asked == []
