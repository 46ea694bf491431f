"""What LIVE offers: which models, which version `current` means, which others are retained, and their files.

This file alone knows how an application finds its way from LIVE into the daemon's STATE. It reads and never writes. A
tree counts only when it is one that the daemon verified (it lies in the store under its manifest's digest) or when LIVE
is somebody's plain directory, which then has version 0, no digest and no promises.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from blake3 import blake3

from modelsync.core import catalog, catalog_fields
from modelsync.core import manifest as manifests
from modelsync.core.errors import BadName, MalformedMessage, ModelFileRefused, NoSuchModel, NoSuchVersion
from modelsync.core.ids import Digest, ModelName, model_name

MAX_PLAIN_FILES = 10_000
"""Of a directory that is not ours: it may be anything."""
_MAX_MANIFESTS = 256
"""Kept parsed: a version never changes."""


class Fetched(Protocol):
    """The files of a version that lies on other hosts, had one by one."""

    def fetch(self, path: str) -> None:
        """Have a file below the offer's path, verified. Raises RemoteFault, DigestMismatch, OSError."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One version of one model, found on disk. Its tree may be removed at any time; what is open stays readable."""

    name: str
    version: int
    """0 for a directory that no daemon manages."""
    digest: str
    """``b3:…``; empty for such a directory."""
    path: Path
    """The directory with the files, free of symbolic links."""
    files: Mapping[str, int]
    """Relative path to size in bytes."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)
    """Relative path to BLAKE3 digest, of a managed version."""
    fetched: Fetched | None = None
    """Where files come from that are not below ``path`` yet; None: all are there."""

    @property
    def size_bytes(self) -> int:
        return sum(self.files.values())


class Offers:
    """One live directory. Its methods block for a few system calls."""

    def __init__(self, live_dir: str | os.PathLike[str]) -> None:
        self.live_dir = Path(live_dir)
        self._manifests: dict[str, manifests.Manifest] = {}

    def names(self) -> list[str]:
        """Models that have a ``current``, sorted. Raises NoSuchModel: the live directory is not there."""
        try:
            entries = sorted(os.listdir(self.live_dir))
        except OSError as error:
            raise NoSuchModel(model="", live_dir=str(self.live_dir), reason=str(error.strerror)) from error
        return [name for name in entries if (self.live_dir / name / "current").is_dir()]

    def require(self, name: str) -> None:
        """Raises NoSuchModel: not a legal name, or nothing is offered under it."""
        if not self.identity(self._legal(name)):
            raise self._none(name, "it has no `current`" if self.live_dir.is_dir() else "there is no such directory")

    def identity(self, name: str) -> str:
        """What changes whenever ``current`` means something else; empty when there is none. One system call."""
        path = f"{self.live_dir}/{name}/current"
        try:
            return os.readlink(path)
        except OSError:
            pass
        try:
            info = os.stat(path)
        except OSError:
            return ""
        return f"{info.st_dev}-{info.st_ino}-{info.st_mtime_ns}"

    def current(self, name: str) -> Offer:
        """What ``current`` means now. Raises NoSuchModel; FileNotFoundError if it was removed meanwhile: try again."""
        legal = self._legal(name)
        link = self.live_dir / legal / "current"
        try:
            path = Path(os.path.realpath(link, strict=True))
        except FileNotFoundError as error:
            raise self._none(name, "it has no `current`") from error
        except OSError as error:
            raise self._none(name, str(error.strerror)) from error
        return self._offer(legal, path)

    def version(self, name: str, wanted: int | str) -> Offer:
        """A retained version, or the one that an alias names.

        Raises: NoSuchModel; NoSuchVersion: unknown, or its bytes are not on this host.
        """
        now = self.current(name)
        if not now.digest:
            return self._plain_version(now, wanted)
        if type(wanted) is int and wanted == now.version:
            return now
        store = now.path.parent.parent
        record = self._record(now, store.parent)
        digest = record.require(catalog.resolve(record, wanted)).digest
        try:
            return self._offer(record.name, store / name / digest.hex)
        except FileNotFoundError as error:
            held = ", ".join(map(str, self.retained(name)))
            reason = f"{name}: version {wanted} is not held on this host, which has {held}"
            raise NoSuchVersion(reason=reason) from error

    def retained(self, name: str) -> list[int]:
        """The versions that lie on this host, newest first. Raises NoSuchModel."""
        now = self.current(name)
        if not now.digest:
            return [now.version]
        held = set(os.listdir(now.path.parent))
        record = self._record(now, now.path.parent.parent.parent)
        numbers = {int(number) for number, entry in record.versions.items() if entry.digest.hex in held}
        return sorted(numbers | {now.version}, reverse=True)

    @staticmethod
    def _plain_version(now: Offer, wanted: int | str) -> Offer:
        if type(wanted) is int and wanted == 0:
            return now
        raise NoSuchVersion(reason=f"{now.name} is a plain directory that no daemon manages: it has version 0 only")

    def _record(self, now: Offer, state: Path) -> catalog.ModelRecord:
        path = state / "catalog" / f"{now.name}.json"
        try:
            return catalog_fields.from_json(ModelName(now.name), path.read_bytes())
        except (OSError, MalformedMessage) as error:
            reason = f"{now.name}: the list of its versions cannot be read ({error}); only {now.version} is known"
            raise NoSuchVersion(reason=reason) from error

    def _legal(self, name: str) -> ModelName:
        try:
            return model_name(name)
        except BadName as error:
            raise self._none(name, str(error)) from error

    def _none(self, name: str, reason: str) -> NoSuchModel:
        return NoSuchModel(model=str(name)[:200], live_dir=str(self.live_dir), reason=reason)

    # --- one tree ---------------------------------------------------------------------------------------------------

    def _offer(self, name: ModelName, path: Path) -> Offer:
        digest = _tree_digest(name, path)
        if digest is None:
            return Offer(name, 0, "", path, _plain_files(path))
        manifest = self._manifest(path, digest)
        if manifest.model != name:
            raise ModelFileRefused(path=str(path), loader="a version", reason=f"its manifest is of {manifest.model}")
        os.stat(path)  # a version of which only the manifest is here is not held
        return Offer(
            name=name,
            version=int(manifest.version),
            digest=str(digest),
            path=path,
            files=MappingProxyType({entry.path: entry.size_bytes for entry in manifest.files}),
            metadata=MappingProxyType(dict(manifest.metadata)),
            digests=MappingProxyType({entry.path: entry.digest.raw for entry in manifest.files}),
        )

    def _manifest(self, tree: Path, digest: Digest) -> manifests.Manifest:
        known = self._manifests.get(digest.hex)
        if known is not None:
            return known
        path = tree.parent.parent.parent / "manifests" / digest.hex
        try:
            data = path.read_bytes()
            if blake3(data).digest() != digest.raw:
                raise ModelFileRefused(path=str(path), loader="a manifest", reason="its digest is not its name")
            manifest = manifests.decode(data)
        except PermissionError as error:
            reason = "permission denied: this process needs the daemon's group (SupplementaryGroups=modelsync)"
            raise ModelFileRefused(path=str(path), loader="a manifest", reason=reason) from error
        except MalformedMessage as error:
            raise ModelFileRefused(path=str(path), loader="a manifest", reason=error.reason) from error
        if len(self._manifests) >= _MAX_MANIFESTS:
            self._manifests.clear()
        self._manifests[digest.hex] = manifest
        return manifest


def _tree_digest(name: str, path: Path) -> Digest | None:
    """The digest by which a store holds a tree; None where it does not lie in a store."""
    if path.parent.name != name or path.parent.parent.name != "store":
        return None
    if not (path.parent.parent.parent / "manifests").is_dir():
        return None
    with contextlib.suppress(BadName):
        return Digest.parse("b3:" + path.name)
    return None


def _plain_files(root: Path) -> dict[str, int]:
    """The regular files of a directory, hidden ones left out. Raises ModelFileRefused when there are too many."""
    found: dict[str, int] = {}
    for directory, directories, names in os.walk(root):
        directories[:] = sorted(each for each in directories if not each.startswith("."))
        for name in sorted(names):
            path = os.path.join(directory, name)
            if not name.startswith(".") and os.path.isfile(path):
                found[os.path.relpath(path, root)] = os.stat(path).st_size
        if len(found) > MAX_PLAIN_FILES:
            raise ModelFileRefused(
                path=str(root), loader="a plain directory", reason=f"more than {MAX_PLAIN_FILES:,} files"
            )
    return found
