"""How a command, or a program that publishes, reaches a fleet: through the daemon of this host or one that is named, or
through Redis and whichever daemon answers.

Reading works with Redis alone; whatever changes something is asked of a daemon, which passes it on to the primary.
aiohttp and redis-py take a tenth of a second each to import, so each is imported by the first call that needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modelsync import config as configuration
from modelsync.config import Config, SecuritySection
from modelsync.core import fleet as fleets
from modelsync.core import status
from modelsync.core.errors import (
    ConfigurationFault,
    ModelsyncError,
    NoPrimary,
    NoSuchFleet,
    PeerBrokeOff,
    PeerUnavailable,
    RemoteFault,
)
from modelsync.core.ids import FleetName, ModelName, NodeId, Version, fleet_name
from modelsync.core.storage import shown

if TYPE_CHECKING:
    from modelsync.edges.http.control import ControlClient
    from modelsync.edges.redis.catalog import RedisCatalog
    from modelsync.edges.redis.lease import RedisLease

Answer = TypeVar("Answer")

REDIS_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """What the options of the command line, or the arguments of a call, named; the first of these that is given."""

    config_file: str
    redis: str | None
    fleet: str
    url: str | None = None
    """A daemon to ask, without a configuration file or Redis."""
    token: str | None = None
    """The fleet's token, where no configuration file says it."""

    def config(self) -> Config:
        """This host's configuration. Raises ConfigurationFault."""
        try:
            return configuration.load(Path(self.config_file))
        except ConfigurationFault as fault:
            hint = next((text for kind, text in _HINTS.items() if isinstance(fault.__cause__, kind)), None)
            if hint is None:
                raise
            raise ConfigurationFault(fault.source, (*fault.faults, hint)) from fault


_HINTS: dict[type[OSError], str] = {
    FileNotFoundError: "--config or MODELSYNC_CONFIG names another; a fleet that is named by its Redis and its name "
    "(--redis URL --fleet NAME) needs none",
    PermissionError: "it and the secrets that it names are for root and the daemon",
}


