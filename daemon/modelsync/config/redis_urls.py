"""Which texts may stand in ``fleet.redis``. Pure; whether something answers there is not asked here."""

from __future__ import annotations

import re
from urllib.parse import unquote

EMBEDDED = "embedded"
RIGHT = (
    "redis://HOST:6379/0, rediss://HOST:6380/0, unix:///run/redis.sock, "
    'sentinel://HOST1,HOST2,HOST3/MASTER or "embedded"'
)
_URL = re.compile(
    r"(?P<scheme>redis|rediss|unix|sentinel)://([^/?#]*@)?(?P<place>[^/@?#]*)(?P<path>/[^?#]*)?(\?(?P<query>[^#]*))?"
)
"""By hand: with an IPv6 address in a list of hosts, urlsplit raises in some Python 3.11 and not in others."""
_OPTIONS = {
    "redis": frozenset({"db", "password_file"}),
    "rediss": frozenset({"db", "password_file"}),
    "unix": frozenset({"db", "password_file"}),
    "sentinel": frozenset({"db", "password_file", "sentinel_password", "tls"}),
}
"""The same as ``edges.redis.connect`` takes."""
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_DATABASE = re.compile(r"/?|/[0-9]{1,4}")
_MASTER = re.compile(r"/[A-Za-z0-9._-]+(/[0-9]{1,4})?")
_PASSWORD = re.compile(r"(//[^/:@]*:)[^/]+(?=@)|(sentinel_password=)[^&]+")


def checked(text: object) -> str:
    """Give back a legal ``fleet.redis``. Raises ValueError with what would be right."""
    if text == EMBEDDED:
        return EMBEDDED
    match = _URL.fullmatch(str(text))
    if match is None or not _PLACES[match["scheme"]](match["place"], match["path"] or ""):
        raise ValueError(f"{RIGHT} would be right")
    for option in (match["query"] or "").split("&"):
        name, _, value = option.partition("=")
        if option and (name not in _OPTIONS[match["scheme"]] or not value):
            known = " ".join(f"{each}=…" for each in sorted(_OPTIONS[match["scheme"]]))
            raise ValueError(f"after the question mark, {known} would be right")
    return str(text)


def has_password(url: str) -> bool:
    """Whether a secret stands in the URL itself."""
    return _PASSWORD.search(url) is not None


def names_password(url: str) -> bool:
    """Whether the URL says what Redis's password is, itself or by a file."""
    return "password_file=" in url or (has_password(url) and not has_password(url.partition("?")[2]))


def asks_for_tls(url: str) -> bool:
    """Whether the connection is to be encrypted."""
    return url.startswith("rediss://") or re.search(r"[?&]tls=(1|true|yes)(&|$)", url, re.IGNORECASE) is not None


def without_password(url: str) -> str:
    """The text as it may be shown, whether it is a legal URL or not."""
    return _PASSWORD.sub(r"\1\2***", url)


def _tcp(place: str, path: str) -> bool:
    return _is_host(place) and _DATABASE.fullmatch(path) is not None


def _unix(place: str, path: str) -> bool:
    return place == "" and len(path) > 1 and "\0" not in unquote(path)


def _sentinel(place: str, path: str) -> bool:
    return all(_is_host(host) for host in place.split(",")) and _MASTER.fullmatch(path) is not None


def _is_host(text: str) -> bool:
    """``host``, ``host:port``, ``[::1]`` or ``[::1]:port``."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, "6379"
    return _HOST.fullmatch(host) is not None and port.isdecimal() and 1 <= int(port) <= 65535


_PLACES = {"redis": _tcp, "rediss": _tcp, "unix": _unix, "sentinel": _sentinel}
