"""edges.objectstore.client against a real S3 server and a mounted path: what is put, claimed and never overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest
from tests.integration.s3_server import KEYS, s3_server

from modelsync.core.errors import ObjectStoreRefused, ObjectStoreUnavailable, PeerRefused, VersionConflict
from modelsync.core.ids import ZERO_ID, Digest, EntryId, FleetName, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest, encode
from modelsync.core.sources.layout import SourceFile
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.objectstore.body import store_answer
from modelsync.edges.objectstore.bucket import Bucket
from modelsync.edges.objectstore.client import ObjectStore


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("moto.server")
    with s3_server() as url:
        yield url


@pytest.fixture
def held(tmp_path: Path) -> Iterator[IngestingStore]:
    store = IngestingStore(tmp_path / "state")
    store.open()
    yield store
    store.close()


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path | None]:
    if request.param == "file":
        (tmp_path / "bucket").mkdir()
        return f"file://{tmp_path}/bucket", None
    url = request.getfixturevalue("server")
    keys = tmp_path / "keys"
    keys.write_text(f"{KEYS}aws_endpoint={url}\n# a comment\n")
    return f"s3://models/{tmp_path.name}", keys


def made(place: tuple[str, Path | None], held: IngestingStore, fleet: str = "test") -> ObjectStore:
    return ObjectStore(Bucket(place[0], place[1]), FleetName(fleet), held)


def ingested(held: IngestingStore, root: Path, data: bytes) -> tuple[FileEntry, ...]:
    root.mkdir(exist_ok=True)
    (root / "m.bin").write_bytes(data)
    sources: tuple[SourceFile, ...] = held.survey(root)
    return held.ingest(root, sources)


def manifest(
    files: tuple[FileEntry, ...], at: EntryId, note: str = "", number: int = 1
) -> tuple[Manifest, Digest, bytes]:
    made = Manifest(ModelName("m"), Version(number), at, 0, "", note, None, Digest(bytes(32)), {}, files)
    data = encode(made)
    return made, Digest(blake3.blake3(data).digest()), data


def test_what_is_put_is_read_back_by_ranges(
    place: tuple[str, Path | None], held: IngestingStore, tmp_path: Path
) -> None:
    store = made(place, held)
    data = os.urandom(20_000_001)
    files = ingested(held, tmp_path / "source", data)
    store.keep_files(files)
    store.keep_files(files)  # again is nothing
    digest = files[0].digest
    with store_answer(store, digest, (5, 20_000_001)) as body:
        buffer = memoryview(bytearray(20_000_001 - 5))
        filled = 0
        while filled < len(buffer):
            size = body.readinto1(buffer[filled:])
            assert size > 0
            filled += size
        assert body.readinto1(buffer) == 0
    assert bytes(buffer) == data[5:]
    one, its_digest, text = manifest(files, EntryId(1, 1))
    assert not store.has_version(ModelName("m"), Version(1), its_digest)
    store.keep_version(one, its_digest, text)
    assert store.has_version(ModelName("m"), Version(1), its_digest)
    assert store.manifest(its_digest) == one
    store.close()


def test_a_claim_is_taken_once(place: tuple[str, Path | None], held: IngestingStore, tmp_path: Path) -> None:
    ours, theirs = made(place, held), made(place, held, "other")
    files = ingested(held, tmp_path / "source", b"x" * 100)
    late, late_digest, late_text = manifest(files, EntryId(5, 2))
    ours.keep_version(late, late_digest, late_text)
    ours.keep_version(late, late_digest, late_text)  # the same again
    early, early_digest, early_text = manifest(files, EntryId(4, 9), "of a primary that was replaced")
    with pytest.raises(VersionConflict):
        ours.keep_version(early, early_digest, early_text)
    with pytest.raises(VersionConflict):
        theirs.keep_version(late, early_digest, early_text)
    later, later_digest, later_text = manifest(files, EntryId(6, 1), "the first never reached the catalog")
    ours.keep_version(later, later_digest, later_text)
    assert ours.has_version(ModelName("m"), Version(1), later_digest)
    assert later.id > ZERO_ID
    ours.close()
    theirs.close()


def test_two_writers_at_the_same_moment(server: str, held: IngestingStore, tmp_path: Path) -> None:
    """The second read a claim that the first then replaced: its own put must not go through."""
    keys = tmp_path / "keys"
    keys.write_text(f"{KEYS}aws_endpoint={server}\n")
    store = made((f"s3://models/{tmp_path.name}", keys), held)
    assert store.bucket.create("k", b"first")
    found = store.bucket.read("k", 100)
    assert found is not None
    assert store.bucket.replace("k", b"second", found[1])
    assert not store.bucket.replace("k", b"third", found[1])
    found = store.bucket.read("k", 100)
    assert found is not None and found[0] == b"second"
    store.close()


def test_what_is_not_there_and_who_refuses(server: str, held: IngestingStore, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEYS}aws_endpoint={server}\n")
    store = made((f"s3://models/{tmp_path.name}", keys), held)
    with pytest.raises(PeerRefused) as missing, store_answer(store, Digest(bytes(32)), (0, 10)) as body:
        body.readinto1(memoryview(bytearray(10)))
    assert missing.value.status == 404
    keys.write_text("aws_region\n")
    store.bucket.reconnect()
    with pytest.raises(ObjectStoreRefused, match="line 1 is not name=value"):
        store.bucket.size_bytes("k")
    keys.write_text(f"{KEYS}aws_endpoint=http://127.0.0.1:9\n")
    with pytest.raises(ObjectStoreUnavailable) as away:
        store.bucket.size_bytes("k")
    assert "unspeakable" not in str(away.value), "no credentials in a fault"
    store.close()


def test_a_path_that_is_not_mounted_is_said_and_nothing_is_written_beneath_it(tmp_path: Path) -> None:
    path = tmp_path / "mnt" / "models"
    path.mkdir(parents=True)
    bucket = Bucket(f"file://{path}", None)
    assert bucket.create("versions/m/1", b"1")
    path.rename(tmp_path / "away")
    for attempt in (bucket, Bucket(f"file://{path}", None)):
        for act in (
            lambda b=attempt: b.create("versions/m/2", b"2"),
            lambda b=attempt: b.read("versions/m/1", 100),
            lambda b=attempt: list(b.listed("versions/")),
        ):
            with pytest.raises(ObjectStoreUnavailable, match="is it mounted"):
                act()
            assert attempt.trouble is not None and "is it mounted" in attempt.trouble
    assert not path.exists()
    (tmp_path / "away").rename(path)
    assert bucket.read("versions/m/1", 100) is not None
    assert bucket.trouble is None
