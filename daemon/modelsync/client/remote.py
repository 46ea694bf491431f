"""Models that this host does not hold: found, followed and fetched through its daemon, which reads them through.

A version is fetched file by file, as a loader asks for it, into a directory of this process that goes with the model.
Every file is checked against the manifest, the manifest against the digest that the fleet's record gives. What is held
on this host is never asked for here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlsplit

from blake3 import blake3

from modelsync.client.offers import Fetched, Offer, Offers
from modelsync.core import canonical
from modelsync.core import manifest as manifests
from modelsync.core.errors import (
    BadName,
    DigestMismatch,
    MalformedMessage,
    NoSuchModel,
    NoSuchVersion,
    PeerRefused,
    PeerUnavailable,
    RemoteFault,
)
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry, Manifest

TIMEOUT_S = 30.0
"""Without a byte: an owner that dies is replaced by another one within it."""
TRIES = 6
"""Of one file, each from where the last one ended, 0.2 s to 3.2 s apart: an owner may die while it is read."""
MAX_RECORD_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20


class Reaching(Offers):
    """What this host offers, and behind it what its daemon can reach.

    Args:
        daemon_url: ``http://HOST:PORT``, of the daemon on this host or any other.
        poll_s: how often the daemon is asked whether another version is wanted.
    """

    def __init__(self, live_dir: str | os.PathLike[str], daemon_url: str, poll_s: float) -> None:
        super().__init__(live_dir)
        self._daemon = Daemon(daemon_url)
        self._poll_s = poll_s
        self._wanted: dict[str, tuple[float, str]] = {}
        """By model that is not here: until when it is believed, and the digest that is wanted."""
        self._asking: set[str] = set()

    def names(self) -> list[str]:
        """Raises NoSuchModel: there is no live directory here, and the daemon does not answer."""
        try:
            there = self._daemon.names()
        except RemoteFault:
            return super().names()
        with contextlib.suppress(NoSuchModel):
            there += super().names()
        return sorted(set(there))

    def require(self, name: str) -> None:
        if not self._is_here(name):
            self._ask(self._legal(name))

    def identity(self, name: str) -> str:
        """Never waits for the daemon: what it said last, while it is asked anew beside this."""
        here = super().identity(name)
        if here or name not in self._wanted:
            return here
        until_s, digest = self._wanted[name]
        if time.monotonic() >= until_s and name not in self._asking:
            self._asking.add(name)
            threading.Thread(target=self._refresh, args=(name,), name="modelsync-ask", daemon=True).start()
        return digest

    def current(self, name: str) -> Offer:
        """What ``current`` means here, or what the fleet wants. Raises NoSuchModel; RemoteFault, IntegrityFault."""
        if self._is_here(name):
            return super().current(name)
        record = self._ask(self._legal(name))
        return self._daemon.offer(name, record, record["wanted"])

    def version(self, name: str, wanted: int | str) -> Offer:
        try:
            return super().version(name, wanted)
        except (NoSuchModel, NoSuchVersion):
            record = self._ask(self._legal(name))
            return self._daemon.offer(name, record, record["aliases"].get(wanted, wanted))

    def retained(self, name: str) -> list[int]:
        if self._is_here(name):
            return super().retained(name)
        history = self._ask(self._legal(name))["history"]
        return [line["version"] for line in history if line["state"] != "evicted"]

    def _is_here(self, name: str) -> bool:
        return bool(super().identity(self._legal(name)))

    def _ask(self, name: str) -> dict[str, Any]:
        record = self._daemon.record(name)
        digest = next((line["digest"] for line in record["history"] if line["version"] == record["wanted"]), "")
        if not digest:
            raise NoSuchModel(model=name, live_dir=str(self.live_dir), reason="the fleet has no version of it to run")
        self._wanted[name] = (time.monotonic() + self._poll_s, digest)
        return record

    def _refresh(self, name: str) -> None:
        try:
            with contextlib.suppress(RemoteFault, NoSuchModel, MalformedMessage):
                self._ask(name)
        finally:
            self._asking.discard(name)


class Daemon:
    """One daemon's HTTP interface, as far as a client needs it. Methods block. Raises RemoteFault throughout."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("daemon_url is http://HOST:PORT")
        self._parts, self.name = parts, f"the daemon at {parts.hostname}:{parts.port}"

    def names(self) -> list[str]:
        listed = self._json("/v1/models")
        return [line["name"] for line in listed if isinstance(line, dict) and isinstance(line.get("name"), str)]

    def record(self, name: str) -> dict[str, Any]:
        """A model's line with its history. Raises NoSuchModel, MalformedMessage."""
        try:
            record = self._json(f"/v1/models/{quote(name, safe='')}")
        except PeerRefused as error:
            if error.status == 404:
                raise NoSuchModel(model=name, live_dir="", reason=f"{self.name} knows no such model") from error
            raise
        lines = record.get("history") if isinstance(record, dict) else None
        if not isinstance(lines, list) or not all(isinstance(line, dict) and line.keys() >= _LINE for line in lines):
            raise MalformedMessage(what="a model's record", reason="it has no history of versions")
        return {"wanted": record.get("wanted"), "aliases": record.get("aliases") or {}, "history": lines}

    def offer(self, name: str, record: dict[str, Any], number: Any) -> Offer:
        """A version of which no file is here yet. Raises NoSuchVersion, DigestMismatch, MalformedMessage."""
        digest = next((line["digest"] for line in record["history"] if line["version"] == number), None)
        if digest is None:
            raise NoSuchVersion(reason=f"{name}: the fleet has no version {number}")
        manifest = self._manifest(name, number, _digest(digest))
        root = tempfile.TemporaryDirectory(prefix=f"modelsync-{name}-")
        return Offer(
            name=name,
            version=int(manifest.version),
            digest=str(digest),
            path=Path(root.name),
            files=MappingProxyType({entry.path: entry.size_bytes for entry in manifest.files}),
            metadata=MappingProxyType(dict(manifest.metadata)),
            digests=MappingProxyType({entry.path: entry.digest.raw for entry in manifest.files}),
            fetched=Files(self, manifest, root),
        )

    def _manifest(self, name: str, number: int, digest: Digest) -> Manifest:
        with self._get(f"/v1/models/{quote(name, safe='')}/versions/{number}") as answer:
            data = answer.read(canonical.MAX_DOCUMENT_BYTES + 1)
        if blake3(data).digest() != digest.raw:
            raise DigestMismatch(
                path=f"manifest of {name} {number}", chunk=None, expected=str(digest),
                actual=str(Digest(blake3(data).digest())), source=self.name,
            )  # fmt: skip
        return manifests.decode(data)

    def receive(self, path: str, offset_bytes: int, write: Callable[[bytes], None]) -> None:
        """The bytes of a URL's path from an offset on."""
        with self._get(path, {"Range": f"bytes={offset_bytes}-"} if offset_bytes else {}) as answer:
            if offset_bytes and answer.status != 206:
                raise PeerRefused(peer=self.name, status=answer.status, reason="it does not go on where it was")
            while block := answer.read(BLOCK_BYTES):
                write(block)

    def _json(self, path: str) -> Any:
        with self._get(path) as answer:
            data = answer.read(MAX_RECORD_BYTES)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(what="a daemon's answer", reason=str(error)[:200]) from error

    @contextlib.contextmanager
    def _get(self, path: str, headers: dict[str, str] | None = None) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            if answer.status not in (200, 206):
                reason = answer.read(500).decode(errors="replace")
                raise PeerRefused(peer=self.name, status=answer.status, reason=reason)
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailable(peer=self.name, reason=str(error) or type(error).__name__) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


