"""The client side of control traffic: what the command line and other daemons ask of a daemon.

This file alone turns a daemon's answers, and aiohttp's exceptions, into values and errors of ours. Weights do not pass
through here: ``fetch`` pulls them.

Redirects. A replica answers a write with 307 to the primary. It is followed at most three times, only to the same path,
over HTTP or HTTPS, never from HTTPS to HTTP. The token goes along: it is the fleet's, and whoever redirects has just
been given it, so that nothing is told to a host that the redirecting host could not have told it itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
from blake3 import blake3
from yarl import URL

from modelsync.core import fleet as fleets
from modelsync.core.canonical import MAX_DOCUMENT_BYTES
from modelsync.core.catalog import ModelRecord
from modelsync.core.catalog_fields import from_fields
from modelsync.core.errors import (
    BadName,
    DigestMismatch,
    MalformedMessage,
    ModelsyncError,
    PeerBrokeOff,
    PeerRefused,
    PeerUnavailable,
    TimedOut,
)
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import Digest, EntryId, ModelName, NodeId, Version, model_name, node_id
from modelsync.edges.http.errors import error_from_document, status_of
from modelsync.edges.http.json import json_object, json_value
from modelsync.ports import Promise

MAX_ANSWER_BYTES = 16 << 20
"""A status document of a thousand nodes with a hundred models each."""
CONNECT_S = 10.0
"""For a connection, also of a question whose answer takes hours."""
MAX_REDIRECTS = 3
"""A replica, a primary that has just stepped down, and one to spare."""


class ControlClient:
    """Asks daemons. One for a process is enough; close it, or use it with ``async with``.

    Args:
        token: sent with every request.
        timeout_s: for a whole small request, and for each silence within an upload.

    Every method raises PeerUnavailable, PeerRefused or TimedOut, the error that the daemon itself raised where its
    answer names one (PolicyRefusal, NoSuchVersion, …), and MalformedMessage for an answer that is none.
    """

    def __init__(self, token: str | None = None, timeout_s: float = 5.0) -> None:
        self._headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}
        self.timeout_s = timeout_s
        self._open_session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close idle connections. May be called twice."""
        session, self._open_session = self._open_session, None
        if session is not None:
            await session.close()

    async def status(self, url: str) -> dict[str, Any]:
        """The status document of a node's fleet."""
        return json_object(await self.small("GET", url, "/v1/status"), "status")

    async def server_stats(self, url: str, step_s: int) -> dict[str, Any]:
        """The statistics of an inference server, in steps of so many seconds."""
        return json_object(await self.small("GET", url, "/stats", query={"step_s": str(step_s)}), "/stats")

    async def collect(self, url: str, *, dry_run: bool) -> dict[str, Any]:
        """Let one host remove what it need not keep, or only say what that is."""
        body = json.dumps({"dry_run": dry_run}).encode()
        return json_object(await self.small("POST", url, "/v1/gc", body=body), "answer to gc")

    async def scrub(self, url: str) -> dict[str, Any]:
        """Let one host read everything again and repair what is damaged."""
        return json_object(await self.small("POST", url, "/v1/scrub", body=b"{}"), "answer to scrub")

    async def scrubbing(self, url: str) -> dict[str, Any]:
        """How far that host's scrub is; empty: none runs."""
        return json_object(await self.small("GET", url, "/v1/scrub"), "scrub")

    async def verify(self, url: str, name: ModelName | None) -> list[dict[str, Any]]:
        """Let one host read what it holds of a model, or of all, and say what is damaged. Raises NoSuchVersion."""
        body = json.dumps({} if name is None else {"model": name}).encode()
        value = json_value(await self.small("POST", url, "/v1/verify", body=body), "answer to verify")
        if not isinstance(value, list):
            raise MalformedMessage(what="answer to verify", reason="it is not a list")
        return value

    async def find(self, url: str, conditions: Sequence[str]) -> list[dict[str, Any]]:
        """The versions whose metadata satisfy all conditions."""
        value = json_value(await self.small("GET", url, "/v1/find", query={"where": list(conditions)}), "find")
        if not isinstance(value, list):
            raise MalformedMessage(what="find", reason="it is not a list")
        return value

    async def models(self, url: str) -> list[dict[str, Any]]:
        """All models as that node knows them."""
        value = json_value(await self.small("GET", url, "/v1/models"), "models")
        if not isinstance(value, list):
            raise MalformedMessage(what="models", reason="it is not a list")
        return value

    async def model(self, url: str, name: ModelName) -> dict[str, Any]:
        """One model with its history. Raises NoSuchVersion."""
        return json_object(await self.small("GET", url, f"/v1/models/{name}"), "model")

    async def manifest(self, url: str, name: ModelName, version: Version) -> bytes:
        """A manifest's bytes, unchecked: its digest must be compared by who knows it. Raises NoSuchVersion."""
        return await self.small("GET", url, f"/v1/models/{name}/versions/{version}", max_bytes=MAX_DOCUMENT_BYTES)

    async def get_object(self, url: str, digest: Digest, max_bytes: int) -> bytes:
        """A small object, manifest or chunk list, verified. Raises DigestMismatch, MalformedMessage above the limit."""
        data = await self.small("GET", url, f"/v1/objects/{digest}", max_bytes=max_bytes)
        actual = Digest(blake3(data).digest())
        if actual != digest:
            raise DigestMismatch(path=str(digest), chunk=None, expected=str(digest), actual=str(actual), source=url)
        return data

    async def command(self, url: str, text: str, by: str = "") -> dict[str, Any]:
        """Run a command in plain words on the fleet's primary, whichever node is asked."""
        body = json.dumps({"command": text, **({"by": by} if by else {})}).encode()
        return json_object(await self.small("POST", url, "/v1/command", body=body), "answer to a command")

    async def catalog(self, url: str) -> tuple[list[ModelRecord], FleetRecord]:
        """All that a node knows of the fleet and its models, parsed as hostile input."""
        with _peer_s_own(url):
            data = await self.small("GET", url, "/v1/catalog", max_bytes=MAX_DOCUMENT_BYTES)
        value = json_object(data, "catalog")
        for fields in value.values():
            if not isinstance(fields, dict) or not all(isinstance(text, str) for text in fields.values()):
                raise MalformedMessage(what="catalog", reason="a record is not an object of text fields")
        fleet = fleets.from_fields(value.pop("", {}))
        try:
            return [from_fields(model_name(name), fields) for name, fields in value.items()], fleet
        except BadName as error:
            raise MalformedMessage(what="catalog", reason=str(error)) from error

    async def promise(self, url: str, epoch: int, holder: NodeId, nonce: str) -> Promise:
        """Ask a node to promise an epoch. Raises PeerUnavailable, PeerRefused, MalformedMessage and nothing else."""
        body = json.dumps({"epoch": epoch, "holder": holder, "nonce": nonce}).encode()
        with _peer_s_own(url):
            data = await self.small("POST", url, "/v1/promise", body=body)
        return _promise_of(json_object(data, "promise"))

    async def small(
        self,
        method: str,
        url: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str | list[str]] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> bytes:
        """One small question, wherever it is redirected to."""

        async def ask(target: URL) -> bytes | URL:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            with translated(target):
                async with asyncio.timeout(self.timeout_s):
                    async with self.session().request(
                        method,
                        target.with_query(query) if query else target,
                        data=body,
                        headers=headers,
                        allow_redirects=False,
                    ) as response:
                        return await answer_of(response, max_bytes)

        return await self.follow(url, path, ask)

    async def follow(self, url: str, path: str, ask: Callable[[URL], Awaitable[bytes | URL]]) -> bytes:
        """Ask, and ask again where a redirect leads, while it leads to the same path. Raises PeerRefused."""
        target = _target(url, path)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await ask(target)
            if isinstance(answer, bytes):
                return answer
            _require_safe(target, answer)
            target = answer
        raise PeerRefused(peer=url, status=307, reason=f"redirected more than {MAX_REDIRECTS} times")

    def session(self) -> aiohttp.ClientSession:
        """For what is not small."""
        if self._open_session is None:
            self._open_session = aiohttp.ClientSession(
                headers=self._headers,
                auto_decompress=False,  # a small answer must not become a large one
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self.timeout_s, CONNECT_S)),
            )
        return self._open_session


