"""Single files of models that lie elsewhere, for whoever downloads them here: pulled once, sent as they arrive, cached.

This file orders one pull a file, shared by everybody who asks meanwhile. What stays afterwards the cache decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelsync.core.errors import NoSuchVersion, PolicyRefusal
from modelsync.core.ids import Digest, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.ports import Growing, Progress, VersionStore
from modelsync.runtime.book import Book
from modelsync.runtime.keeping import Keeper
from modelsync.runtime.staging import Stager

MAX_PULLS = 64
"""Files that are read through at once: a stranger who asks for everything may not fill the disk by himself."""


class ReadThrough:
    """Gets single files from where they lie.

    Args:
        came: told of each model of which a file has come: what lies here is another now, and may be more than has room.
    """

    def __init__(
        self, *, book: Book, store: VersionStore, stager: Stager, keeper: Keeper, came: Callable[[ModelName], None]
    ) -> None:
        self._book = book
        self._store = store
        self._stager = stager
        self._keeper = keeper
        self._came = came
        self._pulls: dict[Digest, asyncio.Future[None]] = {}
        self._progress: dict[Digest, Progress] = {}

    async def close(self) -> None:
        """Stop every pull; what is verified of it stays."""
        for progress in self._progress.values():
            progress.cancelled.set()
        await asyncio.gather(*self._pulls.values(), return_exceptions=True)

    async def file(self, name: ModelName, number: Version, path: str) -> Growing:
        """A published file that grows here until it is whole.

        Raises: NoSuchVersion: the version has no such file, or the model is replicated and nobody wants this one;
            PolicyRefusal: too many at once; what the pull of its manifest raises.
        """
        record = self._book.record(name)
        record.require(number)
        if record.placement.mode == "replicated" and number != record.wanted:  # that is on its way here all the same
            raise NoSuchVersion(reason=f"version {number} of {name} is not held on this host")
        manifest, digest = await self._stager.document_of(record, number)
        entry = _entry(manifest, path)
        part = self._stager.part_of(manifest, entry)
        await asyncio.to_thread(self._keeper.used, digest)
        return Growing(
            entry=entry,
            part=lambda: self._store.part(entry.digest),
            object=self._store.object_path(entry.digest),
            pull=self._pull(manifest, digest, entry, part),
        )

    def _pull(self, manifest: Manifest, digest: Digest, entry: FileEntry, part: int | None) -> asyncio.Future[None]:
        running = self._pulls.get(entry.digest)
        if running is not None:
            return running
        if len(self._pulls) >= MAX_PULLS:
            raise PolicyRefusal(reason=f"{MAX_PULLS} files are being read through already; try again shortly")
        progress = self._progress[entry.digest] = Progress(total_bytes=entry.size_bytes, into=self._stager.received)
        pull = asyncio.ensure_future(asyncio.to_thread(self._pull_leased, manifest, digest, entry, part, progress))
        self._pulls[entry.digest] = pull
        pull.add_done_callback(self._forget(manifest.model, entry.digest))
        return pull

    def _pull_leased(
        self, manifest: Manifest, digest: Digest, entry: FileEntry, part: int | None, progress: Progress
    ) -> None:
        with self._store.leased(manifest.referenced() | {digest}):
            if not self._store.object_path(entry.digest).exists():
                self._stager.room.require([entry])
                self._stager.pull_file(manifest, entry, progress, part)

    def _forget(self, name: ModelName, digest: Digest) -> Callable[[asyncio.Future[None]], None]:
        def done(pull: asyncio.Future[None]) -> None:
            del self._pulls[digest], self._progress[digest]
            if not pull.cancelled():
                pull.exception()  # whoever waits has it; without anybody it is no fault of ours
                self._came(name)

        return done


def _entry(manifest: Manifest, path: str) -> FileEntry:
    for entry in manifest.files:
        if entry.path == path:
            return entry
    raise NoSuchVersion(reason=f"version {manifest.version} of {manifest.model} has no file {path!r}")
