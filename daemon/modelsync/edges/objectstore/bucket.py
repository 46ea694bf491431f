"""One place in an object store, through obstore: keys and bytes, and the store's exceptions as ours.

This file must not know what lies there. Puts that only create, and puts that compare a tag, are what two writers need;
listings are handed on as the store has them, and may be late.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from modelsync.core.errors import ConfigurationFault, ObjectStoreRefused, ObjectStoreUnavailable
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.objectstore.credentials import client_options, read_settings

Item = TypeVar("Item")
Answer = TypeVar("Answer")

PART_BYTES = 16 << 20
"""Of an upload: S3 allows 10,000 of them, which is 160 GB a file; larger files get larger parts."""
MAX_PARTS = 9_000
SMALL_BYTES = 8 << 20
"""Up to here one request that only creates."""
PIECE_BYTES = 128 << 10
"""Handed on at a time of what a request brings. 1 MiB took 2.6 times as long: each piece was memory that
was new to the process."""
REQUESTS_AT_ONCE = 8
"""Over all pulls: one S3 connection gives some 90 MB/s."""
DELETED_AT_ONCE = 100
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
EXPIRED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed")
"""What S3 says with a 400 where others say 401 or 403."""


@dataclass(frozen=True, slots=True)
class Tag:
    """What one content of an object is told by: S3 and Azure compare the first, GCS the second (its generation)."""

    e_tag: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """An object in a listing."""

    key: str
    size_bytes: int
    tag: str
    modified: datetime


class Bucket:
    """Its methods block, and raise ObjectStoreUnavailable or ObjectStoreRefused. Opened with the first request.

    Args:
        url: as ``storage.url`` has it, checked.
        credentials: a file of settings, or None.
    """

    def __init__(self, url: str, credentials: Path | None) -> None:
        self._url = url
        self._credentials = credentials
        self._guard = threading.Lock()
        self._open_client: Any = None
        self._library = _library(url)
        self._workers = ThreadPoolExecutor(REQUESTS_AT_ONCE, "object-store")
        self._local = Path(urlsplit(url).path) if url.startswith("file:") else None
        self.trouble: str | None = None
        """What the last request that reached no answer, or a refusal, has said; None after one that was answered."""

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def in_parallel(self, work: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """The answers in order. The first fault is raised when it is reached."""
        return self._workers.map(work, items)

    def submit(self, work: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
        return self._workers.submit(work, *arguments)

    # --- the client --------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        # Never made here: below the mount point of what is not mounted, this host's own disk would fill unseen.
        if self._local is not None and not self._local.is_dir():
            reason = f"there is no directory {self._local}: is it mounted? That of a new store is made once, by hand"
            raise ObjectStoreUnavailable(operation="look for it", reason=reason)
        with self._guard:
            if self._open_client is None:
                self._open_client = self._connected()
            return self._open_client

    def _connected(self) -> Any:
        if self._local is not None:
            return self._library.store.LocalStore(self._local)
        settings = read_settings(self._credentials)
        return self._library.store.from_url(
            self._url,
            config=settings,
            client_options=client_options(settings),
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
        )

    def reconnect(self) -> None:
        """Credentials may have been renewed in the file meanwhile: read it again with the next request."""
        with self._guard:
            self._open_client = None

    @contextlib.contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """obstore's exceptions as ours; a missing object stays a FileNotFoundError, which every caller expects."""
        faults = self._library.exceptions
        try:
            yield
            self.trouble = None
        except (FileNotFoundError, faults.AlreadyExistsError, faults.PreconditionError):
            self.trouble = None
            raise
        except (ObjectStoreRefused, ObjectStoreUnavailable) as error:
            self.trouble = str(error)
            raise
        except (faults.BaseError, OSError, ValueError) as error:
            refused = isinstance(error, (faults.PermissionDeniedError, faults.UnauthenticatedError))
            kind: type[ObjectStoreRefused] | type[ObjectStoreUnavailable] = ObjectStoreUnavailable
            if refused or any(word in str(error) for word in EXPIRED):
                self.reconnect()
                kind = ObjectStoreRefused
            fault = kind(operation=operation, reason=_first_line(error))
            self.trouble = str(fault)
            raise fault from error

    # --- reading -----------------------------------------------------------------------------------------------------

    def size_bytes(self, key: str) -> int | None:
        """How large an object is; None if there is none."""
        try:
            with self._translated(f"look at {key}"):
                return int(self._library.head(self._client(), key)["size"])
        except FileNotFoundError:
            return None

    def stream(self, key: str, start: int, end: int) -> Iterator[memoryview]:
        """Bytes ``start`` to ``end``, not included, in one request, as they come. Raises FileNotFoundError too."""
        with self._translated(f"read {key}"):
            answer = self._library.get(self._client(), key, options={"range": (start, end)})
            for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield memoryview(piece)

    def read(self, key: str, max_bytes: int) -> tuple[bytes, Tag] | None:
        """A small object and its tag; None if there is none. Raises ObjectStoreRefused above the limit."""
        try:
            with self._translated(f"read {key}"):
                answer = self._library.get(self._client(), key)
                size, tag = int(answer.meta["size"]), Tag(str(answer.meta["e_tag"]), answer.meta["version"])
                if size > max_bytes:
                    reason = f"{size} bytes, at most {max_bytes} are read"
                    raise ObjectStoreRefused(operation=f"read {key}", reason=reason)
                return bytes(answer.bytes()), tag
        except FileNotFoundError:
            return None

    def listed(self, prefix: str) -> Iterator[Held]:
        """Every object below a prefix, as far as the listing knows."""
        with self._translated(f"list {prefix}"):
            for page in self._library.list(self._client(), prefix, chunk_size=1000):
                for item in page:
                    tag = str(item["e_tag"] or item["last_modified"])
                    yield Held(str(item["path"]), int(item["size"]), tag, item["last_modified"])

    def now(self) -> datetime:
        """The store's own time, of an object that is put for that."""
        self._put("clock", b"", "overwrite")
        with self._translated("look at the clock"):
            modified: datetime = self._library.head(self._client(), "clock")["last_modified"]
            return modified

    # --- writing -----------------------------------------------------------------------------------------------------

    def create(self, key: str, data: bytes) -> bool:
        """Put what is not there yet; False if it was. On a mounted path that takes hard links."""
        try:
            self._put(key, data, "create")
        except self._library.exceptions.AlreadyExistsError:
            return False
        except ObjectStoreUnavailable as error:
            if self._local is None or (refused := _refuses_links(self._local)) is None:
                raise
            reason = f"the file system at {self._local} takes no hard links, by which a name is given once: {refused}"
            fault = ObjectStoreRefused(operation=f"write {key}", reason=reason)
            self.trouble = str(fault)
            raise fault from error
        return True

    def replace(self, key: str, data: bytes, tag: Tag) -> bool:
        """Put it only over what was read. A mounted path cannot tell: there the lease alone guards."""
        try:
            same = {"e_tag": tag.e_tag} | ({"version": tag.version} if tag.version is not None else {})
            self._put(key, data, "overwrite" if self._local is not None else same)
        except self._library.exceptions.PreconditionError:
            return False
        return True

    def _put(self, key: str, data: bytes, mode: Any) -> None:
        with self._translated(f"write {key}"):
            self._library.put(self._client(), key, data, mode=mode, use_multipart=False)
        self._make_durable(key)

    def upload(self, key: str, path: Path, size_bytes: int) -> None:
        """A file of this host that the store lacks."""
        if size_bytes <= SMALL_BYTES:
            with local_faults(path, "read"):
                data = path.read_bytes()
            self.create(key, data)
            return
        part_bytes = max(PART_BYTES, -(-size_bytes // MAX_PARTS))
        with self._translated(f"write {key}"):
            self._library.put(self._client(), key, path, use_multipart=True, chunk_size=part_bytes, max_concurrency=4)
        self._make_durable(key)

    def _make_durable(self, key: str) -> None:
        """A service promises durability with its answer; a mounted path has to be told.

        Its faults are not of this host's disk: a server that is gone must not look like one that fails.
        """
        if self._local is None:
            return
        path = self._local / key
        with self._translated(f"make {key} durable"):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            for parent in path.parents[: len(Path(key).parts)]:
                _fsync_directory(parent)

    def delete(self, keys: Sequence[str]) -> None:
        """What is not there is deleted already."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError), self._translated(f"delete {key}"):
                self._library.delete(self._client(), key)


def _fsync_directory(path: Path) -> None:
    try:
        durable.fsync_directory(path)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.EOPNOTSUPP,
        ):  # no such notion (CIFS, some FUSE): names are the server's
            raise


def _refuses_links(directory: Path) -> str | None:
    """What a file system says that takes no hard links; None where it does, or where nothing can be said."""
    name = directory / durable.temporary_name("links")
    linked = name.with_suffix(".link")
    try:
        os.close(durable.create_file(name))
        try:
            os.link(name, linked)
        except OSError as error:
            return error.strerror if error.errno in _NO_LINKS else None
        os.unlink(linked)
        return None
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


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
