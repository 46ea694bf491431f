"""What the HTTP server and the commands ask of a node."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modelsync.core.election.promise import Promise
from modelsync.core.ids import Digest, EntryId, ModelName, NodeId, Version
from modelsync.core.manifest import FileEntry
from modelsync.ports.disk import HeldPart, ReceivedFile


@dataclass(frozen=True, slots=True)
class Upload:
    """A received model, still outside the store: a directory of this daemon's own below STATE."""

    model: ModelName
    root: Path
    """Every regular file below it belongs to the model, under its path relative to this; not so with ``received``."""
    received: Sequence[ReceivedFile] | None = None
    content: Digest | None = None
    """What the sender says that the version's ``content`` is (PROTOCOL.md section 2)."""
    note: str = ""
    author: str = ""
    version: Version | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of a publish. ``unchanged``: the head already had these bytes, nothing was written."""

    model: ModelName
    version: Version
    digest: Digest
    id: EntryId
    unchanged: bool


@dataclass(frozen=True, slots=True)
class Growing:
    """A published file on its way to this host."""

    entry: FileEntry
    part: Callable[[], HeldPart | None]
    """What is verified of it so far; None before the first, and once it is whole."""
    object: Path
    """Where it lies once it is whole."""
    pull: Future[None]


class NodeApi(Protocol):
    """All that the HTTP server can ask. Errors are of ``core.errors``; the server only maps them to statuses."""

    @property
    def is_primary(self) -> bool: ...

    @property
    def primary_url(self) -> str | None:
        """Where the living primary listens, as far as this node knows."""

    def runs_here(self, text: str) -> bool:
        """Whether this node may carry out a command: the primary all, any node a ``resume`` without a primary."""

    def ready(self) -> tuple[bool, str]:
        """Whether everything wanted here is active, and if not, what is missing, as a sentence."""

    def require_publishing(self) -> None:
        """Before a body is asked for. Raises PolicyRefusal: this primary has no key that it would itself trust."""

    def staging_dir(self) -> Path:
        """A fresh empty directory below STATE/tmp for one upload; the caller removes it."""

    async def status(self) -> dict[str, Any]: ...

    async def models(self) -> list[dict[str, Any]]: ...

    async def model(self, name: ModelName) -> dict[str, Any]:
        """One model with its history, newest first. Raises NoSuchVersion."""

    async def manifest(self, name: ModelName, version: Version) -> bytes:
        """The manifest's canonical bytes. Raises NoSuchVersion."""

    def file_of(self, name: ModelName, version: Version, path: str) -> Path:
        """The object that holds a published file, held and verified here. Raises NoSuchVersion."""

    async def read_through(self, name: ModelName, version: Version, path: str) -> Growing:
        """A published file that lies elsewhere, as it arrives here. Raises NoSuchVersion, PolicyRefusal, RemoteFault,
        LocalFault, IntegrityFault."""

    async def load(self, name: ModelName, *, wanted: bool) -> dict[str, Any]:
        """Hold a model on this host from now on, or no longer than it must. Raises NoSuchVersion, LocalFault."""

    def placement(self, name: ModelName) -> dict[str, Any]:
        """``{"model", "mode", "owners": [{"id", "url", "serve_url"}]}``. Raises NoSuchVersion."""

    def object_path(self, digest: Digest) -> Path | None:
        """The immutable file of an object, manifest or chunk list held here; None if it is not held."""

    def object_part(self, digest: Digest) -> HeldPart | None:
        """What is verified of an object that is still being pulled here."""

    async def publish(self, upload: Upload) -> Published: ...

    async def command(self, text: str, by: str) -> dict[str, Any]:
        """Run one command in plain words (``pin fraud 12``). Raises PolicyRefusal, AuthorityLost, NoSuchVersion."""

    async def promise(self, epoch: int, holder: NodeId, nonce: str) -> Promise: ...

    def catalog(self) -> dict[str, dict[str, str]]:
        """This node's whole catalog as fields by model, and under ``""`` the fleet's record: for a new primary."""

    def note_epoch(self, epoch: int, node: str) -> None:
        """Somebody who asked carries this epoch; a primary of a lower one steps down."""

    @property
    def epoch(self) -> int:
        """The highest epoch known here; every answer carries it."""

    def metrics(self) -> bytes:
        """Prometheus text."""
