"""Who may do what, and the one place where errors become answers.

This file alone holds the token check, the protection against other sites' pages, and the mapping of errors to
responses. Reading needs no token: whoever reaches the port can read, which the configuration's `listen` decides.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from modelsync.core.errors import ModelsyncError
from modelsync.edges.http.answers import json_answer
from modelsync.edges.http.errors import RETRY_AFTER_S, error_document, status_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

EPOCH_HEADER = "X-Modelsync-Epoch"
"""The highest epoch its sender has seen, on every request between daemons and on every answer."""
_EPOCH = re.compile(r"[1-9][0-9]{0,14}")
_READS = ("GET", "HEAD", "OPTIONS")
_log = structlog.get_logger()


class Guard:
    """Refuses what may not be done here, before a route sees it."""

    def __init__(self, *, host: str, token: str | None) -> None:
        self._token = token.encode() if token else None
        self._loopback_names = {"localhost", socket.gethostname().lower(), host.lower()} if is_loopback(host) else None

    def check(self, request: web.Request) -> None:
        """Raises web.HTTPUnauthorized, web.HTTPForbidden, web.HTTPMisdirectedRequest."""
        self._refuse_rebound_name(request)
        if request.method not in _READS:
            _refuse_other_sites(request)
            self._require_token(request)

    def _refuse_rebound_name(self, request: web.Request) -> None:
        """A page may point its own name at 127.0.0.1; a daemon on loopback answers to loopback's names only."""
        name = (urlsplit(f"//{request.host}").hostname or "").lower().rstrip(".")
        names = self._loopback_names
        if names is None or name in names or name.endswith(".localhost") or _is_address(name):
            return
        raise web.HTTPMisdirectedRequest(text=f"this daemon listens on loopback and is not called {name[:80]!r}")

    def believed_epoch(self, request: web.Request) -> int | None:
        """The epoch that a request carries, if it comes from one of the fleet: a higher one ends this node's term."""
        text = request.headers.get(EPOCH_HEADER, "")
        return int(text) if _EPOCH.fullmatch(text) and self._has_token(request) else None

    def _has_token(self, request: web.Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        offered = given.strip().encode(errors="surrogateescape")
        return scheme.lower() == "bearer" and hmac.compare_digest(offered, self._token)

    def _require_token(self, request: web.Request) -> None:
        if not self._has_token(request):
            raise web.HTTPUnauthorized(
                text="this needs the fleet's token: --config with security.token_file, or Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _refuse_other_sites(request: web.Request) -> None:
    """Browsers send Origin with every write; programs send none. Another site's page may not drive a local daemon."""
    origin = request.headers.get("Origin")
    same = origin is None or urlsplit(origin).netloc.lower() == request.host.lower()
    if not same or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise web.HTTPForbidden(text="a page of another site may not do this")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this host alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run a handler; whatever it raises becomes a JSON answer without a traceback.

    A lost connection and a cancellation pass through: nobody is there to be answered.
    """
    try:
        return await handler(request)
    except ModelsyncError as error:
        return error_answer(error)
    except web.HTTPException as error:
        return _http_answer(error)
    except ConnectionError:
        raise
    except Exception:
        # A bug of ours, which must not end the daemon; nobody else would see it, so it is logged here.
        _log.exception("request.failed", method=request.method, path=request.path[:200])
        return json_answer(
            {"error": "InternalError", "message": "an error of modelsync itself; see this node's log", "details": {}},
            status=500,
        )


def error_answer(error: ModelsyncError) -> web.Response:
    """An error of ours as a response."""
    status = status_of(error)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return json_answer(error_document(error), status=status, headers=headers)


def _http_answer(error: web.HTTPException) -> web.Response:
    name = type(error).__name__.removeprefix("HTTP")
    kept = {key: error.headers[key] for key in ("Allow", "Retry-After", "WWW-Authenticate") if key in error.headers}
    document = {"error": name, "message": error.text or error.reason, "details": {}}
    return json_answer(document, status=error.status, headers=kept)
