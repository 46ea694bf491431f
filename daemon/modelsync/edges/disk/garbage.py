"""Which files of STATE no kept version needs, and their removal, a slice at a time.

A slice is small because everything else that must be durable meanwhile, a promise of the election among it, waits in
the file system's journal behind what is removed. Whether a version is kept is decided elsewhere; leases are handed in.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modelsync.core.ids import Digest, ModelName
from modelsync.core.manifest import Manifest

HEX_DIGEST = "[0-9a-f]" * 64
KINDS = ("trees", "documents", "objects")


class Garbage:
    """One look at STATE: what may go. Its parts are found lazily, so that objects come after the trees that hold them.

    Raises (while it is read): OSError; MalformedMessage if a kept manifest cannot be read, before anything was yielded.
    """

    def __init__(
        self,
        root: Path,
        keep: Mapping[ModelName, frozenset[Digest]],
        shares: Mapping[Digest, frozenset[Digest]],
        leased: frozenset[Digest],
        manifest_of: Callable[[Digest], Manifest | None],
    ) -> None:
        self._root = root
        self._leased = {digest.hex for digest in leased}
        self._kept = self._trees_to_keep(keep)
        self._referenced = self._named_by_kept(manifest_of) | self._named_by_shares(shares, manifest_of) | self._leased

    def found(self, *, shared: bool) -> Iterator[tuple[str, Path]]:
        """Kind (one of KINDS) and path of each. ``shared``: also objects that a tree still holds, for a preview."""
        trees = (("trees", path) for path in self._trees())
        documents = (("documents", path) for path in _unnamed(self._root / "manifests", self._referenced))
        objects = (("objects", path) for path in self._objects(shared=shared))
        return itertools.chain(trees, documents, objects)

    def _trees_to_keep(self, keep: Mapping[ModelName, frozenset[Digest]]) -> dict[str, set[str]]:
        """Manifests to keep, which are also the names of their trees, by model."""
        store = self._root / "store"
        kept = {name: {path.name for path in store.glob(f"{name}/{HEX_DIGEST}")} for name in os.listdir(store)}
        kept.update({str(model): {digest.hex for digest in digests} for model, digests in keep.items()})
        return kept

    def _named_by_kept(self, manifest_of: Callable[[Digest], Manifest | None]) -> set[str]:
        """Kept manifests and all they name. Leases are not looked into: they name whole versions, chunk lists too."""
        names: set[str] = set()
        for hexadecimal in set().union(*self._kept.values()):
            names.add(hexadecimal)
            version = manifest_of(Digest(bytes.fromhex(hexadecimal)))
            if version is not None:
                names.update(item.hex for item in version.referenced())
        return names

    @staticmethod
    def _named_by_shares(
        shares: Mapping[Digest, frozenset[Digest]], manifest_of: Callable[[Digest], Manifest | None]
    ) -> set[str]:
        """Manifests of which only some files are kept: their documents, and those files."""
        names: set[str] = set()
        for digest, files in shares.items():
            version = manifest_of(digest)
            if version is not None:
                documents = version.referenced() - {entry.digest for entry in version.files}
                names.update(item.hex for item in (digest, *files, *documents))
        return names

    def _trees(self) -> Iterator[Path]:
        for model, trees in self._kept.items():
            if (self._root / "store" / model).is_dir():
                yield from _unnamed(self._root / "store" / model, trees | self._leased)

    def _objects(self, *, shared: bool) -> Iterator[Path]:
        yield from _unnamed(self._root / "partial", self._referenced)
        shards = self._root / "objects" / "b3"
        for shard in os.listdir(shards):
            for path in _unnamed(shards / shard, self._referenced):
                # A kept tree whose manifest is damaged may still hold it: removing it would free nothing.
                if shared or path.stat(follow_symlinks=False).st_nlink == 1:
                    yield path


def _unnamed(directory: Path, names: set[str]) -> Iterator[Path]:
    for name in os.listdir(directory):
        if name not in names and not name.endswith(".tmp"):
            yield directory / name
