"""Garbage collection in a real S3 server and on a mounted path: what goes, what stays, and who may come in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.integration.faulty_store import Faults, faulty
from tests.integration.s3_server import KEYS
from tests.integration.test_objectstore import held, ingested, made, manifest, place, server

from modelsync.core.errors import LayoutCorrupt, NoPrimary, PolicyRefusal
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import FileEntry
from modelsync.core.storage.condemned import Wanted
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.objectstore.client import ObjectStore
from modelsync.edges.objectstore.sweep import Sweeper
from modelsync.ports import Swept

__all__ = ["held", "place", "server"]  # fixtures

GRACE_S = 1.0
M = ModelName("m")
Kept = Mapping[ModelName, Wanted]


class Hand:
    """Turned by hand."""

    now_s = 0.0

    def boottime_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 0


class Site:
    """One host over a store: publishes, and collects garbage."""

    def __init__(self, place: tuple[str, Path | None], held: IngestingStore, root: Path) -> None:
        self.clock = Hand()
        self.place, self.held, self.root = place, held, root
        self.store = made(place, held)
        self.sweeper = Sweeper(self.store, self.clock)
        self.kept: dict[Version, Digest] = {}
        self.files: dict[int, tuple[FileEntry, ...]] = {}

    def ingest(self, number: int, data: bytes) -> tuple[FileEntry, ...]:
        self.files[number] = ingested(self.held, self.root / f"source-{number}", data)
        return self.files[number]

    def claim(self, number: int, store: ObjectStore | None = None) -> Digest:
        one, digest, text = manifest(self.files[number], EntryId(1, number), number=number)
        (store or self.store).keep_version(one, digest, text)
        self.kept[Version(number)] = digest
        return digest

    def publish(self, number: int, data: bytes) -> Digest:
        self.store.keep_files(self.ingest(number, data))
        return self.claim(number)

    def wanted(self) -> Kept:
        return {M: Wanted(max(self.kept, default=None), dict(self.kept))}

    def sweep(self, sweeper: Sweeper | None = None, kept: Callable[[], Kept] | None = None, **words: Any) -> Swept:
        self.clock.now_s += GRACE_S
        return (sweeper or self.sweeper).sweep(kept or self.wanted, GRACE_S, dry_run=words.get("dry_run", False))

    def drop(self, number: int, head: int) -> None:
        """Keep a version no longer."""
        del self.kept[Version(number)]
        assert max(self.kept) == head

    def there(self, number: int) -> bool:
        return self.store.find("objects", self.files[number][0].digest) is not None

    def places(self) -> set[str]:
        return {held.key for prefix in ("objects/", "manifests/") for held in self.store.bucket.listed(prefix)}


@pytest.fixture
def site(place: tuple[str, Path | None], held: IngestingStore, tmp_path: Path) -> Iterator[Site]:
    made = Site(place, held, tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def late(server: str, held: IngestingStore, tmp_path: Path) -> Iterator[tuple[Site, Faults]]:
    """A site on a store whose listings stop to move on when told to: S3's once did, and those of caches do."""
    with faulty(server) as faults:
        keys = tmp_path / "keys"
        keys.write_text(f"{KEYS}aws_endpoint={faults.url}\n")
        made = Site((f"s3://models/{tmp_path.name}", keys), held, tmp_path)
        yield made, faults
        made.store.close()


def idle(swept: Swept) -> bool:
    return not (swept.versions or swept.missing or swept.condemned or swept.waiting or swept.deleted)


def grow_old() -> None:
    """Objects younger than the grace are not condemned, and S3 counts whole seconds."""
    time.sleep(GRACE_S + 1.05)


def test_a_version_that_is_kept_no_longer_goes_after_the_grace_with_all_that_is_its_own(site: Site) -> None:
    site.publish(1, b"1" * 20_000_000)  # with a chunk list of its own
    site.publish(2, b"2" * 1000)
    assert len(site.places()) == 5
    site.drop(1, head=2)
    grow_old()
    preview = site.sweep(dry_run=True)
    assert (preview.versions, preview.condemned, preview.deleted) == ([(M, 1)], 3, 0) and len(site.places()) == 5
    first = site.sweep()
    assert (first.versions, first.condemned, first.deleted) == ([(M, 1)], 3, 0) and site.there(1)
    site.clock.now_s -= GRACE_S / 2
    assert site.sweep().waiting == 3, "half a grace is none"
    last = site.sweep()
    assert last.deleted == 3 and last.deleted_bytes > 20_000_000
    assert not site.there(1) and site.there(2)
    assert len(site.places()) == 2
    assert idle(site.sweep())


def test_bytes_that_another_version_shares_stay(site: Site) -> None:
    site.publish(1, b"same" * 100)
    site.publish(2, b"same" * 100)
    site.drop(1, head=2)
    grow_old()
    for _ in range(3):
        site.sweep()
    assert site.there(2) and len(site.places()) == 2


def test_an_object_that_is_condemned_while_it_is_published_lies_there_again(site: Site) -> None:
    """It was found in the store, and condemned before its version was claimed: by a collector of another process."""
    site.publish(1, b"x" * 1000)
    site.publish(2, b"y" * 1000)
    site.drop(1, head=2)
    grow_old()
    slow = made(site.place, site.held)
    slow.keep_files(site.ingest(3, b"x" * 1000))  # it is there
    site.sweep()  # condemned
    site.sweep()  # and gone
    assert not site.there(1)
    site.claim(3, slow)
    assert site.there(3)
    fresh = made(site.place, site.held)
    body = b"".join(fresh.stream("objects", site.files[3][0].digest, 0, 1000))
    assert body == b"x" * 1000, "whoever has not read the log finds it too"
    for _ in range(3):
        site.sweep()
    assert site.there(3)
    slow.close()
    fresh.close()


