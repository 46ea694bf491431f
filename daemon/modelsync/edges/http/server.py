"""The HTTP face of a daemon: puts the routes together, and says whose answers they are.

What each route does, and who may call it, stands in the files it imports. INTERFACE: "HTTP of a daemon".
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from modelsync.core.compression.frames import Compression
from modelsync.edges.http.batch import BatchRoutes
from modelsync.edges.http.bodies import BodyPace
from modelsync.edges.http.body_gate import BodyGate
from modelsync.edges.http.care import CareRoutes
from modelsync.edges.http.commands import CommandRoutes
from modelsync.edges.http.framing import Framing
from modelsync.edges.http.guard import EPOCH_HEADER, Guard, Handler, answered
from modelsync.edges.http.limits import HttpLimits
from modelsync.edges.http.listening import Listening
from modelsync.edges.http.objects import ObjectRoutes
from modelsync.edges.http.upload import UploadRoutes
from modelsync.edges.http.upload_sessions import UploadSessionRoutes
from modelsync.edges.http.views import ViewRoutes
from modelsync.edges.uploads.kept import Uploads
from modelsync.ports import CareApi, NodeApi

NODE_HEADER = "X-Modelsync-Node"
DEFAULT_LIMITS = HttpLimits()


class HttpServer:
    """One listening address and its routes.

    Args:
        api: the node that answers.
        host, port: where to listen; port 0 lets the kernel choose, see ``port``.
        token: what a write must carry; None lets everyone write who reaches the port.
        node, fleet: named in answers.
        limits: what strangers may use.
        care: what a person may ask this host to do with what it keeps.
        uploads: where uploads that may break off are kept.
        compression: ``[transfer] compression``, read anew for each request.
    """

    def __init__(
        self,
        api: NodeApi,
        *,
        host: str,
        port: int,
        token: str | None,
        node: str,
        fleet: str,
        limits: HttpLimits = DEFAULT_LIMITS,
        care: CareApi | None = None,
        uploads: Uploads | None = None,
        compression: Callable[[], Compression] = lambda: "auto",
    ) -> None:
        self._api = api
        self._care = care
        self._uploads = uploads
        self._node = node
        self._fleet = fleet
        self._limits = limits
        self._guard = Guard(host=host, token=token)
        self._gate = BodyGate(limits.max_bodies, limits.max_waiting_bodies, limits.body_wait_s)
        # Bodies that have to wait for what is pulled may not take the places of those that need not.
        self._growing = BodyGate(limits.max_bodies, limits.max_waiting_bodies, limits.body_wait_s)
        self._framing = Framing(compression)
        self._listening = Listening(host, port, limits)

    @property
    def port(self) -> int:
        """The port that is listened on; before ``start`` the one that was asked for."""
        return self._listening.port

    @property
    def sent_bytes(self) -> int:
        """Of models, to whoever asked for them, since the start; on the wire."""
        return self._gate.sent_bytes + self._growing.sent_bytes

    @property
    def sent_content_bytes(self) -> int:
        """What these bytes stood for: more, where they were packed."""
        return self._gate.content_bytes + self._growing.content_bytes

    async def start(self) -> None:
        """Listen. Raises CannotListen if the address is taken or is not of this host."""
        await self._listening.start(self._application())

    async def stop(self) -> None:
        """Stop listening, give running requests a few seconds, close what is left. May be called twice."""
        await self._listening.stop()
        self._framing.close()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware()])
        ViewRoutes(self._api).add_to(app)
        ObjectRoutes(self._api, self._gate, self._growing, self._framing).add_to(app)
        pace = BodyPace(silence_s=self._limits.body_silence_s, min_bytes_per_s=self._limits.min_body_bytes_per_s)
        BatchRoutes(self._api, pace, self._gate, self._framing).add_to(app)
        CommandRoutes(self._api, fleet=self._fleet, limits=self._limits).add_to(app)
        UploadRoutes(self._api, self._uploads, fleet=self._fleet, limits=self._limits).add_to(app)
        if self._uploads is not None:
            UploadSessionRoutes(self._api, self._uploads, fleet=self._fleet, limits=self._limits).add_to(app)
        if self._care is not None:
            CareRoutes(self._care, limits=self._limits).add_to(app)
        app.on_response_prepare.append(self._sign)
        return app

    def _middleware(self) -> web.Middleware:  # type: ignore[name-defined]
        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await answered(request, lambda inner: self._checked(inner, handler))

        return guarded

    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._guard.check(request)
        epoch = self._guard.believed_epoch(request)
        if epoch is not None and epoch > self._api.epoch:
            self._api.note_epoch(epoch, request.headers.get(NODE_HEADER, "")[:128])
        return await handler(request)

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[NODE_HEADER] = self._node
        response.headers[EPOCH_HEADER] = str(self._api.epoch)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        del response.headers["Server"]
