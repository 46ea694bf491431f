"""One script, sent to a Redis over a blocking socket: the release of a lease whose holder was killed.

``lease`` can do the same. But the fleet has no primary until it is done, and importing redis-py and asyncio takes
longer than all the rest of it: 0.14 of 0.21 s of processor time. This file alone speaks Redis's protocol by hand.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from modelsync.core.election.lease import RELEASED, Authority
from modelsync.core.errors import RedisRefused, RedisUnavailable
from modelsync.core.messages import announcement

TIMEOUT_S = 2.0
"""For each exchange: longer than this, and the lease runs out as soon by itself."""
DEFAULT_PORT = 6379
_SCRIPT = Path(__file__).parent / "lua" / "release.lua"


def is_plain(url: str) -> bool:
    """Whether Redis is reached without TLS and without asking a Sentinel; others are left to ``lease``."""
    return url.startswith(("redis://", "unix://"))


def release(url: str, fleet: str, authority: Authority, password: str | None) -> None:
    """Give the lease back; harmless where it is no longer held under this grant.

    Args:
        url: a plain one, as in ``fleet.redis``.
        password: used where the URL has none.
    Raises:
        RedisUnavailable: it did not answer in time.
        RedisRefused: it did, with an error.
    """
    parts = urlsplit(url)
    text = announcement("lease.released", fleet, authority.epoch, "", node=authority.holder)
    keys = [f"modelsync:{{{fleet}}}:{name}" for name in ("lease", "events")]
    grant = [str(authority.epoch), authority.holder, authority.nonce]
    commands = [*_greeting(url, password), ["EVAL", _SCRIPT.read_text(), "2", *keys, *grant, "", RELEASED, text]]
    try:
        with _connected(parts.scheme, parts.hostname, parts.port, unquote(parts.path)) as connection:
            connection.sendall(b"".join(map(_encoded, commands)))
            replies = connection.makefile("rb")
            for _ in commands:  # of an array, the script's, the first line is enough
                _require_success(replies.readline(4096))
    except OSError as error:
        raise RedisUnavailable(operation="release", reason=f"{type(error).__name__}: {error}"[:200]) from error


def _connected(scheme: str, host: str | None, port: int | None, path: str) -> socket.socket:
    if scheme != "unix":
        return socket.create_connection((host, port or DEFAULT_PORT), TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    connection.connect(path)
    return connection


def _greeting(url: str, password: str | None) -> list[list[str]]:
    """Who we are, and which database is meant."""
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    user, _, own_password = (unquote(part) for part in credentials.partition(":"))
    secret = own_password or password
    in_path = parts.path.strip("/") if parts.scheme == "redis" else ""
    database = dict(parse_qsl(parts.query)).get("db") or in_path or "0"
    login = ["AUTH", *([user] if user else []), secret] if secret else []
    return [command for command in (login, ["SELECT", database] if database != "0" else []) if command]


def _encoded(command: Sequence[str]) -> bytes:
    parts = [part.encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _require_success(line: bytes) -> None:
    if line[:1] not in (b"+", b"*"):
        reason = line.decode(errors="replace").strip() or "the connection was closed"
        raise RedisRefused(operation="release", reason=reason[:200])
