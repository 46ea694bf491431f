"""Which texts may stand in ``node.listen`` and ``node.advertise``. Pure; nothing is resolved here."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from modelsync.config.schema import Address

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def listen_address(text: object) -> Address:
    """Parse ``HOST:PORT`` or ``[IPv6]:PORT``. Raises ValueError with what would be right."""
    host, colon, port = str(text).rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if colon and _PORT.fullmatch(port) and int(port) <= 65535 and _is_host(bare, bracketed=bare != host):
        return Address(bare, int(port))
    raise ValueError("HOST:PORT, such as 0.0.0.0:8461 or [::]:8461, would be right")


def advertised_url(text: object) -> str:
    """Parse ``http://HOST:PORT`` (or ``HOST:PORT``) into a URL. Raises ValueError with what would be right."""
    right = "the URL under which other hosts reach this one, such as http://gpu-01:8461, would be right"
    given = str(text)
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        address = listen_address(parts.netloc)
    except ValueError:
        raise ValueError(right) from None
    if parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(right)
    if is_wildcard(address.host):
        raise ValueError(f"no other host can reach {address.host}; {right}")
    return f"{parts.scheme}://{address}"


def derived_url(listen: Address, hostname: str) -> str:
    """The URL for others: the listening address, or this host's name where that is "every address".

    Raises:
        ValueError: the host's name cannot stand in a URL.
    """
    if not is_wildcard(listen.host):
        return f"http://{listen}"
    if not _is_host(hostname, bracketed=False):
        raise ValueError(f"the host's name, {hostname!r}, cannot stand in a URL; set node.advertise")
    return f"http://{Address(hostname, listen.port)}"


def url_for_others(url: str, advertise: str) -> str:
    """A URL of this host as another one may use it: for "every address", which would lead that one to itself, the
    advertised host."""
    parts, own = urlsplit(url), urlsplit(advertise).hostname or ""
    if parts.hostname is None or not is_wildcard(parts.hostname):
        return url
    user, at, _ = parts.netloc.rpartition("@")
    name = f"[{own}]" if ":" in own else own
    return parts._replace(netloc=f"{user}{at}{name}:{parts.port}").geturl()


def store_url(value: object) -> str:
    """An object store's URL, without a slash at its end; empty for none.

    Raises:
        ValueError: another scheme, no bucket, a path that is not absolute, or a secret in it.
    """
    text = str(value)
    if not text:
        return ""
    parts = urlsplit(text)
    right = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///PATH would be right"
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("credentials and options belong in storage.credentials_file or the environment")
    local = parts.scheme == "file" and not parts.netloc and len(parts.path) > 1 and ".." not in parts.path.split("/")
    if not local and not (parts.scheme in ("s3", "gs", "az") and parts.netloc):
        raise ValueError(right)
    return text.rstrip("/")


def is_wildcard(host: str) -> bool:
    """Whether this listens on every address."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_host(host: str, *, bracketed: bool) -> bool:
    try:
        return (ipaddress.ip_address(host).version == 6) == bracketed
    except ValueError:
        return not bracketed and _HOST.fullmatch(host) is not None and not host.replace(".", "").isdigit()
