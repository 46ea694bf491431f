"""PUT /v1/models/NAME: a model arrives over HTTP and is handed to the publisher.

This file alone decides the form of an upload request. The order matters: whatever can be refused is refused before the
first byte of the body is asked for (``Expect: 100-continue``), so that a large upload to a replica costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from email.message import Message

from aiohttp import web

from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import ModelName, model_name
from modelsync.edges.http import bodies as http_bodies
from modelsync.edges.http.answers import json_answer, to_primary
from modelsync.edges.http.bodies import BodyPace
from modelsync.edges.http.limits import HttpLimits
from modelsync.edges.http.multipart import boundary_of
from modelsync.edges.http.receiving import (
    CONTENT_HEADER,
    FIELDS,
    expect_nothing_yet,
    go_on,
    outcome_of,
    require_plain,
    to_its_end,
    upload_of,
)
from modelsync.edges.http.staging import FileSink, MultipartSink, Staging
from modelsync.edges.uploads.kept import Uploads
from modelsync.ports import NodeApi, Progress, Published, Upload


class UploadRoutes:
    """Takes uploads, a bounded number at a time. ``uploads``: who counts what arrives."""

    def __init__(self, api: NodeApi, uploads: Uploads | None, *, fleet: str, limits: HttpLimits) -> None:
        self._api = api
        self._uploads = uploads
        self._fleet = fleet
        self._limits = limits
        self._pace = BodyPace(silence_s=limits.body_silence_s, min_bytes_per_s=limits.min_body_bytes_per_s)
        self._running = 0

    def add_to(self, app: web.Application) -> None:
        """Register the route. Its own handler answers ``Expect``, after everything that can be refused."""
        app.router.add_put("/v1/models/{name}", self.put, expect_handler=expect_nothing_yet)

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Receive, publish, answer 201, or 200 where the head already had these bytes."""
        name = model_name(request.match_info["name"])
        if not self._api.is_primary:
            return to_primary(request, self._api, self._fleet)
        self._api.require_publishing()
        self._refuse_early(request)
        if self._running >= self._limits.max_uploads:
            raise web.HTTPServiceUnavailable(
                text=f"{self._running} uploads arrive already, which is the most at once; try again",
                headers={"Retry-After": "5"},
            )
        self._running += 1
        try:
            published = await self._received(request, name)
            return json_answer(outcome_of(published), status=200 if published.unchanged else 201)
        finally:
            self._running -= 1

    def _refuse_early(self, request: web.Request) -> None:
        require_plain(request, ("filename", "digest", *FIELDS))
        size_bytes, most_bytes = request.content_length, self._limits.max_upload_bytes
        if size_bytes is not None and most_bytes is not None and size_bytes > most_bytes:
            raise http_bodies.too_large(most_bytes, size_bytes)

    async def _received(self, request: web.Request, name: ModelName) -> Published:
        root = await asyncio.to_thread(self._api.staging_dir)
        staging = Staging(root, self._limits.reserve_bytes)
        try:
            await to_its_end(staging.require_space, 2 * (request.content_length or 0))  # the store copies it
            sink = await to_its_end(_sink_of, request, name, staging)
            try:
                with self._counted(name, request.content_length or 0) as progress:
                    await self._drain(request, sink, progress)
            finally:
                sink.close()
            return await self._api.publish(_upload(request, name, staging, sink))
        finally:
            await to_its_end(staging.remove)

    def _counted(self, name: ModelName, size_bytes: int) -> contextlib.AbstractContextManager[Progress]:
        return self._uploads.at_once(name, size_bytes) if self._uploads else contextlib.nullcontext(Progress())

    async def _drain(self, request: web.Request, sink: FileSink | MultipartSink, progress: Progress) -> None:
        await go_on(request)
        async for block in http_bodies.blocks(request, max_bytes=self._limits.max_upload_bytes, pace=self._pace):
            await to_its_end(sink.feed, block)
            progress.add(done_bytes=len(block), wire_bytes=len(block))
        await to_its_end(sink.finish)


def _sink_of(request: web.Request, name: ModelName, staging: Staging) -> FileSink | MultipartSink:
    if not request.content_type.startswith("multipart/"):
        return FileSink(staging, _filename(request) or name, request.query.get("digest"))
    if "digest" in request.query:
        raise MalformedMessage(what="upload", reason="digest is of a body that is one file")
    if request.content_type != "multipart/form-data":
        raise web.HTTPUnsupportedMediaType(text="of the multipart types, only multipart/form-data is taken")
    return MultipartSink(staging, boundary_of(request.headers["Content-Type"]))


def _filename(request: web.Request) -> str | None:
    asked = request.query.get("filename")
    if asked is not None:
        return asked
    message = Message()
    message["Content-Disposition"] = request.headers.get("Content-Disposition", "attachment")
    return message.get_filename()


def _upload(request: web.Request, name: ModelName, staging: Staging, sink: FileSink | MultipartSink) -> Upload:
    fields = {key: _text(value, key) for key, value in sink.fields.items()}
    twice = fields.keys() & request.query.keys()
    if twice:
        raise MalformedMessage(what="upload", reason=f"{sorted(twice)} stand in the query and in the form")
    said = {key: request.query[key] for key in FIELDS if key in request.query}
    return upload_of(name, staging.root, {**fields, **said}, content=request.headers.get(CONTENT_HEADER))


def _text(value: bytes, key: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(what="upload", reason=f"{key} is not UTF-8") from error
