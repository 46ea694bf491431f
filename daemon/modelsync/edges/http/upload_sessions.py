"""Uploads that may break off and go on. PROTOCOL.md section 6, "Uploads".

This file alone decides their form on the wire. A plain one grows from its beginning (``Upload-Offset`` as in the IETF's
draft-ietf-httpbis-resumable-upload, or ``Content-Range`` as ``curl -C`` sends it); a planned one takes its chunks in
any order. What has arrived is kept whoever breaks off, and nothing is published before all of it was verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from modelsync.core.errors import (
    IntegrityFault,
    LeaseLost,
    MalformedMessage,
    NotAModel,
    PolicyRefusal,
    WrongOffset,
)
from modelsync.core.ids import MAX_INTEGER, ModelName, model_name
from modelsync.core.uploads import CHUNKS_TYPE, MAX_PLAN_BYTES, PLAN_TYPE, FrameReader
from modelsync.edges.http.answers import json_answer, to_primary
from modelsync.edges.http.bodies import BodyPace, blocks, json_body, too_large
from modelsync.edges.http.limits import HttpLimits
from modelsync.edges.http.receiving import (
    FIELDS,
    expect_nothing_yet,
    go_on,
    outcome_of,
    require_plain,
    to_its_end,
    upload_of,
)
from modelsync.edges.uploads.kept import KeptUpload, Uploads
from modelsync.edges.uploads.plain import PlainUpload
from modelsync.edges.uploads.planned import PlannedUpload
from modelsync.ports import NodeApi, ReceivedFile

SWEEP_S = 600.0
PLANS_AT_ONCE = 4
"""A plan is in memory before it is known to be one."""
_WHOLE = re.compile(r"0|[1-9][0-9]{0,15}")
_RANGE = re.compile(r"bytes (0|[1-9][0-9]{0,15})-([0-9]{1,16})/([0-9]{1,16}|\*)")
_HOPELESS = (IntegrityFault, NotAModel, PolicyRefusal)
"""What sending the rest, or asking again, does not mend: the upload is given up."""


class UploadSessionRoutes:
    """``/v1/models/NAME/uploads`` begins one, ``/v1/uploads/ID`` is it."""

    def __init__(self, api: NodeApi, kept: Uploads, *, fleet: str, limits: HttpLimits) -> None:
        self._api = api
        self._kept = kept
        self._fleet = fleet
        self._limits = limits
        self._pace = BodyPace(silence_s=limits.body_silence_s, min_bytes_per_s=limits.min_body_bytes_per_s)
        self._running = 0
        self._plans = asyncio.Semaphore(PLANS_AT_ONCE)
        self._writers: dict[str, tuple[asyncio.Lock, web.Request | None]] = {}

    def add_to(self, app: web.Application) -> None:
        router = app.router
        router.add_post("/v1/models/{name}/uploads", self.begin, expect_handler=expect_nothing_yet)
        router.add_get("/v1/uploads/{upload}", self.show)
        router.add_patch("/v1/uploads/{upload}", self.go_on, expect_handler=expect_nothing_yet)
        router.add_put("/v1/uploads/{upload}", self.go_on, expect_handler=expect_nothing_yet)
        router.add_post("/v1/uploads/{upload}/publish", self.publish)
        router.add_delete("/v1/uploads/{upload}", self.give_up)
        app.cleanup_ctx.append(self._sweeping)

    async def _sweeping(self, app: web.Application) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.to_thread(self._kept.sweep)
                await asyncio.sleep(SWEEP_S)

        task = asyncio.create_task(sweep(), name="uploads")
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(self._kept.close)

    # --- begin, look, give up ----------------------------------------------------------------------------------------

    async def begin(self, request: web.Request) -> web.StreamResponse:
        """A plan in the body, or in the query what one file will be. 201 with the upload's address."""
        name = model_name(request.match_info["name"])
        if not self._api.is_primary:
            return to_primary(request, self._api, self._fleet)
        self._api.require_publishing()
        async with self._place(None):
            if request.content_type == PLAN_TYPE:
                known = await self._begin_plan(request, name)
            else:
                known = await self._begin_file(request, name)
        return json_answer(self._shown(known), status=201, headers={"Location": _path(known), **_headers(known)})

    async def _begin_plan(self, request: web.Request, name: ModelName) -> KeptUpload:
        require_plain(request, ())
        if (request.content_length or 0) > MAX_PLAN_BYTES:
            raise too_large(MAX_PLAN_BYTES, request.content_length or 0)
        async with self._plans:
            await go_on(request)
            body = b"".join([block async for block in blocks(request, max_bytes=MAX_PLAN_BYTES, pace=self._pace)])
            return await to_its_end(self._kept.open_plan, name, body)

    async def _begin_file(self, request: web.Request, name: ModelName) -> KeptUpload:
        require_plain(request, ("filename", "size_bytes", "digest", *FIELDS))
        size_bytes = None
        if "size_bytes" in request.query:
            size_bytes = _whole(request.query["size_bytes"], "size_bytes")
            most_bytes = self._limits.max_upload_bytes
            if most_bytes is not None and size_bytes > most_bytes:
                raise too_large(most_bytes, size_bytes)
        await go_on(request)
        async for _ in blocks(request, max_bytes=0, pace=self._pace):
            pass
        said = {key: text for key, text in request.query.items() if key != "size_bytes"}
        upload_of(name, self._kept.root, said)  # so that what is wrong with it is said now
        return await to_its_end(self._kept.open_file, name, said, size_bytes)

    async def show(self, request: web.Request) -> web.Response:
        """How much is there, and, of a planned one, what is missing; also by HEAD."""
        known = await self._found(request)
        return json_answer(await to_its_end(self._shown, known), headers=await to_its_end(_headers, known))

    async def give_up(self, request: web.Request) -> web.Response:
        known = await self._found(request)
        await to_its_end(self._kept.discard, known.id)
        return web.Response(status=204)

    async def _found(self, request: web.Request) -> KeptUpload:
        return await to_its_end(self._kept.find, request.match_info["upload"])

    def _shown(self, known: KeptUpload) -> dict[str, Any]:
        body = known.body
        line: dict[str, Any] = {"upload": _path(known), "model": body.model}
        if known.outcome is not None:
            return {**line, "published": known.outcome}
        if isinstance(body, PlainUpload):
            return {**line, "size_bytes": body.size_bytes, "offset_bytes": body.offset_bytes}
        missing = body.missing()
        return {
            **line,
            "size_bytes": body.plan.size_bytes,
            "missing": missing,
            "missing_bytes": body.plan.bytes_of(missing),
        }

    # --- bytes -------------------------------------------------------------------------------------------------------

    async def go_on(self, request: web.Request) -> web.StreamResponse:
        """More of it. 204 with the new offset, or, where it is complete, what its publish answers."""
        known = await self._found(request)
        self._require_office()
        require_plain(request, ())
        if known.outcome is not None:
            return json_answer(known.outcome)
        async with self._place(known):
            if isinstance(known.body, PlannedUpload):
                return await self._take_chunks(request, known, known.body)
            return await self._take_bytes(request, known, known.body)

    @contextlib.asynccontextmanager
    async def _place(self, known: KeptUpload | None) -> AsyncIterator[None]:
        """One body's place among those that arrive at once."""
        if self._running >= self._limits.max_uploads:
            raise web.HTTPServiceUnavailable(
                text=f"{self._running} uploads arrive already, which is the most at once; try again",
                headers={"Retry-After": "5"},
            )
        self._running += 1
        if known is not None:
            known.requests += 1
        try:
            yield
        finally:
            self._running -= 1
            if known is not None:
                known.requests -= 1
                await to_its_end(self._kept.touch, known)

    def _require_office(self) -> None:
        """Bytes for a host that is no primary any more would be sent in vain."""
        if not self._api.is_primary:
            raise LeaseLost(epoch=self._api.epoch, holder=self._api.primary_url or "")

    async def _take_chunks(self, request: web.Request, known: KeptUpload, body: PlannedUpload) -> web.StreamResponse:
        if request.method != "PATCH" or request.content_type != CHUNKS_TYPE:
            raise web.HTTPUnsupportedMediaType(text=f"this upload takes PATCH with {CHUNKS_TYPE}")
        reader = FrameReader(body.plan)
        most_bytes = body.plan.size_bytes + 4 * body.plan.chunk_count
        await go_on(request)
        async for block in blocks(request, max_bytes=most_bytes, pace=self._pace):
            self._require_office()
            for chunk, data in reader.feed(block):
                await to_its_end(body.write, chunk, data)
        reader.finish()
        return json_answer({"missing_bytes": body.plan.bytes_of(body.missing())})

    async def _take_bytes(self, request: web.Request, known: KeptUpload, body: PlainUpload) -> web.StreamResponse:
        offset, size_bytes, ends = _position(request)
        if size_bytes is not None and body.size_bytes is not None and size_bytes != body.size_bytes:
            raise MalformedMessage(what="upload", reason=f"{size_bytes} bytes, where {body.size_bytes} were declared")
        async with self._alone(request, known):
            if known.outcome is not None:
                return json_answer(known.outcome)
            await to_its_end(body.require_offset, offset)
            beyond = offset + (request.content_length or 0)
            if body.size_bytes is not None and beyond > body.size_bytes:
                raise WrongOffset(offset_bytes=body.size_bytes, offered_bytes=beyond)
            await go_on(request)
            async for block in blocks(request, max_bytes=self._limits.max_upload_bytes, pace=self._pace):
                self._require_office()
                await to_its_end(body.append, block)
            at = await to_its_end(lambda: body.offset_bytes)
            if ends or at == (size_bytes if size_bytes is not None else body.size_bytes):
                return await self._end(known, dict(body.said))
        return web.Response(status=204, headers=_headers(known))

    @contextlib.asynccontextmanager
    async def _alone(self, request: web.Request, known: KeptUpload) -> AsyncIterator[None]:
        """The newest request goes on; one before it, whose sender may be long gone, is cut off."""
        lock, before = self._writers.get(known.id, (asyncio.Lock(), None))
        self._writers[known.id] = (lock, request)
        if before is not None and before.transport is not None:
            before.transport.abort()
        async with lock:
            try:
                yield
            finally:
                if self._writers[known.id][1] is request:
                    del self._writers[known.id]

    # --- the end -----------------------------------------------------------------------------------------------------

    async def publish(self, request: web.Request) -> web.StreamResponse:
        """A planned upload becomes a version: ``{"note", "author", "version", "metadata"}``, each may be missing."""
        known = await self._found(request)
        self._require_office()
        fields = await json_body(request, self._pace)
        unknown = fields.keys() - set(FIELDS)
        if unknown or not all(isinstance(text, str) for text in fields.values()):
            raise MalformedMessage(what="request body", reason=f"only text for {FIELDS} belongs there")
        async with self._place(known):
            return await self._end(known, fields)

    async def _end(self, known: KeptUpload, fields: dict[str, Any]) -> web.StreamResponse:
        async with known.ending:
            if known.outcome is None:
                self._kept.find(known.id)
                try:
                    received = await to_its_end(known.body.complete)
                    outcome = await self._published(known, fields, received)
                except _HOPELESS:
                    await to_its_end(self._kept.discard, known.id)
                    raise
                await to_its_end(self._kept.settled, known, outcome)
                return json_answer(outcome, status=200 if outcome["unchanged"] else 201)
        return json_answer(known.outcome)

    async def _published(
        self, known: KeptUpload, fields: dict[str, Any], received: list[ReceivedFile] | None
    ) -> dict[str, Any]:
        root = known.body.root if isinstance(known.body, PlainUpload) else self._kept.root
        return outcome_of(await self._api.publish(upload_of(known.body.model, root, fields, received=received)))


