"""The object store of ``shared`` models, through obstore: S3 and what speaks it, GCS, Azure, a mounted path.

Everything lies under its digest, so nothing is overwritten with other bytes, and whoever reads verifies. A version is
claimed last, by a put that only creates: a claim means that all of it is there, and two writers cannot both have it.
Listings are never read: they may be late. PROTOCOL.md section 9.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core.canonical import MAX_DOCUMENT_BYTES
from modelsync.core.errors import (
    ConfigurationFault,
    LayoutCorrupt,
    ObjectStoreRefused,
    ObjectStoreUnavailable,
    VersionConflict,
)
from modelsync.core.ids import Digest, FleetName, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.core.storage import claims
from modelsync.core.storage.claims import Claim
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.store import Store
from modelsync.edges.objectstore.credentials import client_options, read_settings
from modelsync.ports import Peer

STORE_PEER = Peer("object store", "store:", primary=True)
"""Asked like a primary: after every host that has it, and by shares where several pull at once."""
PART_BYTES = 16 << 20
"""Of an upload: S3 allows 10,000 of them, which is 160 GB a file; larger files get larger parts."""
MAX_PARTS = 9_000
SMALL_BYTES = 8 << 20
"""Up to here one request that only creates."""
PIECE_BYTES = 1 << 20
"""Handed on at a time of what a request brings: one chunk."""
READERS = 8
"""Requests under way at once, over all pulls: one S3 connection gives some 90 MB/s."""


class ObjectStore:
    """Implements ports.Depot. Its methods block; call them from a thread.

    Args:
        url: as ``storage.url`` has it, checked.
        credentials: a file of settings, or None.
        fleet: whose versions these are; another fleet's number is never taken.
        held: this host's store, to upload from.
    """

    def __init__(self, url: str, credentials: Path | None, fleet: FleetName, held: Store) -> None:
        self._url = url
        self._fleet = fleet
        self._credentials = credentials
        self._held = held
        self._guard = threading.Lock()
        self._open_client: Any = None
        self._library = _library(url)
        self.readers = ThreadPoolExecutor(READERS, "object-store")
        self._local = Path(urlsplit(url).path) if url.startswith("file:") else None

    def close(self) -> None:
        self.readers.shutdown(wait=False, cancel_futures=True)

    @property
    def peer(self) -> Peer:
        return STORE_PEER

    # --- the client --------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        with self._guard:
            if self._open_client is None:
                self._open_client = self._connected()
            return self._open_client

    def _connected(self) -> Any:
        if self._local is not None:
            with local_faults(self._local, "open the object store's directory"):
                durable.make_directories(self._local)
            return self._library.store.LocalStore(self._local)
        settings = read_settings(self._credentials)
        return self._library.store.from_url(
            self._url,
            config=settings,
            client_options=client_options(settings),
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
        )

    def _reconnect(self) -> None:
        """Credentials may have been renewed in the file meanwhile: read it again with the next request."""
        with self._guard:
            self._open_client = None

    @contextlib.contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """obstore's exceptions as ours; a missing object stays a FileNotFoundError, which every caller expects."""
        faults = self._library.exceptions
        try:
            yield
        except (FileNotFoundError, faults.AlreadyExistsError, faults.PreconditionError):
            raise
        except (faults.PermissionDeniedError, faults.UnauthenticatedError) as error:
            self._reconnect()
            raise ObjectStoreRefused(operation=operation, reason=_first_line(error)) from error
        except (faults.BaseError, OSError, ValueError) as error:
            reason = _first_line(error)
            if "ExpiredToken" in str(error) or "InvalidToken" in str(error):  # S3 says 400 for these
                self._reconnect()
                raise ObjectStoreRefused(operation=operation, reason=reason) from error
            raise ObjectStoreUnavailable(operation=operation, reason=reason) from error

    # --- reading -----------------------------------------------------------------------------------------------------

    def size_bytes(self, key: str) -> int | None:
        """How large an object is; None if there is none."""
        try:
            with self._translated(f"look at {key}"):
                return int(self._library.head(self._client(), key)["size"])
        except FileNotFoundError:
            return None

    def read_range(self, key: str, start: int, end: int) -> memoryview:
        """Bytes ``start`` to ``end``, not included. Raises FileNotFoundError too."""
        with self._translated(f"read {key}"):
            return memoryview(self._library.get_range(self._client(), key, start=start, end=end))

    def stream(self, key: str, start: int, end: int) -> Iterator[memoryview]:
        """The same bytes in one request, as they come."""
        with self._translated(f"read {key}"):
            answer = self._library.get(self._client(), key, options={"range": (start, end)})
            for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield memoryview(piece)

    def read(self, key: str, max_bytes: int) -> bytes | None:
        """A small object; None if there is none. Raises ObjectStoreRefused above the limit."""
        size = self.size_bytes(key)
        if size is None:
            return None
        if size > max_bytes:
            raise ObjectStoreRefused(operation=f"read {key}", reason=f"{size} bytes, at most {max_bytes} are read")
        return bytes(self.read_range(key, 0, size)) if size else b""

    def manifest(self, digest: Digest) -> Manifest | None:
        data = self.read(document_key(digest), MAX_DOCUMENT_BYTES)
        if data is None or blake3(data).digest() != digest.raw:
            return None
        return manifests.decode(data)

    def has_version(self, name: ModelName, version: Version, digest: Digest) -> bool:
        claim, _ = self._claim(claim_key(name, version))
        return claim is not None and (claim.fleet, claim.digest) == (self._fleet, digest)

    def _claim(self, key: str) -> tuple[Claim | None, str]:
        """What a number was claimed for, and the tag by which the claim may be replaced."""
        try:
            with self._translated(f"read {key}"):
                answer = self._library.get(self._client(), key)
                tag, data = str(answer.meta["e_tag"]), bytes(answer.bytes())
        except FileNotFoundError:
            return None, ""
        return claims.decode(data[: claims.MAX_BYTES + 1]), tag

    # --- writing -----------------------------------------------------------------------------------------------------

    def keep_files(self, files: Sequence[FileEntry]) -> None:
        distinct = {entry.digest: entry for entry in files}.values()
        for _ in self.readers.map(self._keep_file, distinct):
            pass  # the first fault is raised here

    def _keep_file(self, entry: FileEntry) -> None:
        for document in filter(None, (entry.chunk_list, entry.seeds)):
            data = self._held.read_document(document)
            if data is not None:
                self._create(document_key(document), data)
            elif document == entry.chunk_list:
                raise LayoutCorrupt(path=str(document), reason="a chunk list is gone; publish again")
        self._keep_object(entry)

    def _keep_object(self, entry: FileEntry) -> None:
        key, path = object_key(entry.digest), self._held.object_path(entry.digest)
        if self.size_bytes(key) == entry.size_bytes:
            return
        if entry.size_bytes <= SMALL_BYTES:
            with local_faults(path, "read"):
                data = path.read_bytes()
            self._create(key, data)
            return
        part_bytes = max(PART_BYTES, -(-entry.size_bytes // MAX_PARTS))
        with self._translated(f"write {key}"):
            self._library.put(self._client(), key, path, use_multipart=True, chunk_size=part_bytes, max_concurrency=4)
        self._make_durable(key)

    def _create(self, key: str, data: bytes) -> bool:
        """Put what is not there yet; False if it was."""
        try:
            with self._translated(f"write {key}"):
                self._library.put(self._client(), key, data, mode="create", use_multipart=False)
        except self._library.exceptions.AlreadyExistsError:
            return False
        self._make_durable(key)
        return True

    def _make_durable(self, key: str) -> None:
        """A service promises durability with its answer; a mounted path has to be told."""
        if self._local is None:
            return
        path = self._local / key
        with local_faults(path, "fsync"):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            for parent in path.parents[: len(Path(key).parts)]:
                durable.fsync_directory(parent)

    def keep_version(self, manifest: Manifest, digest: Digest, data: bytes) -> None:
        self._create(document_key(digest), data)
        key, ours = claim_key(manifest.model, manifest.version), Claim(self._fleet, manifest.id, digest)
        if self._create(key, claims.encode(ours)):
            return
        known, tag = self._claim(key)
        if known is not None and known.digest == digest and known.fleet == self._fleet:
            return
        if known is None or not ours.may_replace(known) or not self._replace(key, claims.encode(ours), tag):
            taken = f"{known.digest} of fleet {known.fleet}, {known.id}" if known else "removed just now"
            raise VersionConflict(model=manifest.model, version=manifest.version, known=taken, offered=str(digest))

    def _replace(self, key: str, data: bytes, tag: str) -> bool:
        """Put it only over what was read. A mounted path cannot tell: there the lease alone guards."""
        condition = "overwrite" if self._local is not None else {"e_tag": tag}
        try:
            with self._translated(f"replace {key}"):
                self._library.put(self._client(), key, data, mode=condition, use_multipart=False)
        except self._library.exceptions.PreconditionError:
            return False
        self._make_durable(key)
        return True

    def remove(self, name: ModelName, version: Version, unreferenced: Sequence[Digest]) -> None:
        for digest in unreferenced:
            self._delete(object_key(digest))
            self._delete(document_key(digest))
        self._delete(claim_key(name, version))

    def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._translated(f"delete {key}"):
            self._library.delete(self._client(), key)


def object_key(digest: Digest) -> str:
    return f"objects/b3/{digest.hex[:2]}/{digest.hex}"


def document_key(digest: Digest) -> str:
    return f"manifests/{digest.hex}"


def claim_key(name: ModelName, version: Version) -> str:
    return f"versions/{name}/{version}"


def _library(url: str) -> Any:
    """obstore, imported only where a store is configured: it costs 12 MB. Raises ConfigurationFault."""
    try:
        import obstore  # noqa: PLC0415
        import obstore.exceptions  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ImportError as error:
        fault = f"storage.url: {url.partition(':')[0]} needs obstore; `pip install modelsync[s3]` would be right"
        raise ConfigurationFault(source="this installation", faults=(fault,)) from error
    return obstore


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
