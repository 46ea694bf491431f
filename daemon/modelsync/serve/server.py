"""One inference server: its parts, and the order in which it starts and stops."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from modelsync.client import Client
from modelsync.client.offers import Offers
from modelsync.core.errors import MalformedMessage
from modelsync.edges.http.limits import HttpLimits
from modelsync.edges.http.listening import Listening
from modelsync.serve.bodies import Bodies
from modelsync.serve.engine import Engine
from modelsync.serve.faults import BadRequest, InferenceFault
from modelsync.serve.fellows import Fellows
from modelsync.serve.forwarding import Forwarder
from modelsync.serve.reports import Reports
from modelsync.serve.routes import ProtocolRoutes, answer, refusal
from modelsync.serve.settings import ServeSettings
from modelsync.serve.shelf import Shelf
from modelsync.serve.traffic import Traffic
from modelsync.serve.workers import Place

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = structlog.get_logger()


class InferenceServer:
    """Serves what LIVE offers. ``start``, then ``stop``; one event loop.

    Args:
        client: finds and holds the models; closed by whoever made it.
        settings: limits and places.
        limits: what strangers may use of connections and time.
        place: among the workers of one port; None: this is the only process.
    """

    def __init__(
        self, client: Client, settings: ServeSettings, limits: HttpLimits | None = None, place: Place | None = None
    ) -> None:
        self._settings = settings
        self._place = place
        self._fellows = Fellows(place)
        self._listening = Listening(settings.host, settings.port, limits or HttpLimits(drain_s=settings.drain_s))
        self._ready = False
        self._stopping = False
        self.traffic = Traffic(time.time, time.perf_counter)
        self.bodies = Bodies(settings.max_body_bytes, settings.max_bodies_bytes)
        self.shelf = Shelf(client, Offers(settings.live_dir), _withdrawn=self._fellows.withdrawn)
        self.engine = Engine(settings)
        self.forwarder = Forwarder(settings.daemon_url) if settings.daemon_url else None
        self.reports = Reports(
            settings.live_dir, client, self.traffic, self.engine.lanes, self.bodies, self.forwarder, self._fellows
        )

    @property
    def port(self) -> int:
        """The port that is listened on; before ``start`` the one that was asked for."""
        return self._listening.port

    async def start(self) -> None:
        """Listen, then load what is to be loaded before the server is ready. Raises CannotListen."""
        place = self._place
        if place is None:
            await self._listening.start(self._application())
        else:
            await self._listening.start(self._application(), [place.own, *(place.listening if place.first else ())])
        failed = await self.shelf.preload(self._settings.preload)
        for name, reason in failed.items():
            _log.warning("model.refused", model=name, error=reason, next="it is tried again when it is asked for")
        if place is not None and not place.first:
            await self._listening.accept(place.listening)
        self._ready = True

    async def stop(self) -> None:
        """Not ready from now on; accept nobody new; answer what is under way; close. May be called twice."""
        self._stopping = True
        await self._listening.stop()
        await self.engine.close()
        if self.forwarder is not None:
            await self.forwarder.close()
        await self._fellows.close()

    @property
    def ready(self) -> bool:
        return self._ready and not self._stopping

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware()])
        ProtocolRoutes(
            self.shelf,
            self.engine,
            self.bodies,
            self.traffic,
            self.forwarder,
            self._fellows,
            ready=lambda: self.ready,
        ).add_to(app)
        self.reports.add_to(app)
        return app

    def _middleware(self) -> web.Middleware:  # type: ignore[name-defined]
        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await answered(request, handler)
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
