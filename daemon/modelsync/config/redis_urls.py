"""Which texts may stand in ``fleet.redis``. Pure; whether something answers there is not asked here."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

EMBEDDED = "embedded"
RIGHT = (
    "redis://HOST:6379/0, rediss://HOST:6380/0, unix:///run/redis.sock, "
    'sentinel://HOST1,HOST2,HOST3/MASTER or "embedded"'
)
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_MASTER = re.compile(r"/[A-Za-z0-9._-]+")
_PASSWORD = re.compile(r"(//[^/:@]*:)[^/]+@")
_DATABASE = re.compile(r"/?|/[0-9]{1,4}")


def checked(text: object) -> str:
    """Give back a legal ``fleet.redis``. Raises ValueError with what would be right."""
    if text == EMBEDDED:
        return EMBEDDED
    try:
        parts = urlsplit(str(text))
    except ValueError:
        raise ValueError(f"{RIGHT} would be right") from None
    check = {"redis": _tcp, "rediss": _tcp, "unix": _unix, "sentinel": _sentinel}.get(parts.scheme)
    if check is None or parts.query or parts.fragment or not check(parts):
        raise ValueError(f"{RIGHT} would be right")
    return str(text)


def has_password(url: str) -> bool:
    """Whether a secret stands in the URL itself."""
    return _PASSWORD.search(url) is not None


def without_password(url: str) -> str:
    """The text as it may be shown, whether it is a legal URL or not."""
    return _PASSWORD.sub(r"\1***@", url)


def _tcp(parts: SplitResult) -> bool:
    return _is_host(parts.netloc.rpartition("@")[2]) and _DATABASE.fullmatch(parts.path) is not None


def _unix(parts: SplitResult) -> bool:
    no_host = parts.netloc.rpartition("@")[2] == ""
    return no_host and len(unquote(parts.path)) > 1 and "\0" not in unquote(parts.path)


def _sentinel(parts: SplitResult) -> bool:
    hosts = parts.netloc.rpartition("@")[2].split(",")
    return all(_is_host(host) for host in hosts) and _MASTER.fullmatch(parts.path) is not None


def _is_host(text: str) -> bool:
    """``host``, ``host:port``, ``[::1]`` or ``[::1]:port``."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, "6379"
    return _HOST.fullmatch(host) is not None and port.isdecimal() and 1 <= int(port) <= 65535
