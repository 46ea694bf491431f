"""PUT /v1/models/NAME: a model arrives over HTTP and is handed to the publisher.

This file alone decides the form of an upload request. The order matters: whatever can be refused is refused before the
first byte of the body is asked for (``Expect: 100-continue``), so that a large upload to a replica costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any, TypeVar

from aiohttp import web

from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import ModelName, Version, model_name, version
from modelsync.core.manifest import MAX_TEXT_BYTES
from modelsync.edges.http import bodies as http_bodies
from modelsync.edges.http.answers import json_answer, to_primary
from modelsync.edges.http.bodies import BodyPace
from modelsync.edges.http.json import json_object
from modelsync.edges.http.limits import HttpLimits
from modelsync.edges.http.multipart import boundary_of
from modelsync.edges.http.staging import FIELDS, FileSink, MultipartSink, Staging
from modelsync.ports import NodeApi, Published, Upload

T = TypeVar("T")


class UploadRoutes:
    """Takes uploads, a bounded number at a time."""

    def __init__(self, api: NodeApi, *, fleet: str, limits: HttpLimits) -> None:
        self._api = api
        self._fleet = fleet
        self._limits = limits
        self._pace = BodyPace(silence_s=limits.body_silence_s, min_bytes_per_s=limits.min_body_bytes_per_s)
        self._running = 0

    def add_to(self, app: web.Application) -> None:
        """Register the route. Its own handler answers ``Expect``, after everything that can be refused."""
        app.router.add_put("/v1/models/{name}", self.put, expect_handler=_expect_nothing_yet)

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Receive, publish, answer 201, or 200 where the head already had these bytes."""
        name = model_name(request.match_info["name"])
        if not self._api.is_primary:
            return to_primary(request, self._api, self._fleet)
        self._refuse_early(request)
        if self._running >= self._limits.max_uploads:
            raise web.HTTPServiceUnavailable(text="too many uploads at once", headers={"Retry-After": "5"})
        self._running += 1
        try:
            return _answer(await self._received(request, name))
        finally:
            self._running -= 1

    def _refuse_early(self, request: web.Request) -> None:
        unknown = request.query.keys() - {"filename", *FIELDS}
        if unknown:
            raise MalformedMessage(what="upload", reason=f"unknown query parameters {sorted(unknown)}")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise web.HTTPUnsupportedMediaType(text="bodies are taken as they are, without Content-Encoding")
        size_bytes, most_bytes = request.content_length, self._limits.max_upload_bytes
        if size_bytes is not None and most_bytes is not None and size_bytes > most_bytes:
            raise http_bodies.too_large(most_bytes, size_bytes)

    async def _received(self, request: web.Request, name: ModelName) -> Published:
        root = await asyncio.to_thread(self._api.staging_dir)
        staging = Staging(root, self._limits.reserve_bytes)
        try:
            await _to_its_end(staging.require_space, request.content_length or 0)
            sink = await _to_its_end(_sink_of, request, name, staging)
            try:
                await self._drain(request, sink)
            finally:
                sink.close()
            return await self._api.publish(_upload(request, name, staging, sink))
        finally:
            await _to_its_end(staging.remove)

    async def _drain(self, request: web.Request, sink: FileSink | MultipartSink) -> None:
        await _continue(request)
        async for block in http_bodies.blocks(request, max_bytes=self._limits.max_upload_bytes, pace=self._pace):
            await _to_its_end(sink.feed, block)
        await _to_its_end(sink.finish)


async def _to_its_end(function: Callable[..., T], *args: Any) -> T:
    """Run in a thread, and wait for it even when cancelled.

    Otherwise the caller's ``finally`` would close a descriptor, and the thread would write on into whatever file got
    its number next.
    """
    future = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        raise


async def _expect_nothing_yet(request: web.Request) -> None:
    """Leave ``Expect`` to the handler; any other expectation than 100-continue ends here."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="the only expectation that is met is 100-continue")


async def _continue(request: web.Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        # As aiohttp's own handler does it; output_size tells whether the response itself has begun.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def _sink_of(request: web.Request, name: ModelName, staging: Staging) -> FileSink | MultipartSink:
    if not request.content_type.startswith("multipart/"):
        return FileSink(staging, _filename(request) or name)
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
    fields.update({key: request.query[key] for key in FIELDS if key in request.query})
    return Upload(
        model=name,
        root=staging.root,
        note=_short(fields, "note"),
        author=_short(fields, "author"),
        version=_version(fields),
        metadata=json_object(fields["metadata"].encode(), "metadata") if fields.get("metadata") else None,
    )


def _text(value: bytes, key: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(what="upload", reason=f"{key} is not UTF-8") from error


def _short(fields: Mapping[str, str], key: str) -> str:
    text = fields.get(key, "")
    if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
        raise MalformedMessage(what="upload", reason=f"{key} is longer than {MAX_TEXT_BYTES} bytes")
    return text


def _version(fields: Mapping[str, str]) -> Version | None:
    return version(fields["version"]) if fields.get("version") else None


def _answer(published: Published) -> web.Response:
    return json_answer(
        {
            "model": published.model,
            "version": published.version,
            "digest": str(published.digest),
            "id": str(published.id),
            "unchanged": published.unchanged,
        },
        status=200 if published.unchanged else 201,
    )
