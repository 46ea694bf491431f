"""Reading request bodies with limits on size, time and pace.

This file alone decides how long a sender may take. What the bytes mean, the routes decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from modelsync.core.errors import MalformedMessage
from modelsync.edges.http.json import json_object

MAX_JSON_BYTES = 64 << 10
"""A command is 4 KiB at most; a promise far less."""
BLOCK_BYTES = 1 << 20
"""Handed to a thread at a time: large enough that the hop costs nothing, small enough to hold for each upload."""
GRACE_S = 60.0
"""Before a sender's average pace is judged: time for a slow disk or a congested start."""


@dataclass(frozen=True, slots=True)
class BodyPace:
    """How slow a body may be: the silence between two reads, and the average after the first minute."""

    silence_s: float = 30.0
    min_bytes_per_s: int = 4096


async def blocks(request: web.Request, *, max_bytes: int | None, pace: BodyPace) -> AsyncIterator[bytes]:
    """The body in blocks of about 1 MiB, never more than two of them in memory.

    Raises:
        web.HTTPRequestEntityTooLarge, web.HTTPRequestTimeout: past a limit.
        ConnectionError: the sender left.
    """
    received, started_s = 0, asyncio.get_running_loop().time()
    block = bytearray()
    while data := await _some(request, pace.silence_s):
        received += len(data)
        if max_bytes is not None and received > max_bytes:
            raise too_large(max_bytes, received)
        elapsed_s = asyncio.get_running_loop().time() - started_s
        if elapsed_s > GRACE_S and received < pace.min_bytes_per_s * elapsed_s:
            raise web.HTTPRequestTimeout(text=f"slower than {pace.min_bytes_per_s} bytes a second")
        block += data
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def too_large(max_bytes: int, actual_bytes: int) -> web.HTTPRequestEntityTooLarge:
    """The refusal of a body above a limit."""
    return web.HTTPRequestEntityTooLarge(
        max_size=max_bytes, actual_size=actual_bytes, text=f"at most {max_bytes} bytes are taken"
    )


async def _some(request: web.Request, silence_s: float) -> bytes:
    try:
        async with asyncio.timeout(silence_s):
            return await request.content.readany()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"nothing came for {silence_s:g} s") from error
    except web.RequestPayloadError as error:
        raise MalformedMessage(what="request body", reason=str(error)[:200]) from error


async def json_body(request: web.Request, pace: BodyPace) -> dict[str, Any]:
    """The body as one JSON object; an empty body is an empty object. Raises MalformedMessage and as ``blocks``."""
    if request.content_length is not None and request.content_length > MAX_JSON_BYTES:
        raise too_large(MAX_JSON_BYTES, request.content_length)
    data = b"".join([block async for block in blocks(request, max_bytes=MAX_JSON_BYTES, pace=pace)])
    return json_object(data, "request body") if data.strip() else {}
