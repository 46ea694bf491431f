"""One inference server: its parts, its listening socket, and the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError

from modelsync.client import Client
from modelsync.client.offers import Offers
from modelsync.core.errors import CannotListen, MalformedMessage
from modelsync.edges.http.connections import ConnectionGuard
from modelsync.edges.http.limits import HttpLimits
from modelsync.serve.bodies import Bodies
from modelsync.serve.engine import Engine
from modelsync.serve.faults import BadRequest, InferenceFault
from modelsync.serve.forwarding import Forwarder
from modelsync.serve.reports import Reports
from modelsync.serve.routes import ProtocolRoutes, answer, refusal
from modelsync.serve.settings import ServeSettings
from modelsync.serve.shelf import Shelf
from modelsync.serve.traffic import Traffic

BACKLOG = 1024
LINGER_S = 5.0
"""For what a refused sender is still sending, so that it reads the refusal rather than a reset."""
READ_BYTES = 256 << 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = structlog.get_logger()


class InferenceServer:
    """Serves what LIVE offers. ``start``, then ``stop``; one event loop.

    Args:
        client: finds and holds the models; closed by whoever made it.
        settings: limits and places.
        limits: what strangers may use of connections and time.
    """

    def __init__(self, client: Client, settings: ServeSettings, limits: HttpLimits | None = None) -> None:
        self._settings = settings
        self._limits = limits or HttpLimits(drain_s=settings.drain_s)
        self._ready = False
        self._stopping = False
        self._under_way = 0
        self.port = settings.port
        self.traffic = Traffic(time.time, time.perf_counter)
        self.bodies = Bodies(settings.max_body_bytes, settings.max_bodies_bytes)
        self.shelf = Shelf(client, Offers(settings.live_dir))
        self.engine = Engine(settings)
        self.forwarder = Forwarder(settings.daemon_url) if settings.daemon_url else None
        self.reports = Reports(settings.live_dir, client, self.traffic, self.engine.lanes, self.bodies, self.forwarder)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._connections: ConnectionGuard | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, then load what is to be loaded before the server is ready. Raises CannotListen."""
        await self._listen()
        assert self._connections is not None
        self._sweeper = asyncio.create_task(self._connections.sweep(), name="http connections")
        failed = await self.shelf.preload(self._settings.preload)
        for name, reason in failed.items():
            _log.warning("model.refused", model=name, error=reason, next="it is tried again when it is asked for")
        self._ready = True

    async def stop(self) -> None:
        """Not ready from now on; accept nobody new; answer what is under way; close. May be called twice."""
        self._stopping = True
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper
        await self.engine.close()
        if self.forwarder is not None:
            await self.forwarder.close()

    @property
    def ready(self) -> bool:
        return self._ready and not self._stopping

    # --- listening ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=_quiet_logger(),
            handler_cancellation=False,
            keepalive_timeout=self._limits.idle_timeout_s + 5,  # the connection guard's comes first
            max_line_size=self._limits.max_head_bytes,
            max_field_size=self._limits.max_head_bytes,
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
            auto_decompress=False,  # ``bodies`` inflates, with a limit
            shutdown_timeout=self._limits.drain_s,
        )
        await runner.setup()
        self._runner = runner
        assert runner.server is not None
        self._connections = ConnectionGuard(runner.server, self._limits)
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                self._connections,
                self._settings.host,
                self._settings.port,
                backlog=BACKLOG,
                reuse_address=True,
                start_serving=False,
            )
        except OSError as error:
            await runner.cleanup()
            address = f"{self._settings.host}:{self._settings.port}"
            raise CannotListen(address=address, reason=error.strerror or str(error)) from error
        for listening in self._listener.sockets:
            stalled_ms = int(self._limits.stalled_receiver_s * 1000)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)
        self.port = self._listener.sockets[0].getsockname()[1]
        await self._listener.start_serving()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware()])
        ProtocolRoutes(
            self.shelf, self.engine, self.bodies, self.traffic, self.forwarder, ready=lambda: self.ready
        ).add_to(app)
        self.reports.add_to(app)
        return app

    def _middleware(self) -> web.Middleware:  # type: ignore[name-defined]
        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            assert self._connections is not None
            self._connections.request_started(request.protocol)
            try:
                response = await answered(request, handler)
            finally:
                self._connections.request_ended(request.protocol)
            if self._stopping:
                response.force_close()
            return response

        return guarded


async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run a handler; whatever it raises becomes the protocol's error.

    A lost connection and a cancellation pass through: nobody is there to be answered.
    """
    try:
        return await handler(request)
    except InferenceFault as fault:
        return refusal(fault)
    except MalformedMessage as error:
        return refusal(BadRequest(reason=error.reason))
    except web.HTTPException as error:
        response = answer({"error": f"{error.reason}: {request.method} {request.path[:200]}"}, error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except ConnectionError:
        raise
    except Exception:
        # A bug of ours, which must not end the server; nobody else would see it, so it is logged here.
        _log.exception("request.failed", method=request.method, path=request.path[:200])
        return answer({"error": "an error of modelsync-serve itself; see its log"}, 500)


def _quiet_logger() -> logging.Logger:
    """aiohttp's logger, without a traceback for each malformed request: strangers may not fill the journal."""
    logger = logging.getLogger("modelsync.serve.http")
    logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))
    return logger
