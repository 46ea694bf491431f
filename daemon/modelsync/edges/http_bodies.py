"""Reading request bodies with limits on size, time and pace.

This file alone decides how long a sender may take and how small JSON from outside is parsed. What the bytes mean, the
routes decide.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from modelsync.core import canonical
from modelsync.core.errors import MalformedMessage

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


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse one JSON object written by a person or a program: floats are allowed, two spellings of a key are not.

    Raises:
        MalformedMessage: not UTF-8, not an object, duplicate keys, NaN, nested too deeply, integers beyond 2^53.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_whole)
        canonical.encode(canonical.with_floats_tagged(value))
    except RecursionError as error:
        raise MalformedMessage(what=what, reason="nested too deeply") from error
    except ValueError as error:
        raise MalformedMessage(what=what, reason=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise MalformedMessage(what=what, reason="it is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a number that JSON has")


def _whole(text: str) -> int:
    if len(text) > 17:  # int() of thousands of digits is quadratic; 2^53 has 16
        raise ValueError("an integer is beyond 2^53-1")
    return int(text)
