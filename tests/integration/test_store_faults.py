"""Pulls from an object store that is slow, refuses, lies, breaks off or knows the key no more; where keys come from."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.faulty_store import Faults, faulty
from tests.integration.test_objectstore import held, ingested, server

from modelsync.core.errors import (
    DigestMismatch,
    DiskFull,
    ObjectStoreRefused,
    PeerRefused,
    PeerUnavailable,
)
from modelsync.core.ids import Digest, FleetName
from modelsync.core.manifest import FileEntry, decode_chunk_list
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.objectstore import body
from modelsync.edges.objectstore.bucket import Bucket
from modelsync.edges.objectstore.client import STORE_PEER, ObjectStore
from modelsync.edges.objectstore.credentials import CREDENTIAL, credentials_of
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Progress

__all__ = ["held", "server"]  # fixtures

SIZE = 18_000_001


def keys(path: Path, endpoint: str, key: str) -> Path:
    path.write_text(f"aws_access_key_id={key}\naws_secret_access_key=unspeakable\naws_endpoint={endpoint}\n")
    with path.open("a") as file:
        file.write("aws_region=us-east-1\n")
    return path


class Puller:
    """A host that has nothing, and the store behind the relay, which has one file."""

    def __init__(self, faults: Faults, held: IngestingStore, root: Path) -> None:
        self.faults = faults
        self.keys = keys(root / "keys", faults.url, "first")
        self.url = f"s3://models/{root.name}"
        self.data = os.urandom(SIZE)
        (self.entry,) = ingested(held, root / "source", self.data)
        uploader = ObjectStore(Bucket(self.url, self.keys), FleetName("test"), held)
        uploader.keep_files([self.entry])
        uploader.close()
        self.chunks = chunks_of(held, self.entry)
        self.store = IngestingStore(root / "other")
        self.store.open()
        self.depot = ObjectStore(Bucket(self.url, self.keys), FleetName("test"), self.store)
        self.fetcher = Fetcher(self.store, RateLimiter(0), me="me", depot=self.depot, swarm_from_bytes=1 << 40)
        self.progress = Progress(total_bytes=SIZE)

    def pull(self) -> int:
        """The bytes that came over the wire."""
        self.progress = Progress(total_bytes=SIZE)
        self.fetcher.file(self.entry, self.chunks, [STORE_PEER], self.progress)
        assert self.store.object_path(self.entry.digest).read_bytes() == self.data
        return self.progress.wire_bytes

    def close(self) -> None:
        self.fetcher.close()
        self.depot.close()
        self.store.close()


def chunks_of(held: IngestingStore, entry: FileEntry) -> tuple[Digest, ...]:
    if entry.chunk_list is None:
        return entry.chunks
    data = held.read_document(entry.chunk_list)
    assert data is not None
    return decode_chunk_list(data, entry)


@pytest.fixture
def puller(server: str, held: IngestingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Puller]:
    monkeypatch.setattr(body, "SEGMENT_BYTES", 4 << 20)  # several requests for one file
    with faulty(server) as faults:
        made = Puller(faults, held, tmp_path)
        yield made
        made.close()


def test_a_slow_store_is_waited_for(puller: Puller) -> None:
    puller.faults.rate_bytes_per_s = 12e6
    assert puller.pull() == SIZE


@pytest.mark.parametrize(("status", "fault"), [(503, PeerUnavailable), (500, PeerUnavailable), (403, PeerRefused)])
def test_a_store_that_refuses_is_said_and_asked_again(puller: Puller, status: int, fault: type[Exception]) -> None:
    puller.faults.status = status
    with pytest.raises(fault):
        puller.pull()
    assert puller.depot.trouble is not None and "unspeakable" not in puller.depot.trouble
    puller.faults.status = 0
    assert puller.pull() == SIZE
    assert puller.depot.trouble is None


def test_wrong_bytes_are_not_kept_and_the_store_is_named(puller: Puller) -> None:
    puller.faults.flip = True
    with pytest.raises(DigestMismatch, match="object store"):
        puller.pull()
    assert not puller.store.has(puller.entry.digest)
    puller.faults.flip = False
    assert 0 < puller.pull() < SIZE, "what was right before the wrong byte is not asked for again"


def test_bodies_that_end_early(puller: Puller) -> None:
    puller.faults.short = 100
    with pytest.raises(PeerUnavailable):
        puller.pull()
    puller.faults.short = 3_000_000  # of 4 MiB: the client goes on from there by itself
    assert puller.pull() == SIZE


def test_credentials_that_end_in_mid_pull_and_are_renewed_in_the_file(puller: Puller) -> None:
    puller.faults.key, puller.faults.expires_after = "first", 2
    with pytest.raises(PeerRefused, match="ExpiredToken"):
        puller.pull()
    assert puller.progress.done_bytes > 0
    with pytest.raises(PeerRefused):
        puller.pull()
    keys(puller.keys, puller.faults.url, "renewed")
    assert 0 < puller.pull() < SIZE, "it goes on where it was, and nothing was started anew"
    assert set(puller.faults.keys_seen) == {"first", "renewed"}


def test_a_full_disk_leaves_nothing_behind(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(DiskFull):
            puller.pull()
    assert not list(puller.store.partial.iterdir())
    assert puller.pull() == SIZE


# --- where credentials come from -------------------------------------------------------------------------------------


def test_keys_of_the_environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty(server) as faults:
        for name, value in (
            ("ACCESS_KEY_ID", "of-the-environment"),
            ("SECRET_ACCESS_KEY", "x"),
            ("REGION", "us-east-1"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT", faults.url)
        bucket = Bucket("s3://models/environment", None)
        assert bucket.create("k", b"1")
        bucket.close()
        assert set(faults.keys_seen) == {"of-the-environment"}


def test_keys_of_a_file_win_and_those_of_systemd_are_found(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert credentials_of(None) is None, "LoadCredential= names no such file"
    with faulty(server) as faults:
        loaded = keys(tmp_path / CREDENTIAL, faults.url, "of-systemd")
        named = keys(tmp_path / "named", faults.url, "of-the-file")
        for configured, key in ((None, "of-systemd"), (named, "of-the-file")):
            faults.keys_seen.clear()
            bucket = Bucket("s3://models/files", credentials_of(configured))
            bucket.create("k", b"1")
            bucket.close()
            assert set(faults.keys_seen) == {key}
        assert loaded.exists()


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    bucket = Bucket("s3://models/files", tmp_path / "none")
    with pytest.raises(ObjectStoreRefused, match="No such file"):
        bucket.size_bytes("k")
    bucket.close()
