"""The answers that several routes share: JSON, and the way to the primary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from yarl import URL

from modelsync.core.errors import NoPrimary
from modelsync.ports import NodeApi


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response that no cache keeps. ASCII escapes carry any text that a hostile name may hold."""
    return web.Response(
        body=json.dumps(value, allow_nan=False).encode() + b"\n",
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def to_primary(request: web.Request, api: NodeApi, fleet: str) -> web.Response:
    """307 to the same path and query on the primary: method and body stay, and the client decides to send them there.

    Raises:
        NoPrimary: none is known, or its address, which came from Redis, is no address.
    """
    try:
        base = URL(api.primary_url or "")
    except ValueError as error:
        raise NoPrimary(fleet=fleet) from error
    if base.scheme not in ("http", "https") or not base.host or base.user is not None:
        raise NoPrimary(fleet=fleet)
    location = f"{base.origin()}{base.raw_path.rstrip('/')}{request.rel_url.raw_path_qs}"
    return json_answer({"primary": str(base.origin())}, status=307, headers={"Location": location})
