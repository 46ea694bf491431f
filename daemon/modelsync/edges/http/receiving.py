"""What every way to upload shares: when the body is asked for, what is said about it, how its publish is answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import Digest, ModelName, version
from modelsync.core.manifest import MAX_TEXT_BYTES
from modelsync.edges.http.json import json_object
from modelsync.ports import Published, ReceivedFile, Upload

T = TypeVar("T")

FIELDS = ("note", "author", "version", "metadata")
"""What may be said about an upload, in a query, a form or JSON."""


CONTENT_HEADER = "X-Modelsync-Content"
"""What the sender says that the version's ``content`` is, for an upload in one request: of all its files at once."""


async def to_its_end(function: Callable[..., T], *args: Any) -> T:
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


async def expect_nothing_yet(request: web.Request) -> None:
    """Leave ``Expect`` to the handler; any other expectation than 100-continue ends here."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="the only expectation that is met is 100-continue")


async def go_on(request: web.Request) -> None:
    """Ask for the body, now that nothing speaks against it."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        # As aiohttp's own handler does it; output_size tells whether the response itself has begun.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def require_plain(request: web.Request, known: Sequence[str]) -> None:
    """Raises MalformedMessage for an unknown query parameter, HTTPUnsupportedMediaType for an encoded body."""
    unknown = request.query.keys() - set(known)
    if unknown:
        raise MalformedMessage(what="upload", reason=f"unknown query parameters {sorted(unknown)}")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(text="bodies are taken as they are, without Content-Encoding")


def too_many(running: int) -> web.HTTPServiceUnavailable:
    text = f"{running} uploads arrive already, and no more are taken at once; try again in a moment"
    return web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "5"})


def upload_of(
    name: ModelName,
    root: Path,
    fields: Mapping[str, str],
    *,
    received: Sequence[ReceivedFile] | None = None,
    content: str | None = None,
) -> Upload:
    """An upload with what was said of it. Raises MalformedMessage, BadName."""
    return Upload(
        model=name,
        root=root,
        note=_short(fields, "note"),
        author=_short(fields, "author"),
        version=version(fields["version"]) if fields.get("version") else None,
        metadata=json_object(fields["metadata"].encode(), "metadata") if fields.get("metadata") else None,
        content=Digest.parse(content) if content is not None else None,
        received=received,
    )


def _short(fields: Mapping[str, str], key: str) -> str:
    text = fields.get(key, "")
    if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
        raise MalformedMessage(what="upload", reason=f"{key} is longer than {MAX_TEXT_BYTES} bytes")
    return text


def outcome_of(published: Published) -> dict[str, Any]:
    """INTERFACE: what a publish answers."""
    return {
        "model": published.model,
        "version": published.version,
        "digest": str(published.digest),
        "id": str(published.id),
        "unchanged": published.unchanged,
    }
