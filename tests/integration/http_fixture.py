"""A node in memory and a server on a real socket, for the tests of the HTTP face."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import blake3

from modelsync.core.compression.frames import Compression
from modelsync.core.errors import NoSuchVersion, PolicyRefusal
from modelsync.core.ids import ZERO_ID, Digest, EntryId, ModelName, NodeId, Version
from modelsync.edges.http.limits import HttpLimits
from modelsync.edges.http.server import HttpServer
from modelsync.edges.uploads.kept import Uploads
from modelsync.ports import Growing, HeldPart, Promise, Published, Upload

TOKEN = "correct horse battery staple"
QUICK = HttpLimits(head_timeout_s=1.0, idle_timeout_s=2.0, body_silence_s=1.0, drain_s=1.0, reserve_bytes=0)


def digest_of(data: bytes) -> Digest:
    return Digest(blake3.blake3(data).digest())


@dataclass
class FakeNode:
    """Implements ports.NodeApi: remembers what it was asked, answers from dictionaries."""

    root: Path
    is_primary: bool = True
    primary_url: str | None = None
    refusal: str = ""
    """Why it publishes nothing, although it is primary."""
    readiness: tuple[bool, str] = (True, "")
    failure: BaseException | None = None
    unchanged: bool = False
    objects: dict[Digest, Path] = field(default_factory=dict)
    parts: dict[Digest, HeldPart] = field(default_factory=dict)
    growing: Growing | None = None
    """A file that is held nowhere here, and on its way."""
    published: list[tuple[Upload, dict[str, bytes]]] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    promises: list[tuple[int, str, str]] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)
    keep_contents: bool = True
    highest_epoch: int = 0
    document: dict[str, Any] = field(default_factory=lambda: {"fleet": "test", "epoch": 3, "nodes": [], "models": []})

    def ready(self) -> tuple[bool, str]:
        return self.readiness

    def require_publishing(self) -> None:
        if self.refusal:
            raise PolicyRefusal(reason=self.refusal)

    def staging_dir(self) -> Path:
        (self.root / "tmp").mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.root / "tmp"))

    def staged(self) -> list[str]:
        """What lies below STATE/tmp: nothing, once a request is over."""
        return sorted(str(path.relative_to(self.root)) for path in (self.root / "tmp").glob("**/*"))

    async def status(self) -> dict[str, Any]:
        self._fail()
        return self.document

    async def models(self) -> list[dict[str, Any]]:
        return [{"name": "fraud"}]

    async def model(self, name: ModelName) -> dict[str, Any]:
        if name != "fraud":
            raise NoSuchVersion(reason=f"no model {name}")
        return {"name": name, "history": []}

    async def manifest(self, name: ModelName, version: Version) -> bytes:
        if (name, version) != ("fraud", 1):
            raise NoSuchVersion(reason=f"{name} has no version {version}")
        return b'{"format":1}'

    def file_of(self, name: ModelName, version: Version, path: str) -> Path:
        self.looked_up.append(path)
        if (name, version) != ("fraud", 1) or path not in ("model.bin", "sub/page.html"):
            raise NoSuchVersion(reason=f"{name} {version} has no file {path}")
        return next(iter(self.objects.values()))

    async def read_through(self, name: ModelName, version: Version, path: str) -> Growing:
        if self.growing is not None:
            return self.growing
        raise NoSuchVersion(reason=f"{name} {version} has no file {path}")

    async def load(self, name: ModelName, *, wanted: bool) -> dict[str, Any]:
        return {"model": name, "asked": wanted}

    def placement(self, name: ModelName) -> dict[str, Any]:
        return {"model": name, "mode": "replicated", "owners": []}

    def object_path(self, digest: Digest) -> Path | None:
        return self.objects.get(digest)

    def object_part(self, digest: Digest) -> HeldPart | None:
        return self.parts.get(digest)

    async def publish(self, upload: Upload) -> Published:
        self._fail()
        files = {str(p.relative_to(upload.root)): p for p in sorted(upload.root.glob("**/*")) if p.is_file()}
        contents = {name: p.read_bytes() if self.keep_contents else b"" for name, p in files.items()}
        self.published.append((upload, contents))
        return Published(upload.model, Version(13), digest_of(b"manifest"), EntryId(7, 42), self.unchanged)

    async def command(self, text: str, by: str) -> dict[str, Any]:
        self._fail()
        self.commands.append((text, by))
        return {"done": text}

    async def promise(self, epoch: int, holder: NodeId, nonce: str) -> Promise:
        self._fail()
        self.promises.append((epoch, holder, nonce))
        return Promise("n1", True, epoch, holder, nonce, ZERO_ID)

    @property
    def epoch(self) -> int:
        return self.highest_epoch

    def note_epoch(self, epoch: int, node: str) -> None:
        self.highest_epoch = epoch

    def runs_here(self, text: str) -> bool:
        return self.is_primary or (text == "resume" and self.primary_url is None)

    def catalog(self) -> dict[str, dict[str, str]]:
        self._fail()
        return {"": {"id": "0-0"}}

    def metrics(self) -> bytes:
        return b"# HELP x y\n"

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def hold(self, data: bytes) -> Digest:
        """Put an object into this node's store."""
        digest = digest_of(data)
        path = self.root / digest.hex
        path.write_bytes(data)
        self.objects[digest] = path
        return digest


@contextlib.asynccontextmanager
async def serving(
    node: FakeNode,
    *,
    token: str | None = None,
    uploads: Uploads | None = None,
    compression: Callable[[], Compression] = lambda: "auto",
    **limits: Any,
) -> AsyncIterator[HttpServer]:
    """A started server on 127.0.0.1, stopped at the end."""
    server = HttpServer(
        node,
        host="127.0.0.1",
        port=0,
        token=token,
        node="n1",
        fleet="test",
        limits=replace(QUICK, **limits),
        uploads=uploads,
        compression=compression,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def raw(port: int, data: bytes, *, timeout_s: float = 5.0, half_close: bool = False) -> bytes:
    """Send bytes as they are, return all that comes back until the server closes. Blocks: for a thread."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with contextlib.suppress(ConnectionError):  # it may refuse before it has read everything
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
        return received


def status_of(answer: bytes) -> int:
    """The status of a raw answer, 0 if there was none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0
