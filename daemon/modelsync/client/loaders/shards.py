"""A model in several files: one mapping of names to arrays that opens each file when one of its arrays is asked for.

Every file is opened (not read) at the start: the daemon may remove the version while it is being loaded, and what is
open stays readable. Of a version that lies on other hosts a file is fetched when one of its arrays is asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelsync.client.loaders.contract import LoadContext, Progress
from modelsync.core.errors import ModelFileRefused

MAX_SHARDS = 1000
"""One descriptor each until it is loaded; the largest published models have a few hundred."""

OpenShard = Callable[[Path, str], Mapping[str, Any]]
"""Opens one shard, given where it is readable and its name, and returns its arrays."""


class Shards(Mapping[str, Any]):
    """Arrays by name. Indexing loads the shard that holds the name, once, whatever the order and the thread.

    Args:
        index: array name to shard.
        sizes: shard to size in bytes.
        context: whose progress is told the bytes of shards loaded, and of all; and where shards come from.

    Raises: FileNotFoundError: a shard was removed; ModelFileRefused: too many shards. Indexing one that has to be
        fetched first raises RemoteFault, DigestMismatch.
    """

    def __init__(
        self, root: Path, index: Mapping[str, str], sizes: Mapping[str, int], opener: OpenShard, context: LoadContext
    ) -> None:
        if len(sizes) > MAX_SHARDS:
            raise ModelFileRefused(path=str(root), loader="shards", reason=f"more than {MAX_SHARDS:,} shards")
        self._root, self._index, self._sizes = root, dict(index), dict(sizes)
        self._opener, self._progress, self._fetch = opener, context.progress, context.fetch
        self._loaded: dict[str, Mapping[str, Any]] = {}
        self._locks = {shard: threading.Lock() for shard in sizes}
        self._descriptors: dict[str, int] = {}
        try:
            for shard in sizes if self._fetch is None else ():
                self._descriptors[shard] = os.open(root / shard, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Any:
        shard = self._index[name]
        arrays = self._loaded.get(shard)
        if arrays is None:
            arrays = self._load(shard)
        return arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the files."""
        return tuple(self._sizes)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Those of them that are loaded."""
        return tuple(self._loaded)

    def load(self, order: Iterable[str] | None = None, progress: Progress | None = None) -> None:
        """Load shards now: all, or those named, in that order. Raises KeyError, ModelFileRefused."""
        for shard in self._sizes if order is None else order:
            if shard not in self._loaded:
                self._load(shard)
            if progress is not None:
                progress(sum(self._sizes[each] for each in self._loaded), sum(self._sizes.values()))

    def _load(self, shard: str) -> Mapping[str, Any]:
        with self._locks[shard]:
            if shard in self._loaded:
                return self._loaded[shard]
            if self._fetch is not None:
                self._descriptors[shard] = self._fetched(shard, self._fetch)
            descriptor = self._descriptors[shard]
            arrays = self._opener(Path(f"/proc/self/fd/{descriptor}"), shard)
            missing = [name for name, where in self._index.items() if where == shard and name not in arrays]
            if missing:
                reason = f"the index names {missing[0]!r} in it, which is not there"
                raise ModelFileRefused(path=str(self._root / shard), loader="shards", reason=reason)
            self._loaded[shard] = arrays
            os.close(self._descriptors.pop(shard))
        self._progress(sum(self._sizes[each] for each in self._loaded), sum(self._sizes.values()))
        return arrays

    def _fetched(self, shard: str, fetch: Callable[[str], None]) -> int:
        """A shard that was fetched just now, open and without a name: its space is free once nothing maps it."""
        fetch(shard)
        descriptor = os.open(self._root / shard, os.O_RDONLY | os.O_CLOEXEC)
        os.unlink(self._root / shard)
        return descriptor

    def close(self) -> None:
        """Give the descriptors of shards that were not loaded back; done by itself when the model is released."""
        for descriptor in [self._descriptors.pop(shard) for shard in list(self._descriptors)]:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptors", None):
            self.close()
