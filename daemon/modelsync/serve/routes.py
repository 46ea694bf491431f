"""The protocol's routes: paths, methods and documents. What they ask for, ``shelf`` and ``engine`` do.

Source: Open Inference Protocol v2, "HTTP/REST"; the model repository extension.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import chain
from typing import Any

import orjson
from aiohttp import web

from modelsync import __version__
from modelsync.core.errors import BadName
from modelsync.core.ids import MAX_INTEGER, model_name
from modelsync.serve import messages
from modelsync.serve.bodies import Bodies
from modelsync.serve.engine import Engine
from modelsync.serve.faults import BadRequest, InferenceFault, ServerBusy, UnknownModel
from modelsync.serve.fellows import Fellows, best
from modelsync.serve.forwarding import Forwarder
from modelsync.serve.messages import LENGTH_HEADER, Encoded
from modelsync.serve.shelf import Shelf
from modelsync.serve.traffic import Traffic, Visit

SERVER_NAME = "modelsync-serve"
EXTENSIONS = ["binary_tensor_data", "model_repository"]
ELSEWHERE_BYTES = 256 << 10
"""A body larger than this is parsed in a thread, so that the loop goes on meanwhile."""
_RETRY_AFTER_S = "1"


class ProtocolRoutes:
    """Everything below ``/v2``.

    Args:
        ready: whether the server takes requests: all that is preloaded is loaded, and it is not stopping.
        forwarder: where requests for models go that are not held here; None: nowhere.
        fellows: the other workers of this port.
    """

    def __init__(
        self,
        shelf: Shelf,
        engine: Engine,
        bodies: Bodies,
        traffic: Traffic,
        forwarder: Forwarder | None,
        fellows: Fellows,
        ready: Callable[[], bool],
    ) -> None:
        self._shelf = shelf
        self._traffic = traffic
        self._engine = engine
        self._bodies = bodies
        self._forwarder = forwarder
        self._fellows = fellows
        self._server_ready = ready

    def add_to(self, app: web.Application) -> None:
        route = app.router
        for path in ("/v2", "/v2/"):
            route.add_get(path, self.server)
        route.add_get("/v2/health/live", self.live)
        route.add_get("/v2/health/ready", self.ready)
        for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            route.add_post(f"{base}/infer", self.infer)
            route.add_get(f"{base}/ready", self.model_ready)
            route.add_get(base, self.model)
        route.add_post("/v2/repository/index", self.index)
        route.add_post("/v2/repository/models/{name}/load", self.load)
        route.add_post("/v2/repository/models/{name}/unload", self.unload)

    # --- the server --------------------------------------------------------------------------------------------------

    async def server(self, request: web.Request) -> web.Response:
        return answer({"name": SERVER_NAME, "version": __version__, "extensions": EXTENSIONS})

    async def live(self, request: web.Request) -> web.Response:
        return answer({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        if not self._server_ready():
            raise ServerBusy(reason="it is starting or stopping")
        return answer({"ready": True})

    # --- models ------------------------------------------------------------------------------------------------------

    async def infer(self, request: web.Request) -> web.Response:
        name, version = _name(request), _version(request)
        with await self._bodies.read(request) as body:
            visit = self._traffic.visit(name)
            try:
                response = await self._infer(request, visit, version, body.data)
                visit.status = response.status
            except InferenceFault as fault:
                visit.status = fault.status
                raise
            finally:
                self._traffic.end(visit)
        return response

    async def _infer(self, request: web.Request, visit: Visit, version: int | None, body: bytearray) -> web.Response:
        name = visit.model
        try:
            leased = await self._shelf.lease(name, version)
        except UnknownModel as unknown:
            return await self._forwarded(request, name, body, unknown)
        with leased:
            visit.version, visit.missed = leased.version, leased.missed
            decoded = await _aside(len(body), messages.decode, body, request.headers.get(LENGTH_HEADER))
            outputs = await self._engine.infer(name, leased, decoded)
            size = sum(tensor.array.nbytes for tensor in outputs)
            encoded = await _aside(size, messages.encode, decoded, name, str(leased.version), outputs)
        return _infer_answer(encoded)

    async def model_ready(self, request: web.Request) -> web.Response:
        name, version = _name(request), _version(request)
        try:
            await self._shelf.ready(name, version)
        except UnknownModel as unknown:
            return await self._forwarded(request, name, b"", unknown)
        return answer({"name": name, "ready": True})

    async def model(self, request: web.Request) -> web.Response:
        name, version = _name(request), _version(request)
        try:
            versions = await self._shelf.versions(name)
            with await self._shelf.lease(name, version) as leased:
                signature = leased.adapter.signature
        except UnknownModel as unknown:
            return await self._forwarded(request, name, b"", unknown)
        return answer(
            {
                "name": name,
                "versions": [str(number) for number in versions],
                "platform": signature.platform,
                "inputs": [spec.document() for spec in signature.inputs],
                "outputs": [spec.document() for spec in signature.outputs],
            }
        )

    async def _forwarded(
        self, request: web.Request, name: str, body: bytes | bytearray, unknown: UnknownModel
    ) -> web.Response:
        """What an owner of a model answers that is not held here. Raises ``unknown`` if there is none to ask."""
        if self._forwarder is None:
            raise unknown
        return await self._forwarder.forward(request, name, body, unknown)

    # --- the repository ----------------------------------------------------------------------------------------------

    async def index(self, request: web.Request) -> web.Response:
        with await self._bodies.read(request) as body:
            wanted = messages.json_object(body.data) if body.data.strip() else {}
        lines: dict[str, list[dict[str, str]]] = {}
        told = await self._fellows.told(request, "POST")
        for line in chain([each.document() for each in await self._shelf.index()], *map(orjson.loads, told.values())):
            lines.setdefault(line["name"], []).append(line)
        index = [best(each) for each in lines.values()]
        return answer([each for each in index if each["state"] == "READY" or not wanted.get("ready")])

    async def load(self, request: web.Request) -> web.Response:
        name = _name(request)
        await self._refuse_parameters(request, allowed=())
        await self._shelf.load(name)
        self._fellows.mark(name, withdrawn=False)
        await self._fellows.order(request, name)
        return answer({})

    async def unload(self, request: web.Request) -> web.Response:
        name = _name(request)
        await self._refuse_parameters(request, allowed=("unload_dependents",))
        await self._shelf.versions(name)
        self._fellows.mark(name, withdrawn=True)
        await self._shelf.unload(name)
        await self._fellows.order(request, name)
        return answer({})

    async def _refuse_parameters(self, request: web.Request, allowed: tuple[str, ...]) -> None:
        with await self._bodies.read(request) as body:
            document = messages.json_object(body.data) if body.data.strip() else {}
        parameters = document.get("parameters") or {}
        extra = set(parameters) - set(allowed) if isinstance(parameters, dict) else {"parameters"}
        if extra:
            raise BadRequest(reason=f"parameters {sorted(extra)[:5]}: models come from what was published, as it is")


async def _aside(size_bytes: int, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, in a thread if it is much work."""
    if size_bytes <= ELSEWHERE_BYTES:
        return call(*arguments)
    return await asyncio.to_thread(call, *arguments)


def _infer_answer(encoded: Encoded) -> web.Response:
    if encoded.header_bytes is None:
        return web.Response(body=encoded.body, content_type="application/json")
    return web.Response(
        body=encoded.body,
        content_type="application/octet-stream",
        headers={LENGTH_HEADER: str(encoded.header_bytes)},
    )


def _name(request: web.Request) -> str:
    given = request.match_info["name"]
    try:
        return model_name(given)
    except BadName as error:
        raise UnknownModel(reason=str(error)) from error


def _version(request: web.Request) -> int | None:
    given = request.match_info.get("version")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal()) or len(given) > 16 or int(given) > MAX_INTEGER:
        raise UnknownModel(reason=f"{given[:40]!r} is not a version, which is a whole number")
    return int(given)


def answer(document: object, status: int = 200) -> web.Response:
    """A document as JSON that no cache keeps."""
    return web.Response(
        body=messages.json_bytes(document),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def refusal(fault: InferenceFault) -> web.Response:
    """An error as the protocol has it."""
    response = answer({"error": str(fault)}, fault.status)
    if fault.status in (429, 503):
        response.headers["Retry-After"] = _RETRY_AFTER_S
    if fault.status == 413:
        response.force_close()  # the rest of the body is not read
    return response
