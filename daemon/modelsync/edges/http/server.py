"""The HTTP face of a daemon: puts the routes together, listens, and stops.

This file alone owns the listening socket. What each route does, and who may call it, stands in the files it imports.
INTERFACE: "HTTP of a daemon".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from aiohttp import web
from aiohttp.http import HttpProcessingError

from modelsync.core.compression.frames import Compression
from modelsync.core.errors import CannotListen
from modelsync.edges.http.batch import BatchRoutes
from modelsync.edges.http.bodies import BodyPace
from modelsync.edges.http.body_gate import BodyGate
from modelsync.edges.http.care import CareRoutes
from modelsync.edges.http.commands import CommandRoutes
from modelsync.edges.http.connections import ConnectionGuard
from modelsync.edges.http.framing import Framing
from modelsync.edges.http.guard import EPOCH_HEADER, Guard, Handler, answered
from modelsync.edges.http.limits import HttpLimits
from modelsync.edges.http.objects import ObjectRoutes
from modelsync.edges.http.upload import UploadRoutes
from modelsync.edges.http.upload_sessions import UploadSessionRoutes
from modelsync.edges.http.views import ViewRoutes
from modelsync.edges.uploads.kept import Uploads
from modelsync.ports import CareApi, NodeApi

NODE_HEADER = "X-Modelsync-Node"
BACKLOG = 1024
LINGER_S = 5.0
"""For what a refused sender is still sending, so that it reads the refusal rather than a reset."""
DEFAULT_LIMITS = HttpLimits()
READ_BYTES = 256 << 10
"""aiohttp pauses a sender at twice this; larger reads mean fewer wake-ups for each MiB of an upload."""


def _quiet_logger() -> logging.Logger:
    """aiohttp's logger, without a traceback for each malformed request or receiver that left: strangers may not fill
    the journal."""
    logger = logging.getLogger("modelsync.http")
    logger.addFilter(_not_a_stranger_s_fault)
    return logger


def _not_a_stranger_s_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionError):
        return isinstance(error.__cause__, OSError)  # our disk's fault: http_ranges hangs up and names it as the cause
    return not isinstance(error, HttpProcessingError)


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
        self._host = host
        self._port = port
        self._node = node
        self._fleet = fleet
        self._limits = limits
        self._guard = Guard(host=host, token=token)
        self._gate = BodyGate(limits.max_bodies, limits.max_waiting_bodies, limits.body_wait_s)
        self._framing = Framing(compression)
        self._runner: web.AppRunner | None = None
        self._connections: ConnectionGuard | None = None
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; before ``start`` the one that was asked for."""
        return self._port

    @property
    def sent_bytes(self) -> int:
        """Of models, to whoever asked for them, since the start; on the wire."""
        return self._gate.sent_bytes

    @property
    def sent_content_bytes(self) -> int:
        """What these bytes stood for: more, where they were packed."""
        return self._gate.content_bytes

    async def start(self) -> None:
        """Listen. Raises CannotListen if the address is taken or is not of this host."""
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=_quiet_logger(),
            handler_cancellation=False,  # a publish that has begun is finished, whether or not its sender waits
            keepalive_timeout=self._limits.idle_timeout_s + 5,  # ours comes first; this is the net below it
            max_line_size=self._limits.max_head_bytes,
            max_field_size=self._limits.max_head_bytes,
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
            auto_decompress=False,  # a small body must not become a large one
            shutdown_timeout=self._limits.drain_s,
        )
        await runner.setup()
        self._runner = runner
        assert runner.server is not None
        self._connections = ConnectionGuard(runner.server, self._limits)
        try:
            await self._listen(self._connections)
        except BaseException:
            await runner.cleanup()
            raise
        self._sweeper = asyncio.create_task(self._connections.sweep(), name="http connections")

    async def stop(self) -> None:
        """Stop listening, give running requests a few seconds, close what is left. May be called twice."""
        listener, self._listener = self._listener, None
        sweeper, self._sweeper = self._sweeper, None
        runner, self._runner = self._runner, None
        if listener is not None:
            listener.close()
        if runner is not None:
            await runner.cleanup()
        self._framing.close()
        if sweeper is not None:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper

    async def _listen(self, factory: ConnectionGuard) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                factory, self._host, self._port, backlog=BACKLOG, reuse_address=True, start_serving=False
            )
        except OSError as error:
            address = f"{self._host}:{self._port}"
            raise CannotListen(address=address, reason=error.strerror or str(error)) from error
        for listening in self._listener.sockets:
            # Accepted sockets inherit it: a receiver that takes nothing is dropped by the kernel (tcp(7)).
            stalled_ms = int(self._limits.stalled_receiver_s * 1000)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)
        self._port = self._listener.sockets[0].getsockname()[1]
        await self._listener.start_serving()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware()])
        ViewRoutes(self._api).add_to(app)
        ObjectRoutes(self._api, self._gate, self._framing).add_to(app)
        pace = BodyPace(silence_s=self._limits.body_silence_s, min_bytes_per_s=self._limits.min_body_bytes_per_s)
        BatchRoutes(self._api, pace, self._gate, self._framing).add_to(app)
        CommandRoutes(self._api, fleet=self._fleet, limits=self._limits).add_to(app)
        UploadRoutes(self._api, fleet=self._fleet, limits=self._limits).add_to(app)
        if self._uploads is not None:
            UploadSessionRoutes(self._api, self._uploads, fleet=self._fleet, limits=self._limits).add_to(app)
        if self._care is not None:
            CareRoutes(self._care, limits=self._limits).add_to(app)
        app.on_response_prepare.append(self._sign)
        return app

    def _middleware(self) -> web.Middleware:  # type: ignore[name-defined]
        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            assert self._connections is not None
            self._connections.request_started(request.protocol)
            try:
                return await answered(request, lambda inner: self._checked(inner, handler))
            finally:
                self._connections.request_ended(request.protocol)

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
