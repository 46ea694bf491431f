"""What became of a model that was put into the models directory: found in the catalog by its content.

The primary gives the number, and nothing tells the publisher but the catalog. So this asks for the history until a
version stands there whose manifest has exactly the content that was placed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from blake3 import blake3

from modelsync.access import Access
from modelsync.core import manifest as manifests
from modelsync.core.errors import MalformedMessage, NoSuchVersion, TimedOut
from modelsync.core.ids import Digest, ModelName, Version

POLL_S = 0.05


async def head_of(fleet: Access, model: ModelName) -> int:
    """The newest version before the publish; 0 for a model that is new."""
    try:
        return int((await fleet.model(model))["head"] or 0)
    except NoSuchVersion:
        return 0


async def await_version(
    fleet: Access, model: ModelName, content: Digest, before: int, timeout_s: float
) -> dict[str, Any]:
    """The version that the placed files became, as a publish answers: model, version, digest, id, unchanged.

    Args:
        before: the head before they were placed: it counts if its content is theirs, and nothing below it does.
    Raises:
        TimedOut: with the reason where the primary refused them.
    """
    deadline_s = time.monotonic() + timeout_s
    others: set[str] = set()
    while time.monotonic() < deadline_s:
        for line in await _history(fleet, model):
            if line["version"] < before or line["digest"] in others:
                continue
            found = await _content(fleet, model, line)
            if found == content:
                answer = {"model": model, "version": line["version"], "digest": line["digest"], "id": line["id"]}
                return {**answer, "unchanged": line["version"] == before}
            if found is not None:
                others.add(line["digest"])
        await asyncio.sleep(POLL_S)
    raise TimedOut(
        what=f"{model} lies in the models directory; waiting for the primary to publish it",
        reached=await _why_not(fleet, model) or f"nothing was published from there after {timeout_s:g} s",
    )


async def _history(fleet: Access, model: ModelName) -> list[dict[str, Any]]:
    try:
        history: list[dict[str, Any]] = (await fleet.model(model))["history"]
    except NoSuchVersion:
        return []
    return history


async def _content(fleet: Access, model: ModelName, line: dict[str, Any]) -> Digest | None:
    """A version's content; None while the node that is asked does not hold it."""
    try:
        data = await fleet.manifest(model, Version(line["version"]))
    except NoSuchVersion:
        return None
    if str(Digest(blake3(data).digest())) != line["digest"]:
        raise MalformedMessage(what="manifest", reason=f"its digest is not {line['digest']}")
    return manifests.decode(data).content


async def _why_not(fleet: Access, model: ModelName) -> str:
    """What the nodes say of the model's entry in their models directories."""
    document = await fleet.status()
    reasons = [
        f"{path}: {reason}"
        for node in document["nodes"]
        for path, reason in (node.get("refusals") or {}).items()
        if path.partition("/")[0] == model
    ]
    return "; ".join(reasons[:3])
