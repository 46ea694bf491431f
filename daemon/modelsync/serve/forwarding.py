"""Requests for models that other hosts hold: handed on to one of their owners, once.

The daemon beside this server knows the owners (partitioned mode). Its answer is kept for a moment; a request that was
handed on already is never handed on again, whatever two hosts believe of each other.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from modelsync.serve.faults import ModelUnavailable, ServerBusy, UnknownModel
from modelsync.serve.messages import LENGTH_HEADER

HOP_HEADER = "X-Modelsync-Forwarded"
KNOWN_S = 2.0
"""How long owners are believed: a model that moved is found again within this time."""
MAX_KNOWN = 10_000
MAX_UNDER_WAY = 128
"""Each holds its body and, when it is answered, the answer."""
MAX_ANSWER_BYTES = 256 << 20
MAX_PLACEMENT_BYTES = 64 << 10
_PLACEMENT_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
_OWNER_TIMEOUT = aiohttp.ClientTimeout(total=60.0, sock_connect=1.0)
"""An owner that is down is passed over within a second; one that loads a large model first is waited for."""
_KEPT_REQUEST = ("Content-Type", "Content-Encoding", LENGTH_HEADER)
_KEPT_ANSWER = ("Content-Type", "Content-Encoding", "Retry-After", LENGTH_HEADER)


@dataclass(frozen=True, slots=True)
class Owners:
    """The hosts that hold a model."""

    urls: tuple[URL, ...] = ()
    """Of their inference servers."""
    silent: tuple[str, ...] = ()
    """Ids of those that do not say where they serve, so that they cannot be asked."""
    parts: int = 0
    """How many parts it lies in, where it does: then only hosts that were asked to load the whole can answer."""


class Forwarder:
    """Asks the daemon who owns a model, and an owner for the answer.

    Args:
        daemon_url: ``http://HOST:PORT`` of the daemon beside this server.
    """

    def __init__(self, daemon_url: str) -> None:
        self._daemon = URL(daemon_url)
        self._session: aiohttp.ClientSession | None = None
        self._known: dict[str, tuple[float, Owners]] = {}
        self._under_way = 0
        self.forwarded = 0
        self.failed = 0

    async def forward(
        self, request: web.Request, name: str, body: bytes | bytearray, unknown: UnknownModel
    ) -> web.Response:
        """An owner's answer, as it is.

        Args:
            unknown: what to raise where nobody else can be asked.
        Raises:
            UnknownModel: no other host has it, or this request was handed on before.
            ServerBusy: too many are being handed on. ModelUnavailable: no owner answers, or says where it serves.
        """
        if HOP_HEADER in request.headers:
            raise unknown
        if self._under_way >= MAX_UNDER_WAY:
            raise ServerBusy(reason=f"{self._under_way} requests are with other hosts")
        self._under_way += 1
        try:
            owners = await self._owners(name)
            if not owners.urls and not owners.silent:
                raise _only_in_parts(name, owners.parts) if owners.parts else unknown
            return await self._asked(owners, request, name, bytes(body))
        finally:
            self._under_way -= 1

    async def close(self) -> None:
        """Close connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=MAX_UNDER_WAY, limit_per_host=32)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session

    async def _owners(self, name: str) -> Owners:
        now_s = time.monotonic()
        until_s, owners = self._known.get(name, (0.0, Owners()))
        if now_s >= until_s:
            owners = await self._placement(name)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[name] = (now_s + KNOWN_S, owners)
        return owners

    async def _placement(self, name: str) -> Owners:
        url = self._daemon / "v1" / "placement" / name
        try:
            async with self._open_session().get(url, timeout=_PLACEMENT_TIMEOUT, allow_redirects=False) as response:
                if response.status == 404:
                    return Owners()
                if response.status != 200:
                    raise ModelUnavailable(model=name, reason=f"the daemon answers {response.status} when asked for it")
                data = await _bounded(response, MAX_PLACEMENT_BYTES)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ModelUnavailable(model=name, reason=f"the daemon says no owner: {_told(error)}") from error
        return owners_of(data)

    async def _asked(self, owners: Owners, request: web.Request, name: str, body: bytes) -> web.Response:
        reasons: list[str] = []
        for owner in owners.urls:
            try:
                answer = await self._ask(owner, request, body)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                reasons.append(f"{owner.host}: {_told(error)}")
                continue
            if answer.status in (404, 503) and owner is not owners.urls[-1]:
                reasons.append(f"{owner.host}: {answer.status}")  # it has lost the model since, or is stopping
                continue
            self.forwarded += 1
            return answer
        self.failed += 1
        self._known.pop(name, None)
        reasons += [f"{one}: its node.serve_url is not set, so it cannot be asked" for one in owners.silent]
        raise ModelUnavailable(model=name, reason=f"none of its owners answers: {'; '.join(reasons)}")

    async def _ask(self, owner: URL, request: web.Request, body: bytes) -> web.Response:
        # The path was matched by a route of ours; it is written anew, so that nothing else of the request gets there.
        path = "/".join(quote(part, safe="") for part in request.path.split("/"))
        headers = {key: request.headers[key] for key in _KEPT_REQUEST if key in request.headers}
        headers[HOP_HEADER] = "1"
        async with self._open_session().request(
            request.method,
            URL(f"{str(owner).rstrip('/')}{path}", encoded=True),
            data=body or None,
            headers=headers,
            timeout=_OWNER_TIMEOUT,
            allow_redirects=False,
        ) as response:
            data = await _bounded(response, MAX_ANSWER_BYTES)
            kept = {key: response.headers[key] for key in _KEPT_ANSWER if key in response.headers}
            return web.Response(body=data, status=response.status, headers=kept)


def owners_of(data: bytes) -> Owners:
    """Where owners serve, from a daemon's answer. Raises ValueError if it is not of the agreed form."""
    document = orjson.loads(data)
    owners = document.get("owners") if isinstance(document, dict) else None
    if not isinstance(owners, list):
        raise ValueError("the daemon's answer has no list of owners")
    found = [each for each in owners[:64] if isinstance(each, dict)]
    urls = [each.get("serve_url") for each in found]
    return Owners(
        tuple(URL(url) for url in urls if isinstance(url, str) and url.startswith(("http://", "https://"))),
        tuple(str(each.get("id"))[:64] for each, url in zip(found, urls, strict=True) if not url),
        parts if isinstance(parts := document.get("parts"), int) and parts > 1 else 0,
    )


def _only_in_parts(name: str, parts: int) -> ModelUnavailable:
    how = f"a host that is to answer for it has to load the whole: POST /v1/models/{name}/load to its daemon"
    return ModelUnavailable(model=name, reason=f"it lies in {parts} parts and whole on no host; {how}")


async def _bounded(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit_bytes:
            raise ValueError(f"the answer is larger than {limit_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


def _told(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, asyncio.TimeoutError) else str(error)[:200]
