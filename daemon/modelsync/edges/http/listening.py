"""One address that an aiohttp application is served on: how both of modelsync's servers, the daemon and
``modelsync-serve``, begin to listen, count requests, and stop.

This file alone owns listening sockets. What is answered, and to whom, is the application's own business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

from modelsync.core.errors import CannotListen
from modelsync.edges.http.connections import ConnectionGuard
from modelsync.edges.http.limits import HttpLimits

BACKLOG = 1024
LINGER_S = 5.0
"""For what a refused sender is still sending, so that it reads the refusal rather than a reset."""
READ_BYTES = 256 << 10
"""aiohttp pauses a sender at twice this; larger reads mean fewer wake-ups for each MiB of an upload."""


class Listening:
    """``start`` it with an application, ``stop`` it; one event loop.

    Args:
        host, port: where to listen; port 0 lets the kernel choose, see ``port``.
        limits: what strangers may use of connections and time.
    """

    def __init__(self, host: str, port: int, limits: HttpLimits) -> None:
        self._host = host
        self.port = port
        """The port that is listened on; before ``start`` the one that was asked for."""
        self._limits = limits
        self._runner: web.AppRunner | None = None
        self._connections: ConnectionGuard | None = None
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, application: web.Application, given: Sequence[socket.socket] | None = None) -> None:
        """Listen. Raises CannotListen if the address is taken or is not of this host.

        Args:
            given: sockets that listen already, perhaps other processes' too; the address is not bound then.
        """
        application.middlewares.insert(0, self._counting())
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=_quiet_logger(),
            handler_cancellation=False,  # what has begun is finished, whether or not its sender waits
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
            await (self._listen(self._connections) if given is None else self.accept(given))
        except BaseException:
            await runner.cleanup()
            raise
        self._sweeper = asyncio.create_task(self._connections.sweep(), name="http connections")

    async def stop(self) -> None:
        """Stop listening, give running requests ``limits.drain_s``, close what is left. May be called twice."""
        listeners, self._listeners = self._listeners, []
        sweeper, self._sweeper = self._sweeper, None
        runner, self._runner = self._runner, None
        for listener in listeners:
            listener.close()
        if runner is not None:
            await runner.cleanup()
        if sweeper is not None:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper

    async def accept(self, given: Sequence[socket.socket]) -> None:
        """Answer on further sockets that listen already."""
        assert self._connections is not None
        loop = asyncio.get_running_loop()
        for each in given:
            unix = each.family == socket.AF_UNIX
            create: Callable[..., Awaitable[asyncio.Server]] = loop.create_unix_server if unix else loop.create_server
            if not unix:
                self._limit(each)
            self._listeners.append(await create(self._connections, sock=each, backlog=BACKLOG))

    async def _listen(self, factory: ConnectionGuard) -> None:
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                factory, self._host, self.port, backlog=BACKLOG, reuse_address=True, start_serving=False
            )
        except OSError as error:
            address = f"{self._host}:{self.port}"
            raise CannotListen(address=address, reason=error.strerror or str(error)) from error
        self._listeners.append(listener)
        for listening in listener.sockets:
            self._limit(listening)
        self.port = listener.sockets[0].getsockname()[1]
        await listener.start_serving()

    def _limit(self, listening: Any) -> None:
        # Accepted sockets inherit it: a receiver that takes nothing is dropped by the kernel (tcp(7)).
        stalled_ms = int(self._limits.stalled_receiver_s * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)

    def _counting(self) -> web.Middleware:  # type: ignore[name-defined]
        """Around everything else: a connection on which a request runs is not one that idles."""

        @web.middleware
        async def counted(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            assert self._connections is not None
            self._connections.request_started(request.protocol)
            try:
                return await handler(request)
            finally:
                self._connections.request_ended(request.protocol)

        return counted


def _quiet_logger() -> logging.Logger:
    """aiohttp's logger, without a traceback for each malformed request or receiver that left: strangers may not fill
    the journal."""
    logger = logging.getLogger("modelsync.http")
    logger.addFilter(_not_a_stranger_s_fault)
    return logger


def _not_a_stranger_s_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionError):
        return isinstance(error.__cause__, OSError)  # our disk's fault: ``ranges`` hangs up and names it as the cause
    return not isinstance(error, HttpProcessingError)
