"""Uploading to the primary and waiting until enough hosts hold it: what `modelsync publish` and ``publish()`` share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelsync.access import Access
from modelsync.core import status
from modelsync.core.errors import TimedOut
from modelsync.core.ids import EntryId, ModelName, Version

if TYPE_CHECKING:
    from modelsync.edges.http.control import ControlClient

POLL_S = 0.05


async def upload(
    fleet: Access,
    model: ModelName,
    path: Path,
    *,
    version: Version | None,
    note: str,
    author: str,
    metadata: Mapping[str, Any] | None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Send a file or a directory to whichever daemon is primary; its answer. Raises what ControlClient.publish does."""

    async def send(control: ControlClient, url: str) -> dict[str, Any]:
        return await control.publish(
            url, model, path, note=note, author=author, version=version, metadata=metadata, progress=progress
        )

    return await fleet.ask(send)


async def await_copies(
    fleet: Access, published: Mapping[str, Any], wanted: int | None, timeout_s: float
) -> dict[str, Any]:
    """The publish's answer with ``copies``: how many living nodes hold the version, once that is enough.

    Args:
        wanted: None: two, or one in a fleet of one.
    Raises:
        TimedOut: which says what was reached; the version is published all the same.
    """
    model, number, at = published["model"], published["version"], EntryId.parse(published["id"])
    deadline_s = time.monotonic() + timeout_s
    while True:
        document = await fleet.status()
        living = sum(node["state"] != "lost" for node in document["nodes"])
        held = status.copies(document, model, number, at)
        if held >= (min(2, living) if wanted is None else wanted):
            return {**published, "copies": held}
        if time.monotonic() > deadline_s:
            raise TimedOut(
                what=f"{model} version {number} is published; waiting for copies",
                reached=f"{held} of {wanted or 2} nodes hold it after {timeout_s:g} s",
            )
        await asyncio.sleep(POLL_S)
