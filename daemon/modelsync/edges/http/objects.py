"""What daemons and people download: objects by digest, published files by their path.

This file alone decides how a request names bytes. An object is named by its digest, and only the parsed digest reaches
the store. A published file is named by model, version and path, and the path is looked up in the version's manifest. In
neither case does text of a request become a path of this host.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from modelsync.core.errors import BadName, NoSuchVersion
from modelsync.core.ids import Digest, model_name, version
from modelsync.core.manifest import published_path
from modelsync.edges.http.answers import json_answer
from modelsync.edges.http.body_gate import BodyGate
from modelsync.edges.http.framing import Framing
from modelsync.edges.http.growing import send_growing
from modelsync.edges.http.ranges import Download, send, span_of
from modelsync.ports import NodeApi

_IMMUTABLE = "public, max-age=31536000, immutable"
"""A digest names one content for ever (RFC 8246); a year is the longest that caches honour."""
_INERT = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
"""A model may hold a page of HTML: a browser that opens it must not run it with this daemon's origin."""


class ObjectRoutes:
    """Serves bytes that this node holds and has verified."""

    def __init__(self, api: NodeApi, gate: BodyGate, growing: BodyGate, framing: Framing) -> None:
        self._api = api
        self._gate = gate
        self._growing = growing
        self._framing = framing

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/objects/{digest}", self.object)
        app.router.add_get("/v1/have/{digest}", self.have)
        app.router.add_get("/v1/models/{name}/versions/{version}", self.manifest)
        app.router.add_get("/v1/models/{name}/versions/{version}/files/{path:.+}", self.file)

    async def object(self, request: web.Request) -> web.StreamResponse:
        """The bytes of an object, manifest or chunk list; one range of them if asked."""
        digest = Digest.parse(request.match_info["digest"])
        path = self._api.object_path(digest)
        if path is None:
            path = self._part(request, digest)
        headers = {"Content-Type": "application/octet-stream", "Cache-Control": _IMMUTABLE, **_INERT}
        return await send(request, Download(path, str(digest), headers), self._gate, self._framing)

    def _part(self, request: web.Request, digest: Digest) -> Path:
        """The file of an object that is still being pulled, if all that is asked for is verified; else HTTPNotFound."""
        part = self._api.object_part(digest)
        if part is not None and "If-Range" not in request.headers:  # it could turn a range into the whole
            span = span_of(request.headers.get("Range"), part.chunks.size_bytes)
            if span and span.partial and part.chunks.covers(span.offset_bytes, span.offset_bytes + span.count_bytes):
                return part.path
        raise web.HTTPNotFound(text="this node does not hold it")

    async def have(self, request: web.Request) -> web.Response:
        """``{"held", "size_bytes"}``, and of an object that is being pulled what is verified of it, in bytes.

        GET is always a 200; HEAD, which has no body, is a 404 where it is not wholly held.
        """
        digest = Digest.parse(request.match_info["digest"])
        path = self._api.object_path(digest)
        size_bytes = await asyncio.to_thread(_size_bytes, path) if path is not None else None
        if size_bytes is None and request.method != "HEAD" and (part := self._api.object_part(digest)) is not None:
            told = {"ranges": part.chunks.ranges(), "pulling": part.pulling, "coming": part.chunks.coming_ranges()}
            return json_answer({"held": False, "size_bytes": part.chunks.size_bytes, **told})
        status = 404 if request.method == "HEAD" and size_bytes is None else 200
        return json_answer({"held": size_bytes is not None, "size_bytes": size_bytes}, status=status)

    async def manifest(self, request: web.Request) -> web.Response:
        """The manifest's canonical bytes, whose digest is the version's identity."""
        name, number = model_name(request.match_info["name"]), version(request.match_info["version"])
        data = await self._api.manifest(name, number)
        return web.Response(body=data, content_type="application/json", headers={"Cache-Control": "no-cache", **_INERT})

    async def file(self, request: web.Request) -> web.StreamResponse:
        """A published file, under the path that it was published with."""
        name, number = model_name(request.match_info["name"]), version(request.match_info["version"])
        path = published_path(request.match_info["path"])
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.rpartition('/')[2], safe='')}",
            "Cache-Control": "no-cache",
            **_INERT,
        }
        try:
            found = self._api.file_of(name, number, path)
        except NoSuchVersion:
            growing = await self._api.read_through(name, number, path)
            return await send_growing(request, growing, headers, self._growing)
        return await send(request, Download(found, _etag_of(found), headers), self._gate)


def _size_bytes(path: Path) -> int | None:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:  # collected since it was looked up, or unreadable: either way not to be had here
        return None


def _etag_of(path: Path) -> str | None:
    """Objects are named by their digest; a file that is not one has no validator rather than a weak one."""
    try:
        return str(Digest.parse(f"b3:{path.name}"))
    except BadName:
        return None
