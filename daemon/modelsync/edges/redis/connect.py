"""Clients of Redis: the URL forms that the configuration takes, one time limit, no hidden retries, Sentinel followed.

This file alone knows how a connection is made; what redis-py's exceptions mean, ``faults`` does. Retries belong to
runtime: redis-py's own (3, with back-off) would make one lost packet longer than a lease.

Sentinel is asked directly rather than through redis-py's pool. That pool believes the first sentinel that answers,
which after a partition may be the one that missed the failover, and it never asks again while an old master keeps the
TCP connection open. Here every sentinel is asked and the highest configuration epoch wins, on each new connection and
every ``RECHECK_S`` on one in use; a node that says it is no master is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import exceptions as faults
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from modelsync.core.errors import ConfigurationFault
from modelsync.edges.redis.faults import reason_of

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
RECHECK_S = 5.0
"""How long a connection through Sentinel is trusted to lead to the master: half of Sentinel's own INFO period."""
MAX_PASSWORD_BYTES = 4096

_QUERY = {
    "redis": frozenset({"db", "password_file"}),
    "rediss": frozenset({"db", "password_file"}),
    "unix": frozenset({"db", "password_file"}),
    "sentinel": frozenset({"db", "password_file", "sentinel_password", "tls"}),
}


def connect(
    url: str,
    *,
    timeout_s: float = 2.0,
    password: str | None = None,
    tls_ca_file: str | None = None,
) -> Redis:
    """A client that fails within ``timeout_s`` an operation, never retries by itself, and answers in bytes.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` (TLS), ``unix://[user:password@]/path[?db=0]``
            or ``sentinel://[user:password@]h1[:port],h2,h3/master[/db]``, the last with ``?tls=true`` and
            ``sentinel_password=…``. All take ``password_file=/path``, read again for each connection, so that a
            rotated password needs no restart.
        password: used where the URL has none.
        tls_ca_file: PEM file of the authorities that are trusted instead of the system's.
    Raises:
        ConfigurationFault: the URL cannot be used; nothing was connected. Nothing is connected before the first
            command in any case.
    """
    address = _parsed(url, password, tls_ca_file)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # HELLO 3 would cost every new connection a round trip, for replies that are parsed alike
        "decode_responses": False,
        "db": address.db,
        **_secrets(address),
    }
    if address.tls:
        options |= {"ssl_ca_certs": tls_ca_file, "ssl_check_hostname": True}
    if address.scheme == "sentinel":
        kind: type[Any] = _MasterTlsConnection if address.tls else _MasterConnection
        options["master"] = _Master(address, timeout_s, tls_ca_file)
        options["redis_connect_func"] = _greet_master
    elif address.scheme == "unix":
        kind = UnixDomainSocketConnection
        options["path"] = address.path
    else:
        kind = SSLConnection if address.tls else Connection
        options["host"], options["port"] = address.hosts[0]
    return Redis.from_pool(ConnectionPool(connection_class=kind, **options))


# --- the URL --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Address:
    scheme: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    master: str
    db: int
    username: str | None
    password: str | None = field(repr=False)
    password_file: str | None
    sentinel_password: str | None = field(repr=False)
    tls: bool


def _parsed(url: str, password: str | None, tls_ca_file: str | None) -> _Address:
    try:
        address = _split(url, password)
    except ValueError as error:
        raise _unusable(str(error)) from error
    if tls_ca_file is not None and not address.tls:
        raise _unusable("a CA file is given but the URL does not ask for TLS: use rediss:// or sentinel://…?tls=true")
    return address


def _split(url: str, password: str | None) -> _Address:
    parts = urlsplit(url)
    if parts.scheme not in _QUERY:
        raise ValueError("must begin with redis:// rediss:// unix:// or sentinel://")
    query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    if unknown := sorted(set(query) - _QUERY[parts.scheme]):
        raise ValueError(f"unknown option {', '.join(unknown)}")
    credentials, _, location = parts.netloc.rpartition("@")
    username, _, url_password = credentials.partition(":")
    path = [unquote(part) for part in parts.path.split("/")[1:]] if parts.scheme != "unix" else []
    master = path.pop(0) if parts.scheme == "sentinel" and path else ""
    if parts.scheme == "sentinel" and not master:
        raise ValueError("sentinel:// needs the master's name: sentinel://h1,h2,h3/NAME")
    return _Address(
        scheme=parts.scheme,
        hosts=() if parts.scheme == "unix" else _hosts(parts.scheme, location),
        path=unquote(parts.path),
        master=master,
        db=_db(query.get("db", path[0] if path else "")),
        username=unquote(username) or None,
        password=unquote(url_password) or password,
        password_file=query.get("password_file"),
        sentinel_password=query.get("sentinel_password"),
        tls=parts.scheme == "rediss" or query.get("tls", "").lower() in ("1", "true", "yes"),
    )