@contextlib.contextmanager
def translated(target: URL) -> Iterator[None]:
    """aiohttp's exceptions in our words, here and nowhere else."""
    peer = str(target.origin())
    try:
        yield
    except TimeoutError as error:
        raise TimedOut(what=f"{peer}{target.path}", reached="no answer within the time limit") from error
    except aiohttp.ClientResponseError as error:
        raise PeerRefused(
            peer=peer, status=error.status, reason=f"not an HTTP answer: {error.message}"[:200]
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        # A connection that was never made carried no question.
        kind = PeerUnavailable if isinstance(error, aiohttp.ClientConnectorError) else PeerBrokeOff
        raise kind(peer=peer, reason=str(error)[:200] or type(error).__name__) from error


@contextlib.contextmanager
def _peer_s_own(url: str) -> Iterator[None]:
    """Between daemons a fault that a peer names stays the peer's: its full disk, its refusal, must not end this one."""
    try:
        yield
    except (PeerUnavailable, PeerRefused, MalformedMessage):
        raise
    except TimedOut as error:
        raise PeerUnavailable(peer=url, reason=error.reached) from error
    except ModelsyncError as error:
        raise PeerRefused(peer=url, status=status_of(error), reason=str(error)) from error


def _target(url: str, path: str) -> URL:
    try:
        base = URL(url)
    except ValueError as error:
        raise BadName(kind="URL of a daemon", value=repr(url)[:80], rule="http://HOST:PORT") from error
    if base.scheme not in ("http", "https") or not base.host:
        raise BadName(kind="URL of a daemon", value=repr(url)[:80], rule="http://HOST:PORT")
    return base.with_path(base.path.rstrip("/") + path)


def _require_safe(asked: URL, redirected: URL) -> None:
    downgraded = asked.scheme == "https" and redirected.scheme != "https"
    fit = redirected.scheme in ("http", "https") and redirected.host and redirected.user is None
    if downgraded or not fit or not redirected.path.endswith(asked.path[asked.path.find("/v1/") :]):
        raise PeerRefused(peer=str(asked.origin()), status=307, reason=f"redirects to {str(redirected)[:200]!r}")


async def answer_of(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | URL:
    """The body of a success, or where a redirect leads. Raises what any other answer means."""
    if response.status == 307 and "Location" in response.headers:
        try:
            return response.url.join(URL(response.headers["Location"], encoded=True))
        except ValueError as error:
            raise PeerRefused(peer=str(response.url.origin()), status=307, reason="redirects to no address") from error
    data = await _read(response, max_bytes if response.ok else MAX_ANSWER_BYTES)
    if response.status in (200, 201, 204):
        return data
    document = None
    with contextlib.suppress(MalformedMessage):
        document = json_value(data, "error")
    raise error_from_document(document, status=response.status, peer=str(response.url.origin()))


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    data = bytearray()
    async for block in response.content.iter_any():
        data += block
        if len(data) > max_bytes:
            raise MalformedMessage(what=f"answer of {response.url.origin()}", reason=f"more than {max_bytes} bytes")
    return bytes(data)


def _promise_of(answer: Mapping[str, Any]) -> Promise:
    granted, epoch = answer.get("granted"), answer.get("epoch")
    holder, nonce = answer.get("holder"), answer.get("nonce")
    if not isinstance(granted, bool) or type(epoch) is not int or epoch < 0:
        raise MalformedMessage(what="promise", reason="granted or epoch is not what it should be")
    if not isinstance(holder, str) or not isinstance(nonce, str):
        raise MalformedMessage(what="promise", reason="holder or nonce is not text")
    try:
        return Promise(node_id(answer.get("node")), granted, epoch, holder, nonce, EntryId.parse(answer.get("applied")))
    except BadName as error:
        raise MalformedMessage(what="promise", reason=str(error)) from error