def _path(known: KeptUpload) -> str:
    return f"/v1/uploads/{known.id}"


def _headers(known: KeptUpload) -> dict[str, str]:
    """Of a plain upload, as the IETF's draft names them."""
    body = known.body
    if not isinstance(body, PlainUpload):
        return {}
    if known.outcome is not None:
        return {"Upload-Complete": "?1"}
    length = {"Upload-Length": str(body.size_bytes)} if body.size_bytes is not None else {}
    return {"Upload-Offset": str(body.offset_bytes), "Upload-Complete": "?0", **length}


def _position(request: web.Request) -> tuple[int, int | None, bool]:
    """(where the body begins, the size of the whole if said, whether the body's end is the upload's)."""
    if request.method == "PATCH":
        offset = _whole(request.headers.get("Upload-Offset", ""), "Upload-Offset")
        return offset, None, request.headers.get("Upload-Complete") == "?1"
    text = request.headers.get("Content-Range")
    if text is None:
        return 0, request.content_length, True
    match = _RANGE.fullmatch(text)
    if match is None:
        raise MalformedMessage(what="Content-Range", reason="it is not bytes FIRST-LAST/SIZE")
    first, last, size = match.groups()
    if request.content_length is not None and int(last) + 1 - int(first) != request.content_length:
        raise MalformedMessage(what="Content-Range", reason="it is of another size than the body")
    return int(first), None if size == "*" else int(size), False


def _whole(text: str, what: str) -> int:
    if _WHOLE.fullmatch(text) is None or int(text) > MAX_INTEGER:
        raise MalformedMessage(what=what, reason="it is not a whole number of bytes")
    return int(text)
