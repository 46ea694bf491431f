"""Publishers and collectors of two hosts, either of them now and then stale, in one object store.

Some day another fleet begins to publish there, which ends all collecting as soon as it is noticed.

The property, checked at each delete and each write to a catalog: every object of a version that was published, and is
kept by its catalog since, lies in the store under some name. Every run can be repeated by its seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core.errors import ModelsyncError, NoPrimary
from modelsync.core.ids import Digest, EntryId, FleetName, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.core.storage import condemned
from modelsync.core.storage.condemned import Wanted
from modelsync.edges.objectstore.client import ObjectStore
from modelsync.edges.objectstore.sweep import Sweeper
from tests.sim.bucket import SimBucket, Turns, World

FLEETS = {"sim": ("a", "b"), "other": ("c",)}
GRACE_S, LAG_S, KEEP = 60.0, 25.0, 2
STEPS = 1000


def digest_of(text: str) -> Digest:
    return Digest(blake3(text.encode()).digest())


class _Held:
    """This host's own store: it has every file there is."""

    def read_document(self, digest: Digest) -> bytes:
        return b"chunks of " + digest.raw

    def object_path(self, digest: Digest) -> Path:
        return Path(digest.hex)


@dataclass
class Outcome:
    """What a run came to."""

    seed: int
    published: int = 0
    refused: int = 0
    """Publishes of a stale primary, and of one that was stopped for too long."""
    deleted: int = 0
    rounds: int = 0
    put_again: int = 0
    """Objects that lie under a second name, because the first was condemned."""
    violations: list[str] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)


@dataclass
class Catalog:
    """What a fleet's Redis orders: a write of an older epoch is refused. Each fleet has one model, of its own name."""

    fleet: FleetName
    primary: str
    epoch: int = 1
    versions: dict[Version, Manifest] = field(default_factory=dict)
    digests: dict[Version, Digest] = field(default_factory=dict)
    chosen: Version | None = None
    promised: set[Version] = field(default_factory=set)

    @property
    def head(self) -> Version | None:
        return max(self.versions, default=None)

    def kept(self) -> dict[Version, Digest]:
        newest = sorted(self.versions)[-KEEP:]
        return {number: self.digests[number] for number in {*newest, *([self.chosen] if self.chosen else [])}}