def login_name() -> str:
    """Who asks, for the history; the number of a user that has no name here, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.geteuid()}"


class Access:
    """One fleet, for one command.

    Args:
        stack: closes what is opened here.
        token, timeout_s: for the client of daemons, which is made when it is first needed.
    """

    def __init__(
        self,
        stack: contextlib.AsyncExitStack,
        token: str | None,
        timeout_s: float,
        local_url: str | None,
        redis_url: str | None,
        fleet: FleetName,
        security: SecuritySection,
    ) -> None:
        self._security = security
        self._stack = stack
        self._token = token
        self._timeout_s = timeout_s
        self._client: ControlClient | None = None
        self._local_url = local_url
        self._redis_url = redis_url
        self._fleet = fleet

    async def _control(self) -> ControlClient:
        if self._client is None:
            from modelsync.edges.http.control import ControlClient  # noqa: PLC0415  imports aiohttp

            self._client = await self._stack.enter_async_context(ControlClient(self._token, self._timeout_s))
        return self._client

    async def status(self) -> dict[str, Any]:
        """The status document: from a daemon, and where none answers, from what Redis has."""
        if self._local_url is not None:
            try:
                return await (await self._control()).status(self._local_url)
            except RemoteFault:
                if self._redis_url is None:
                    raise
        return await self._status_from_redis()

    async def _status_from_redis(self) -> dict[str, Any]:
        async with self._catalog() as catalog, self._lease() as lease:
            view = await lease.read()
            read = await catalog.read(await catalog.model_names())
            nodes = await catalog.nodes()
            if not (view.epoch or nodes or read.records):
                raise NoSuchFleet(fleet=self._fleet)
            document = status.document(
                fleet=self._fleet,
                epoch=view.epoch,
                primary=view.holder if view.state == "held" else "",
                redis="ok",
                nodes=nodes,
                models=read.records,
            )
            return {**document, **fleets.shown(read.fleet), **shown.document(read.records, nodes, {})}

    def _connect(self) -> Any:
        from modelsync.redis_client import redis_client  # noqa: PLC0415  imports redis-py

        assert self._redis_url is not None
        return redis_client(self._redis_url, self._security, REDIS_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def _catalog(self) -> AsyncIterator[RedisCatalog]:
        from modelsync.edges.redis.catalog import RedisCatalog  # noqa: PLC0415  imports redis-py

        catalog = RedisCatalog(self._connect(), self._fleet)
        try:
            yield catalog
        finally:
            await catalog.close()

    @contextlib.asynccontextmanager
    async def _lease(self) -> AsyncIterator[RedisLease]:
        from modelsync.edges.redis.lease import RedisLease  # noqa: PLC0415  imports redis-py

        lease = RedisLease(self._connect(), self._fleet, NodeId(""), "")
        try:
            yield lease
        finally:
            await lease.close()

    async def ask(
        self,
        question: Callable[[ControlClient, str], Awaitable[Answer]],
        *,
        about_host: bool = False,
        once: bool = False,
    ) -> Answer:
        """Put a question to the first daemon that answers: this host's, else the primary, else any living node.

        Args:
            about_host: no other host is asked for this one.
            once: nobody is asked again what a daemon may have done before it broke off.

        Raises: PeerUnavailable, NoPrimary, or what the daemon answered.
        """
        fault: RemoteFault | None = None
        if self._local_url is not None:
            try:
                return await question(await self._control(), self._local_url)
            except PeerUnavailable as error:
                if self._redis_url is None or about_host or (once and isinstance(error, PeerBrokeOff)):
                    raise
                fault = error
        try:
            others = [url for url in await self._urls() if url != self._local_url]
        except ModelsyncError as error:  # a password that only the daemon may read, too
            raise fault or error from None
        for url in others:
            try:
                return await question(await self._control(), url)
            except (PeerUnavailable, NoPrimary) as error:
                if once and isinstance(error, PeerBrokeOff):
                    raise
                fault = error
        raise fault or NoPrimary(fleet=self._fleet)

    async def ask_all(
        self, question: Callable[[ControlClient, str], Awaitable[Answer]]
    ) -> dict[str, Answer | ModelsyncError]:
        """Put a question to every living node at once: its answer, or its fault, by the node's id.

        Raises: RemoteFault, NoSuchFleet where nobody knows who lives.
        """
        nodes = {
            str(node["id"]): str(node["url"]) for node in (await self.status())["nodes"] if node["state"] != "lost"
        }
        control = await self._control()

        async def asked(url: str) -> Answer | ModelsyncError:
            try:
                return await question(control, url)
            except ModelsyncError as fault:
                return fault

        return dict(zip(nodes, await asyncio.gather(*(asked(url) for url in nodes.values())), strict=True))

    async def _urls(self) -> list[str]:
        """The primary's and every living node's, as Redis has them."""
        async with self._catalog() as catalog, self._lease() as lease:
            view = await lease.read()
            nodes = [node for node in await catalog.nodes() if not node.lost and node.url]
        primary = [view.url] if view.state == "held" and view.url else []
        return [*primary, *(node.url for node in nodes if node.url not in primary)]

    async def command(self, text: str, by: str) -> dict[str, Any]:
        return await self.ask(lambda control, url: control.command(url, text, by), once=True)

    async def model(self, name: ModelName) -> dict[str, Any]:
        return await self.ask(lambda control, url: control.model(url, name))

    async def manifest(self, name: ModelName, number: Version) -> bytes:
        return await self.ask(lambda control, url: control.manifest(url, name, number))


@contextlib.asynccontextmanager
async def access(target: Target, timeout_s: float = 10.0) -> AsyncIterator[Access]:
    """Reach the fleet that a target names. Raises ConfigurationFault, BadName."""
    token = target.token
    security = SecuritySection()
    local_url, redis_url = target.url, target.redis
    if local_url is not None or redis_url is not None:
        fleet = fleet_name(target.fleet)
    else:
        config = target.config()
        if config.security.token_file is not None and token is None:
            token = configuration.read_secret(config.security.token_file, "security.token_file")
        redis_url = None if config.fleet.redis == "embedded" else config.fleet.redis
        security = config.security
        local_url, fleet = config.node.advertise, config.fleet.name
    async with contextlib.AsyncExitStack() as stack:
        yield Access(stack, token, timeout_s, local_url, redis_url, fleet, security)


def run(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run one command's work to its end."""
    return asyncio.run(work)
