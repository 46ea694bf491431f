"""Uploading to the primary and waiting until enough hosts hold it: what `modelsync publish` and ``publish()`` share.

This file alone decides how an upload that broke off goes on: the primary is looked for again, is asked what it misses,
and gets that. What it holds already, of this upload or of any version, is never sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from modelsync.access import Access
from modelsync.core import status
from modelsync.core.errors import (
    AuthorityLost,
    ModelsyncError,
    NoSuchUpload,
    PeerRefused,
    RemoteFault,
    TimedOut,
    UploadIncomplete,
)
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import content_bytes
from modelsync.core.uploads import UploadPlan

if TYPE_CHECKING:
    from modelsync.edges.http.control import ControlClient
    from modelsync.edges.http.outgoing import OutgoingFile
    from modelsync.edges.http.upload_client import OpenUpload

POLL_S = 0.05
SMALL_BYTES = 4 << 20
"""Up to this a model goes in one request: sending it again costs less than asking first what is missing."""
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
"""Pauses before a broken upload is tried again; the last one repeats. A new primary takes about three seconds."""
PATIENCE_S = 60.0
"""Without a byte that arrived, before an upload is given up here; it can be gone on with for a day."""
OLD_RELEASE = (404, 405)

Told = Callable[[int, int], None]
"""(bytes that the primary has, bytes in all)."""
Say = Callable[[str], None]


@dataclass
class _Sending:
    """One publish from beginning to end, over however many connections."""

    fleet: Access
    model: ModelName
    files: tuple[OutgoingFile, ...]
    plan: UploadPlan
    said: Mapping[str, str]
    told: Told
    say: Say
    there_bytes: int = 0
    moved_s: float = field(default_factory=time.monotonic)
    at: str = ""
    """The primary that was last reached."""

    async def run(self) -> dict[str, Any]:
        attempt, most_bytes = 0, 0
        while True:
            try:
                return await self.fleet.ask(self._once)
            except (RemoteFault, AuthorityLost, NoSuchUpload, UploadIncomplete) as error:
                if not self.at or (isinstance(error, PeerRefused) and error.status < 500):
                    raise
                if self.there_bytes > most_bytes:
                    attempt, most_bytes, self.moved_s = 0, self.there_bytes, time.monotonic()
                if time.monotonic() - self.moved_s > PATIENCE_S:
                    raise
                pause_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                attempt += 1
                self.say(f"the upload to {self.at} broke off ({_short(error)}); it goes on in {pause_s:g} s")
                await asyncio.sleep(pause_s)

    async def _once(self, control: ControlClient, url: str) -> dict[str, Any]:
        from modelsync.edges.http import upload_client  # noqa: PLC0415  imports aiohttp
        from modelsync.edges.http.outgoing_plan import OutgoingChunks  # noqa: PLC0415

        opened = await upload_client.begin(control, url, self.model, self.plan)
        self._reached(opened)
        if opened.missing:
            await upload_client.send(control, opened, OutgoingChunks(self.files, self.plan, opened.missing, self._sent))
        return await upload_client.finish(control, opened, self.said)

    def _reached(self, opened: OpenUpload) -> None:
        missing_bytes = self.plan.bytes_of(opened.missing)
        if self.at not in ("", opened.url):
            self.say(f"the primary is {opened.url} now: {missing_bytes} of {self.plan.size_bytes} bytes go to it")
        self.at = opened.url
        self.there_bytes = self.plan.size_bytes - missing_bytes
        self.told(self.there_bytes, self.plan.size_bytes)

    def _sent(self, size_bytes: int) -> None:
        self.there_bytes += size_bytes
        self.told(self.there_bytes, self.plan.size_bytes)


def _short(error: ModelsyncError) -> str:
    return str(getattr(error, "reason", "") or error)[:200]


async def upload(
    fleet: Access,
    model: ModelName,
    path: Path,
    *,
    version: Version | None,
    note: str,
    author: str,
    metadata: Mapping[str, Any] | None,
    progress: Told | None = None,
    on_read: Told = lambda done, total: None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Send a file or a directory to whichever daemon is primary, as often as it takes.

    Args:
        progress: called with (bytes that arrived, bytes in all); fewer than before after a change of primary.
        on_read: called with (bytes read, bytes in all) before, while digests are made.
        say: told, as a sentence, why an upload was interrupted.
    Returns:
        ``{"model", "version", "digest", "id", "unchanged"}``.
    Raises:
        NotAModel, BadName: there is nothing to publish at that path.
        SourceChanged: a file changed while it was sent.
        What a daemon refused it for; RemoteFault when nobody was reached, or for too long.
    """
    from modelsync.edges.http.outgoing import files_of  # noqa: PLC0415  as its user below
    from modelsync.edges.http.outgoing_plan import planned  # noqa: PLC0415

    told = progress or (lambda done, total: None)
    files = await asyncio.to_thread(files_of, path)
    plan = await asyncio.to_thread(planned, files, _counted(files, on_read))
    said = {"note": note, "author": author, "version": str(version or "")}
    said["metadata"] = json.dumps(dict(metadata), allow_nan=False) if metadata else ""
    said = {key: text for key, text in said.items() if text}
    if plan.size_bytes > SMALL_BYTES:
        try:
            return await _Sending(fleet, model, files, plan, said, told, say).run()
        except PeerRefused as error:
            if error.status not in OLD_RELEASE:
                raise
    whole = not await asyncio.to_thread(path.is_dir)
    return await _in_one(fleet, model, files, plan, whole, said, told)