_LINE = {"version", "digest", "state"}


class Files(Fetched):
    """The files of one version that lies elsewhere; its directory goes when nobody refers to this any more."""

    def __init__(self, daemon: Daemon, manifest: Manifest, root: tempfile.TemporaryDirectory[str]) -> None:
        self._daemon, self._manifest, self._root = daemon, manifest, root
        self._entries = {entry.path: entry for entry in manifest.files}
        self._locks = {path: threading.Lock() for path in self._entries}

    def fetch(self, path: str) -> None:
        """Have a file in the directory, verified. Raises KeyError, RemoteFault, DigestMismatch, OSError."""
        target = Path(self._root.name, path)
        with self._locks[path]:
            if target.exists():
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(target.name + ".part")
            try:
                self._download(self._entries[path], beside)
                os.rename(beside, target)
            finally:
                beside.unlink(missing_ok=True)

    def _download(self, entry: FileEntry, target: Path) -> None:
        hasher, url = blake3(), self._url(entry)
        with open(target, "wb", buffering=0) as file:

            def write(block: bytes) -> None:
                if file.tell() + len(block) > entry.size_bytes:
                    raise PeerRefused(peer=self._daemon.name, status=200, reason=f"{entry.path} is longer than it is")
                file.write(block)
                hasher.update(block)

            for attempt in range(TRIES):
                try:
                    self._daemon.receive(url, file.tell(), write)
                    if file.tell() == entry.size_bytes:
                        break
                    raise PeerUnavailable(peer=self._daemon.name, reason=f"{entry.path} was broken off")
                except RemoteFault as error:
                    if attempt == TRIES - 1 or _is_final(error):
                        raise
                    time.sleep(0.2 * 2**attempt)
        if hasher.digest() != entry.digest.raw:
            raise DigestMismatch(
                path=entry.path, chunk=None, expected=str(entry.digest), actual=str(Digest(hasher.digest())),
                source=self._daemon.name,
            )  # fmt: skip

    def _url(self, entry: FileEntry) -> str:
        name, number = quote(self._manifest.model, safe=""), self._manifest.version
        return f"/v1/models/{name}/versions/{number}/files/{quote(entry.path)}"


def _digest(text: object) -> Digest:
    try:
        return Digest.parse(str(text))
    except BadName as error:
        raise MalformedMessage(what="a model's record", reason=str(error)) from error


def _is_final(error: RemoteFault) -> bool:
    return isinstance(error, PeerRefused) and error.status < 500