class Schedule:
    """Each fleet's primary publishes and collects; one that was replaced finds out at its next write."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.turns = Turns(self.dice)
        self.world = World(self.turns, LAG_S, late_reads=self.dice.random() < 0.5)
        self.world.on_delete = self._deleted
        self.catalogs = [Catalog(FleetName(name), hosts[0]) for name, hosts in FLEETS.items()]
        self.outcome = Outcome(seed)

    def run(self, steps: int = STEPS) -> Outcome:
        for catalog in self.catalogs:
            for host in FLEETS[catalog.fleet]:
                self._start(host, catalog)
        self.turns.start("elections", self._elect)
        self.turns.run(steps, freeze=self.dice.choice([0.0, 0.01, 0.05]))
        self.outcome.deleted = len(self.world.deleted)
        self.outcome.put_again = sum("." in key for key in self.world.objects)
        self.outcome.faults = self.turns.faults
        return self.outcome

    def _start(self, host: str, catalog: Catalog) -> None:
        store = ObjectStore(cast(Any, SimBucket(self.world, host)), catalog.fleet, cast(Any, _Held()))
        sweeper = Sweeper(store, self.turns)
        begins_s = 0.0 if host != "c" else self.dice.random() * 1000.0

        def publish() -> None:
            self.turns.wait()
            if self.turns.now_s >= begins_s:
                self._publish(host, catalog, store)

        self.turns.start(f"publisher {host}", publish)
        if host != "c":
            self.turns.start(f"collector {host}", lambda: self._collect(host, catalog, sweeper))

    # --- what the hosts do -------------------------------------------------------------------------------------------

    def _elect(self) -> None:
        self.turns.wait()
        if self.dice.random() < 0.05:
            self.catalogs[0].primary = self.dice.choice(["a", "b"])
            self.catalogs[0].epoch += 1

    def _publish(self, host: str, catalog: Catalog, store: ObjectStore) -> None:
        if catalog.primary != host:
            return
        if catalog.versions and self.dice.random() < 0.25:
            self._roll_back(host, catalog, store)
            return
        files = self._files()
        try:
            store.keep_files(files)
            if catalog.primary != host:
                return
            number, epoch = Version((catalog.head or 0) + 1), catalog.epoch
            at = EntryId(epoch, number)
            manifest = Manifest(
                ModelName(catalog.fleet), number, at, 0, host, "", None, digest_of("content"), {}, files
            )
            data = manifests.encode(manifest)
            digest = Digest(blake3(data).digest())
            store.keep_version(manifest, digest, data)
        except ModelsyncError:
            self.outcome.refused += 1
            return
        if (catalog.primary, catalog.epoch) != (host, epoch) or (catalog.head or 0) >= number:
            self.outcome.refused += 1
            return
        catalog.versions[number], catalog.digests[number] = manifest, digest
        if self.dice.random() < 0.7:
            catalog.chosen = None
        self._written(catalog, {number})
        self.outcome.published += 1

    def _files(self) -> tuple[FileEntry, ...]:
        """Of few contents, so that a version often holds what one before it held, or one that was dropped."""
        names = self.dice.sample(range(4), self.dice.randint(1, 2))
        return tuple(_entry(n) for n in sorted(names))

    def _roll_back(self, host: str, catalog: Catalog, store: ObjectStore) -> None:
        """An earlier version is wanted; the primary, which holds it, puts it there again."""
        number = self.dice.choice(sorted(catalog.versions))
        catalog.chosen = number
        self._written(catalog, set())
        manifest, digest = catalog.versions[number], catalog.digests[number]
        try:
            store.keep_version(manifest, digest, manifests.encode(manifest))
        except ModelsyncError:
            return
        if catalog.primary == host and number in catalog.kept():
            self._written(catalog, {number})

    def _collect(self, host: str, catalog: Catalog, sweeper: Sweeper) -> None:
        self.turns.wait()

        def kept() -> Mapping[ModelName, Wanted]:
            if catalog.primary != host:
                raise NoPrimary(fleet=catalog.fleet)
            return {ModelName(catalog.fleet): Wanted(catalog.head, catalog.kept())}

        try:
            sweeper.sweep(kept, GRACE_S, dry_run=False)
            self.outcome.rounds += 1
        except ModelsyncError:
            pass

    # --- what must hold ----------------------------------------------------------------------------------------------

    def _written(self, catalog: Catalog, whole: set[Version]) -> None:
        catalog.promised = (catalog.promised | whole) & catalog.kept().keys()
        self._check("after a write")

    def _deleted(self, key: str) -> None:
        self._check(f"after {key[-6:]} was deleted")

    def _check(self, when: str) -> None:
        present = {condemned.parse_name(key) for key in self.world.objects if self.world.has(key)}
        there = {(name.kind, name.hex) for name in present if name is not None}
        for catalog, number in ((each, number) for each in self.catalogs for number in each.promised):
            manifest = catalog.versions[number]
            lists = [("manifests", entry.chunk_list.hex) for entry in manifest.files if entry.chunk_list]
            wanted = [("objects", entry.digest.hex) for entry in manifest.files]
            for each in (*wanted, *lists, ("manifests", catalog.digests[number].hex)):
                if each not in there:
                    self.outcome.violations.append(
                        f"{self.turns.now_s:.1f}: {when} version {number} of {catalog.fleet} lacks {each}"
                    )


def _entry(n: int) -> FileEntry:
    digest = digest_of(f"f{n}")
    if n % 2:
        return FileEntry(f"f{n}", 100 << 20, 0o644, digest, chunk_list=digest_of(f"list {n}"))
    return FileEntry(f"f{n}", 3, 0o644, digest, chunks=(digest,))


def run(seed: int, steps: int = STEPS) -> Outcome:
    return Schedule(seed).run(steps)