def _hosts(scheme: str, location: str) -> tuple[tuple[str, int], ...]:
    if scheme != "sentinel":
        return (_host(location, DEFAULT_PORT),)
    return tuple(_host(one, SENTINEL_PORT) for one in location.split(","))


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or default_port


def _db(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise ValueError(f"{text!r} is not the number of a database")
    return int(text or 0)


def _unusable(what: str) -> ConfigurationFault:
    return ConfigurationFault(source="the Redis URL", faults=(f"fleet.redis: {what}",))


# --- credentials ----------------------------------------------------------------------------------------------------


def _secrets(address: _Address) -> dict[str, Any]:
    if address.password_file is not None:
        return {"credential_provider": _PasswordFile(address.password_file, address.username)}
    return {"username": address.username, "password": address.password}


class _PasswordFile(CredentialProvider):
    """The first line of a file, read again for every connection."""

    def __init__(self, path: str, username: str | None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            with open(self._path, "rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & stat.S_IROTH:
                    raise faults.AuthenticationError(f"{self._path} may be read by everyone: chmod o-r it")
                password = file.read(MAX_PASSWORD_BYTES).split(b"\n")[0].decode()
        except (OSError, UnicodeDecodeError) as error:
            raise faults.AuthenticationError(f"password file {self._path}: {error}") from error
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()  # one short local file; a thread would cost more than it


# --- Sentinel -------------------------------------------------------------------------------------------------------


class _Master:
    """Where the master is, by the sentinel that has seen the latest failover."""

    def __init__(self, address: _Address, timeout_s: float, tls_ca_file: str | None) -> None:
        scheme = "rediss" if address.tls else "redis"
        self._name = address.master
        self._sentinels = [
            connect(
                f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",
                timeout_s=timeout_s,
                password=address.sentinel_password,
                tls_ca_file=tls_ca_file,
            )
            for host, port in address.hosts
        ]

    async def find(self) -> tuple[str, int]:
        """Ask every sentinel at once. Raises redis-py's ConnectionError where none knows a master."""
        answers = await asyncio.gather(*(self._ask(sentinel) for sentinel in self._sentinels), return_exceptions=True)
        known = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not known:
            said = "; ".join(
                dict.fromkeys(reason_of(answer) for answer in answers if isinstance(answer, BaseException))
            )
            raise faults.ConnectionError(f"no sentinel knows a master {self._name!r}: {said}")
        _, host, port = max(known)
        return host, port

    async def _ask(self, sentinel: Redis) -> tuple[int, str, int]:
        try:
            state: Any = await sentinel.sentinel_master(self._name)
            return int(state["config-epoch"]), str(state["ip"]), int(state["port"])
        except (KeyError, TypeError, ValueError) as error:
            raise faults.InvalidResponse(f"sentinel: {error!r}") from error
        finally:
            # A sentinel is asked every few seconds at most: an open connection would only be one more that breaks.
            with contextlib.suppress(faults.RedisError, OSError):
                await sentinel.connection_pool.disconnect()


class _FollowsMaster(Connection):
    """A connection that goes where Sentinel points, and that stops trusting a node which is no master."""

    def __init__(self, *, master: _Master, **options: Any) -> None:
        self._master = master
        self._found_s = 0.0
        super().__init__(**options)

    async def connect(self) -> None:
        """Called by the pool before every use."""
        if self.is_connected and time.monotonic() - self._found_s > RECHECK_S:
            await self._leave_if_switched()
        await super().connect()  # type: ignore[no-untyped-call]

    async def _connect(self) -> None:
        self.host, self.port = await self._master.find()
        self._found_s = time.monotonic()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def _leave_if_switched(self) -> None:
        with contextlib.suppress(faults.RedisError, OSError):  # no sentinel answers: what we have is still the best
            if await self._master.find() != (self.host, self.port):
                await self.disconnect()
        self._found_s = time.monotonic()

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except faults.ResponseError as error:
            # Scripts of Redis 6.2 wrap the word in a sentence of their own, so the class is not enough.
            if isinstance(error, faults.ReadOnlyError) or "READONLY" in str(error):
                await self.disconnect(nowait=True)
                raise faults.ConnectionError("this Redis is a replica now; asking Sentinel again") from error
            raise


class _MasterConnection(_FollowsMaster):
    pass


class _MasterTlsConnection(_FollowsMaster, SSLConnection):
    pass


async def _greet_master(connection: Connection) -> None:
    """Log in as usual, then make sure that it is a master: Sentinel may not know yet."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    role = await connection.read_response()
    if not isinstance(role, list) or not role or role[0] not in (b"master", "master"):
        raise faults.ConnectionError(f"{connection.host}:{connection.port} is not a master")
