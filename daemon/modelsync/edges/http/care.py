"""The routes by which a person has one host clean up, scrub, verify, or search. ``ports.CareApi`` does the work."""

from __future__ import annotations

from aiohttp import web

from modelsync.core import find
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import model_name
from modelsync.edges.http.answers import json_answer
from modelsync.edges.http.bodies import BodyPace, json_body
from modelsync.edges.http.limits import HttpLimits
from modelsync.ports import CareApi


class CareRoutes:
    """``/v1/gc`` and ``/v1/scrub`` change this host's disk, ``/v1/verify`` keeps it busy: POSTs need the token."""

    def __init__(self, api: CareApi, *, limits: HttpLimits) -> None:
        self._api = api
        self._pace = BodyPace(silence_s=limits.body_silence_s, min_bytes_per_s=limits.min_body_bytes_per_s)

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/gc", self.collect)
        app.router.add_post("/v1/scrub", self.scrub)
        app.router.add_get("/v1/scrub", self.scrubbing)
        app.router.add_post("/v1/verify", self.verify)
        app.router.add_get("/v1/find", self.find)

    async def collect(self, request: web.Request) -> web.Response:
        """``{"dry_run": true}``: what would go."""
        body = await json_body(request, self._pace)
        dry_run = body.get("dry_run", False)
        if not isinstance(dry_run, bool) or body.keys() - {"dry_run"}:
            raise MalformedMessage(what="request body", reason='only "dry_run", true or false, belongs there')
        return json_answer(await self._api.collect(dry_run=dry_run))

    async def scrubbing(self, request: web.Request) -> web.Response:
        """How far the scrub or verification under way is; an empty object: none is."""
        return json_answer(self._api.scrubbing())

    async def scrub(self, request: web.Request) -> web.Response:
        """An empty body; the answer comes when everything was read."""
        await json_body(request, self._pace)
        return json_answer(await self._api.scrub())

    async def verify(self, request: web.Request) -> web.Response:
        """``{"model": NAME}``, or an empty object for all; the answer comes when everything was read."""
        body = await json_body(request, self._pace)
        name = body.get("model")
        if not isinstance(name, str | None) or body.keys() - {"model"}:
            raise MalformedMessage(what="request body", reason='only "model", a name, belongs there')
        return json_answer(await self._api.verify(None if name is None else model_name(name)))

    async def find(self, request: web.Request) -> web.Response:
        """``?where=auc>=0.9&where=class=SVC``"""
        given = request.query.getall("where", [])
        if not 1 <= len(given) <= find.MAX_CONDITIONS:
            raise BadName(kind="search", value=repr(given)[:80], rule=f"1 to {find.MAX_CONDITIONS} conditions")
        return json_answer(await self._api.find([find.parse(text) for text in given]))
