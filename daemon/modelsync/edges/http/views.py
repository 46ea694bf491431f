"""What people, probes and scrapers read: health, metrics, status, the catalog, the status page."""

from __future__ import annotations

from aiohttp import web

from modelsync.core.ids import model_name
from modelsync.edges.http.answers import json_answer
from modelsync.ports import NodeApi
from modelsync.web import page, page_headers

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Without it Prometheus 3 refuses the scrape."""


class ViewRoutes:
    """Reads only; none of them touches a disk or Redis beyond what the node itself does to answer."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api
        self._page = page("index")
        self._page_headers = page_headers(self._page)

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/", self.page)
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/status", self.status)
        app.router.add_get("/v1/catalog", self.catalog)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{name}", self.model)
        app.router.add_get("/v1/placement/{name}", self.placement)

    async def page(self, request: web.Request) -> web.Response:
        """The status page, which reads /v1/status itself."""
        return web.Response(text=self._page, content_type="text/html", headers=self._page_headers)

    async def healthz(self, request: web.Request) -> web.Response:
        """The event loop turns and answers."""
        return json_answer({"healthy": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """200 where everything wanted here is active, else 503 and what is missing."""
        ready, reason = self._api.ready()
        return json_answer({"ready": ready, "reason": reason}, status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._api.metrics(), headers={"Content-Type": PROMETHEUS_TEXT})

    async def status(self, request: web.Request) -> web.Response:
        return json_answer(await self._api.status())

    async def catalog(self, request: web.Request) -> web.Response:
        """All this node knows, in the fields of PROTOCOL.md section 4: what a new primary asks of one that is ahead."""
        return json_answer(self._api.catalog())

    async def models(self, request: web.Request) -> web.Response:
        return json_answer(await self._api.models())

    async def model(self, request: web.Request) -> web.Response:
        return json_answer(await self._api.model(model_name(request.match_info["name"])))

    async def placement(self, request: web.Request) -> web.Response:
        """Who owns a model, for whoever hands requests on to an owner."""
        return json_answer(self._api.placement(model_name(request.match_info["name"])))