def _counted(files: tuple[OutgoingFile, ...], told: Told) -> Callable[[int], None]:
    total, done = sum(file.size_bytes for file in files), 0

    def read(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        told(done, total)

    return read


async def _in_one(
    fleet: Access,
    model: ModelName,
    files: tuple[OutgoingFile, ...],
    plan: UploadPlan,
    whole: bool,
    said: Mapping[str, str],
    told: Told,
) -> dict[str, Any]:
    from modelsync.edges.http import upload_client  # noqa: PLC0415  imports aiohttp

    entries = [plan.entry_of(number) for number in range(len(plan.files))]
    content = Digest(blake3(content_bytes(entries)).digest())

    async def send(control: ControlClient, url: str) -> dict[str, Any]:
        return await upload_client.put(
            control, url, model, files, whole=whole, said=said, content=content, on_sent=told
        )

    return await fleet.ask(send)


@dataclass(frozen=True, slots=True)
class Waiting:
    """How far the fleet is with a version that was published."""

    held: int
    wanted: int
    transfers: Mapping[str, Mapping[str, Any]]
    """A report's line, by the node that pulls."""


async def await_copies(
    fleet: Access,
    published: Mapping[str, Any],
    wanted: int | None,
    timeout_s: float,
    waiting: Callable[[Waiting], None] = lambda line: None,
) -> dict[str, Any]:
    """The publish's answer with ``copies``: how many living nodes hold the version, once that is enough.

    Args:
        wanted: None: ``status.copies_to_wait_for``.
        waiting: told how far it is, each time it is not there yet.
    Raises:
        TimedOut: which says what was reached; the version is published all the same.
    """
    model, number, at = published["model"], published["version"], EntryId.parse(published["id"])
    deadline_s = time.monotonic() + timeout_s
    while True:
        document = await fleet.status()
        held = status.copies(document, model, number, at)
        enough = status.copies_to_wait_for(document, model) if wanted is None else wanted
        if held >= enough:
            return {**published, "copies": held}
        waiting(Waiting(held, enough, _pulls_of(document, model)))
        if time.monotonic() > deadline_s:
            raise TimedOut(
                what=f"{model} version {number} is published; waiting for copies",
                reached=f"{held} of {enough} nodes hold it after {timeout_s:g} s",
            )
        await asyncio.sleep(POLL_S)


def _pulls_of(document: Mapping[str, Any], model: str) -> dict[str, Mapping[str, Any]]:
    lines = ((node["id"], node.get("transfers", {}).get(model)) for node in document["nodes"])
    return {
        node: line for node, line in lines if isinstance(line, dict) and {"done_bytes", "total_bytes"} <= line.keys()
    }
