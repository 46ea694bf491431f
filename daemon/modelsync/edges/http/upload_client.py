"""The sender's side of an upload: in one request, or planned, so that it can break off and go on.

This file alone turns an upload into requests. Whether one that broke off is tried again is ``publishing.upload``'s.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from yarl import URL

from modelsync.core.errors import MalformedMessage, ModelsyncError, SourceChanged
from modelsync.core.ids import Digest, ModelName
from modelsync.core.uploads import CHUNKS_TYPE, PLAN_TYPE, UploadPlan, encode_plan, runs_of
from modelsync.edges.http.control import MAX_ANSWER_BYTES, ControlClient, answer_of, translated
from modelsync.edges.http.json import json_object
from modelsync.edges.http.outgoing import OutgoingBody, OutgoingFile
from modelsync.edges.http.outgoing_plan import OutgoingChunks
from modelsync.edges.http.receiving import CONTENT_HEADER

MAX_QUERY_BYTES = 2000
"""Above it, what is said about an upload goes into a form: servers and proxies take request lines of about 8 KB."""
PUBLISH_ANSWER_S = 900.0
"""From the last byte sent to the answer: the primary takes the files in and fsyncs them, 100 GB on a slow disk."""
SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload at the primary that takes it."""

    url: str
    """Of the primary."""
    path: str
    missing: tuple[tuple[int, int], ...]


class _Body(Protocol):
    failure: SourceChanged | None

    @property
    def size_bytes(self) -> int: ...

    def blocks(self) -> AsyncIterator[bytes]: ...


async def put(
    control: ControlClient,
    url: str,
    name: ModelName,
    files: tuple[OutgoingFile, ...],
    *,
    whole: bool,
    said: Mapping[str, str],
    content: Digest | None,
    on_sent: Callable[[int, int], None],
) -> dict[str, Any]:
    """Upload in one request. Raises as ControlClient does; SourceChanged: a file changed while it was sent.

    Args:
        whole: the one file is the model, rather than a directory of one file.
        said: note, author, version, metadata: those that there are.
        content: what the receiver has to find that the version's content is.
        on_sent: told (sent, total) in bytes; a redirect may begin anew.
    """
    query, fields = {**said, **({"filename": files[0].name} if whole else {})}, dict[str, str]()
    if len(URL.build(query=query).raw_query_string) > MAX_QUERY_BYTES:
        query, fields, whole = {}, dict(said), False
    body = OutgoingBody(files, whole=whole, fields=fields, on_progress=on_sent)

    async def ask(target: URL) -> bytes | URL:
        target = target if target.query_string else target.with_query(query)
        more = {CONTENT_HEADER: str(content)} if content is not None else {}
        return await _sent(control, "PUT", target, body, body.content_type, more)

    return _published(await control.follow(url, f"/v1/models/{name}", ask))


async def begin(control: ControlClient, url: str, name: ModelName, plan: UploadPlan) -> OpenUpload:
    """Say what will come, and hear what is missing. A daemon of an earlier release raises PeerRefused, status 404."""
    body = _Bytes(encode_plan(plan))
    reached = URL(url)

    async def ask(target: URL) -> bytes | URL:
        nonlocal reached
        reached = target
        return await _sent(control, "POST", target, body, PLAN_TYPE)

    answer = json_object(await control.follow(url, f"/v1/models/{name}/uploads", ask), "answer to a plan")
    path = answer.get("upload")
    if not isinstance(path, str) or not path.startswith("/v1/uploads/"):
        raise MalformedMessage(what="answer to a plan", reason="it names no upload")
    base = reached.with_path(reached.path.removesuffix(f"/v1/models/{name}/uploads"))
    return OpenUpload(str(base), path, tuple(runs_of(answer.get("missing"), plan)))


async def send(control: ControlClient, upload: OpenUpload, chunks: OutgoingChunks) -> None:
    """Send the chunks that are missing. Raises as ControlClient does, SourceChanged, NoSuchUpload, LeaseLost."""
    ask = functools.partial(_sent, control, "PATCH", body=chunks, content_type=CHUNKS_TYPE)
    await control.follow(upload.url, upload.path, ask)


async def finish(control: ControlClient, upload: OpenUpload, said: Mapping[str, str]) -> dict[str, Any]:
    """Let it become a version. Raises as ControlClient does; UploadIncomplete, DigestMismatch, VersionConflict."""
    body = _Bytes(json.dumps(dict(said)).encode())
    ask = functools.partial(_sent, control, "POST", body=body, content_type="application/json")
    return _published(await control.follow(upload.url, f"{upload.path}/publish", ask))


class _Bytes:
    """A small body in memory, as one that is read from files looks."""

    failure: SourceChanged | None = None

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    async def blocks(self) -> AsyncIterator[bytes]:
        for offset in range(0, len(self._data), 1 << 20):
            yield self._data[offset : offset + (1 << 20)]


async def _sent(
    control: ControlClient,
    method: str,
    target: URL,
    body: _Body,
    content_type: str,
    more: Mapping[str, str] = MappingProxyType({}),
) -> bytes | URL:
    headers = {"Content-Type": content_type, "Content-Length": str(body.size_bytes), **more}
    try:
        with translated(target):
            async with asyncio.timeout(control.timeout_s) as limit:
                async with control.session().request(
                    method,
                    target,
                    data=_paced(body, limit, control.timeout_s),
                    headers=headers,
                    expect100=True,  # a replica redirects before a byte is sent
                    allow_redirects=False,
                ) as response:
                    return await answer_of(response, MAX_ANSWER_BYTES)
    except ModelsyncError as error:
        if body.failure is not None:
            raise body.failure from error
        raise


async def _paced(body: _Body, limit: asyncio.Timeout, timeout_s: float) -> AsyncIterator[bytes]:
    """Every block taken gives the receiver new time; after the last one it gets what a publish may need."""
    now_s = asyncio.get_running_loop().time
    async for block in body.blocks():
        limit.reschedule(now_s() + max(timeout_s, SILENCE_S))
        yield block
    limit.reschedule(now_s() + PUBLISH_ANSWER_S)


def _published(answer: bytes) -> dict[str, Any]:
    published = json_object(answer, "answer to a publish")
    if not isinstance(published.get("version"), int) or not isinstance(published.get("digest"), str):
        raise MalformedMessage(what="answer to a publish", reason="it names no version and digest")
    return published
