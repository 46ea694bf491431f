"""The object store of ``shared`` models: versions in a bucket of S3, GCS, Azure or a mounted path.

Everything lies under its digest, so nothing is overwritten with other bytes, and whoever reads verifies. A version is
claimed last, by a put that only creates: a claim means that all of it is there, and two writers cannot both have it.
Reading and publishing never look at a listing: it may be late. What must hold of names that garbage collection has
condemned is core.condemned's. PROTOCOL.md section 9.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence

from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core.canonical import MAX_DOCUMENT_BYTES
from modelsync.core.errors import LayoutCorrupt, LocalFault, RemoteFault, VersionConflict
from modelsync.core.ids import Digest, FleetName, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.core.storage import claims, condemned
from modelsync.core.storage.claims import Claim
from modelsync.core.storage.condemned import CondemnedLog, Kind, Name
from modelsync.edges.disk.store import Store
from modelsync.edges.objectstore.bucket import Bucket, Tag
from modelsync.ports import Peer

STORE_PEER = Peer("object store", "store:", primary=True)
"""Asked like a primary: after every host that has it, and by shares where several pull at once."""


class ObjectStore:
    """Implements ports.Depot. Its methods block; call them from a thread.

    Args:
        fleet: whose versions these are; another fleet's number is never taken.
        held: this host's store, to upload from.
    """

    def __init__(self, bucket: Bucket, fleet: FleetName, held: Store) -> None:
        self.bucket = bucket
        self.fleet = fleet
        self._held = held
        self._guard = threading.Lock()
        self._log = CondemnedLog()
        self._relied_on: dict[tuple[Kind, Digest], Name] = {}

    def close(self) -> None:
        self.bucket.close()

    @property
    def peer(self) -> Peer:
        return STORE_PEER

    @property
    def trouble(self) -> str | None:
        return self.bucket.trouble

    # --- names -------------------------------------------------------------------------------------------------------

    def condemned(self) -> CondemnedLog:
        """The log of condemned names, as it is by now."""
        while True:
            number = self._log.read
            found = self.bucket.read(condemned.log_key(number), condemned.MAX_LOG_BYTES)
            if found is None:
                return self._log
            names = condemned.decode(found[0])
            with self._guard:
                if self._log.read == number:  # else another thread has read it meanwhile
                    self._log.add(names)

    def relied_on(self) -> set[Digest]:
        """What publishes under way have put or found and not claimed yet: not garbage."""
        with self._guard:
            return {digest for _, digest in self._relied_on}

    def probe(self) -> None:
        with contextlib.suppress(RemoteFault, LocalFault):
            self.bucket.size_bytes("clock")

    def forget_publishes(self) -> None:
        """No publish is under way: what one that failed has put may go."""
        with self._guard:
            self._relied_on.clear()

    def _places(self, kind: Kind, digest: Digest) -> Iterator[Name]:
        """Where an object may lie: as far as is known here, then as the log says by now."""
        with self._guard:
            known = self._log.readable(kind, digest)
        yield from known
        yield from (name for name in self.condemned().readable(kind, digest) if name not in known)

    # --- reading -----------------------------------------------------------------------------------------------------

    def find(self, kind: Kind, digest: Digest) -> tuple[str, int] | None:
        """Where an object lies, and its size in bytes; None if it is not there."""
        for name in self._places(kind, digest):
            size = self.bucket.size_bytes(str(name))
            if size is not None:
                return str(name), size
        return None

    def stream(self, kind: Kind, digest: Digest, start: int, end: int) -> Iterator[memoryview]:
        """Bytes of an object in one request, as they come. Raises FileNotFoundError too."""
        fault = FileNotFoundError(str(digest))
        for name in self._places(kind, digest):
            begun = False
            try:
                for piece in self.bucket.stream(str(name), start, end):
                    begun = True
                    yield piece
                return
            except FileNotFoundError as error:
                if begun:
                    raise
                fault = error
        raise fault

    def read(self, kind: Kind, digest: Digest, max_bytes: int) -> bytes | None:
        """A small object; None if there is none."""
        for name in self._places(kind, digest):
            found = self.bucket.read(str(name), max_bytes)
            if found is not None:
                return found[0]
        return None

    def manifest(self, digest: Digest) -> Manifest | None:
        data = self.read("manifests", digest, MAX_DOCUMENT_BYTES)
        if data is None or blake3(data).digest() != digest.raw:
            return None
        return manifests.decode(data)

    def has_version(self, name: ModelName, version: Version, digest: Digest) -> bool:
        found = self._claim(claim_key(name, version))
        return found is not None and (found[0].fleet, found[0].digest) == (self.fleet, digest)

    def _claim(self, key: str) -> tuple[Claim, Tag] | None:
        """What a number was claimed for, and the tag by which the claim may be replaced."""
        found = self.bucket.read(key, claims.MAX_BYTES)
        return (claims.decode(found[0]), found[1]) if found is not None else None

    # --- writing -----------------------------------------------------------------------------------------------------

    def keep_files(self, files: Sequence[FileEntry]) -> None:
        log = self.condemned()
        distinct = {entry.digest: entry for entry in files}.values()
        for _ in self.bucket.in_parallel(lambda entry: self._keep_file(entry, log), distinct):
            pass  # the first fault is raised here

    def _keep_file(self, entry: FileEntry, log: CondemnedLog) -> None:
        for document in filter(None, (entry.chunk_list, entry.seeds)):
            data = self._held.read_document(document)
            if data is not None:
                self._keep_document(document, data, log)
            elif document == entry.chunk_list:
                raise LayoutCorrupt(path=str(document), reason="a chunk list is gone; publish again")
        name = log.usable("objects", entry.digest)
        if not self._relies_on(name):
            if self.bucket.size_bytes(str(name)) != entry.size_bytes:
                self.bucket.upload(str(name), self._held.object_path(entry.digest), entry.size_bytes)
            self._rely_on(name)

    def _keep_document(self, digest: Digest, data: bytes, log: CondemnedLog) -> None:
        name = log.usable("manifests", digest)
        if not self._relies_on(name):
            self.bucket.create(str(name), data)
            self._rely_on(name)

    def _relies_on(self, name: Name) -> bool:
        with self._guard:
            return self._relied_on.get((name.kind, name.digest)) == name

    def _rely_on(self, name: Name) -> None:
        with self._guard:
            self._relied_on[name.kind, name.digest] = name

    def keep_version(self, manifest: Manifest, digest: Digest, data: bytes) -> None:
        while True:
            self._keep_document(digest, data, self.condemned())
            self.keep_files(manifest.files)  # no request for what was put or found a moment ago
            self._take(manifest, digest)
            if self._stands(manifest, digest):
                break
        with self._guard:
            for kind, each in self._all_of(manifest, digest):
                self._relied_on.pop((kind, each), None)

    def _stands(self, manifest: Manifest, digest: Digest) -> bool:
        """Whether nothing that the version relies on was condemned before it was claimed."""
        log = self.condemned()
        return all(self._relies_on(log.usable(kind, each)) for kind, each in self._all_of(manifest, digest))

    def _all_of(self, manifest: Manifest, digest: Digest) -> Iterable[tuple[Kind, Digest]]:
        """What must be there. A seed map is a hint, and may be gone."""
        yield "manifests", digest
        for entry in manifest.files:
            yield "objects", entry.digest
            if entry.chunk_list is not None:
                yield "manifests", entry.chunk_list

    def _take(self, manifest: Manifest, digest: Digest) -> None:
        """Claim its number. Raises VersionConflict."""
        key, ours = claim_key(manifest.model, manifest.version), Claim(self.fleet, manifest.id, digest)
        if self.bucket.create(key, claims.encode(ours)):
            return
        taken = "removed just now"
        if found := self._claim(key):
            known, tag = found
            if known.digest == digest and known.fleet == self.fleet:
                return
            if ours.may_replace(known) and self.bucket.replace(key, claims.encode(ours), tag):
                return
            taken = f"{known.digest} of fleet {known.fleet}, {known.id}"
        raise VersionConflict(model=manifest.model, version=manifest.version, known=taken, offered=str(digest))


def claim_key(name: ModelName, version: Version) -> str:
    return f"versions/{name}/{version}"