def test_what_was_condemned_just_before_the_claim_is_put_again_after_it(site: Site) -> None:
    site.publish(1, b"x" * 1000)
    site.publish(2, b"y" * 1000)
    site.drop(1, head=2)
    grow_old()
    slow = made(site.place, site.held)
    slow.keep_files(site.ingest(3, b"x" * 1000))
    take = slow._take

    def late(*words: Any) -> None:
        slow._take = take  # type: ignore[method-assign]
        site.sweep()
        site.sweep()
        assert not site.there(1)
        take(*words)

    slow._take = late  # type: ignore[method-assign]
    site.claim(3, slow)
    assert site.there(3)
    slow.close()


def test_the_delete_of_a_collector_that_was_stopped_finds_nothing_of_use(site: Site) -> None:
    site.publish(1, b"x" * 1000)
    site.publish(2, b"y" * 1000)
    site.drop(1, head=2)
    grow_old()
    site.sweep()
    stopped: list[str] = []
    site.store.bucket.delete = stopped.extend  # type: ignore[method-assign]
    site.sweep()
    del site.store.bucket.delete  # type: ignore[method-assign]
    assert len(stopped) == 2
    other = made(site.place, site.held)
    other.keep_files(site.ingest(3, b"x" * 1000))
    site.claim(3, other)
    site.store.bucket.delete(stopped)
    assert site.there(3)
    other.close()


def test_two_collectors_and_one_who_is_primary_no_more(site: Site) -> None:
    site.publish(1, b"x" * 1000)
    site.publish(2, b"y" * 1000)
    site.drop(1, head=2)
    grow_old()
    second_store = made(site.place, site.held)
    second = Sweeper(second_store, site.clock)
    site.sweep()
    site.sweep(second)
    assert site.there(1), "the second has only now seen that it is condemned"
    answers = iter([True, False])

    def replaced() -> Kept:
        if not next(answers):
            raise NoPrimary(fleet="test")
        return site.wanted()

    with pytest.raises(NoPrimary):
        site.sweep(second, replaced)
    assert site.there(1)
    assert site.sweep(second).deleted == 2
    second_store.close()


def test_what_a_publish_of_this_host_has_put_is_no_garbage_until_it_has_failed(site: Site) -> None:
    site.publish(1, b"y" * 1000)
    site.store.keep_files(site.ingest(2, b"x" * 1000))
    grow_old()
    assert idle(site.sweep())
    site.store.forget_publishes()
    assert site.sweep().condemned == 1


def test_another_fleet_or_a_manifest_that_is_gone_ends_it(site: Site) -> None:
    digest = site.publish(1, b"y" * 1000)
    site.publish(2, b"z" * 1000)
    theirs = made(site.place, site.held, "other")
    one, its_digest, text = manifest(site.ingest(3, b"t" * 10), EntryId(1, 1), number=7)
    theirs.keep_version(one, its_digest, text)
    site.drop(1, head=2)
    grow_old()
    with pytest.raises(PolicyRefusal, match="fleet other"):
        site.sweep()
    site.store.bucket.delete(["versions/m/7"])
    site.store.bucket.delete([f"manifests/{site.kept[Version(2)].hex}"])
    with pytest.raises(LayoutCorrupt, match="manifest is gone"):
        site.sweep()
    assert site.there(1) and site.there(2) and digest != its_digest
    theirs.close()


def test_a_version_that_the_store_has_lost_is_named(site: Site) -> None:
    site.publish(1, b"y" * 1000)
    site.store.bucket.delete(["versions/m/1"])
    assert site.sweep().missing == [(M, 1)]
    assert site.there(1)


# --- listings that are late ------------------------------------------------------------------------------------------


def test_publishing_and_reading_look_at_no_listing(late: tuple[Site, Faults]) -> None:
    site, faults = late
    faults.late = True
    digest = site.publish(1, b"1" * 20_000_000)
    assert site.places() == set(), "nothing is listed yet"
    fresh = made(site.place, site.held)
    assert fresh.has_version(M, Version(1), digest)
    found = fresh.manifest(digest)
    assert found is not None and found.version == 1
    assert b"".join(fresh.stream("objects", site.files[1][0].digest, 0, 20_000_000)) == b"1" * 20_000_000
    fresh.close()


def test_what_is_not_listed_yet_is_needed_all_the_same(late: tuple[Site, Faults]) -> None:
    """Version 2 shares its bytes with version 1, which goes; the collector's listing knows of version 1 alone."""
    site, faults = late
    site.publish(1, b"same" * 1000)
    site.places()
    site.sweep()
    faults.late = True
    site.publish(2, b"same" * 1000)
    site.drop(1, head=2)
    grow_old()
    for _ in range(4):
        site.sweep()
        assert site.there(2)
    faults.late = False
    for _ in range(3):
        site.sweep()
    assert site.there(2) and len(site.places()) == 2


def test_what_is_still_listed_and_gone_is_no_fault_and_takes_nothing_with_it(late: tuple[Site, Faults]) -> None:
    site, faults = late
    site.publish(1, b"1" * 1000)
    site.publish(2, b"2" * 1000)
    site.drop(1, head=2)
    grow_old()
    site.sweep()
    assert len(site.places()) == 4
    faults.late = True
    for _ in range(3):
        site.sweep()
    assert not site.there(1) and site.there(2)
    assert len(site.places()) == 4, "the listing does not know"
    site.publish(3, b"1" * 1000)  # the same bytes again, whose old place is listed and gone
    for _ in range(3):
        site.sweep()
        assert site.there(3)
    faults.late = False
    for _ in range(3):
        site.sweep()
    assert site.there(2) and site.there(3)
