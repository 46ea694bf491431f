"""One daemon: its node (``assembly``), its HTTP server, its signals and its configuration, until it is told to stop."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from modelsync import config as configuration
from modelsync.assembly import Assembly, live_settings
from modelsync.config import Config
from modelsync.config.addresses import url_for_others
from modelsync.core.errors import ConfigurationFault
from modelsync.edges.disk import durable
from modelsync.edges.disk.scrub import StoreCheck
from modelsync.edges.host.config_watch import ConfigWatch
from modelsync.edges.host.metrics import Metrics
from modelsync.edges.host.systemd import SystemdNotifier, watchdog_interval_s
from modelsync.edges.http.guard import is_loopback
from modelsync.edges.http.server import HttpServer
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.edges.redis.embedded import EmbeddedRedis
from modelsync.runtime.alarms import KINDS
from modelsync.runtime.answers import NodeAnswers
from modelsync.runtime.care import Care
from modelsync.runtime.node import Node

log = structlog.get_logger()

REDIS_BESIDE = 2
"""The embedded Redis's port above the daemon's own: 8463 beside 8461, for modelsync-serve's is 8462."""


@dataclass
class App:
    """One daemon: its configuration, its parts, and how they end."""

    config: Config
    config_watch: ConfigWatch | None = None
    """Tells of edits; made before ``config`` was read. None: what the command line said holds to the end."""
    on_ready: Callable[[App], None] = field(default=lambda app: None)
    redis_url: str = ""
    """Where Redis is, once it is known; for ``embedded`` the URL that others join by."""

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, and leave everything in order. Raises ModelsyncError."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        structlog.contextvars.bind_contextvars(fleet=self.config.fleet.name, node=self.config.node.id)
        async with AsyncExitStack() as stack:
            node = await self._start(stack)
            notifier = SystemdNotifier()
            self._start_beside(node, notifier)
            notifier.ready(f"{node.identity.node} in fleet {node.identity.fleet}")
            self.on_ready(self)
            await node.run(stop)
            notifier.stopping()

    # --- building ----------------------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> Node:
        config = self.config
        token = self._token()
        parts = Assembly(stack, lambda: self.config, token)
        await parts.open_disk()
        parts.redis_url = self._redis(stack)
        self.redis_url = url_for_others(parts.redis_url, config.node.advertise)
        node = parts.node()
        self.limiter = parts.limiter
        answers = NodeAnswers(node, Metrics(lambda: {**_snapshot(parts, node), **_sent(server)}).render)
        server = HttpServer(
            answers,
            host=config.node.listen.host,
            port=config.node.listen.port,
            token=token,
            node=config.node.id,
            fleet=config.fleet.name,
            care=self._care(stack, parts, node),
            uploads=parts.uploads,
            compression=lambda: self.config.transfer.compression,
        )
        await server.start()
        stack.push_async_callback(server.stop)
        await node.load()
        if parts.signing.sealing_fault and config.node.role != "replica":
            log.warning("signing.impossible", error=parts.signing.sealing_fault, next="it publishes nothing as primary")
        return node

    def _care(self, stack: AsyncExitStack, parts: Assembly, node: Node) -> Care:
        self.scrub_limiter = RateLimiter(self.config.models.scrub_bytes_per_s)
        check = StoreCheck(parts.store, self.scrub_limiter)
        care = Care(node, check, lambda: self.config.models.scrub_days, parts.under_way, parts.sweeping(node))
        node.crew.start(care.run(), "care")
        stack.callback(check.stop)
        return care

    def _redis(self, stack: AsyncExitStack) -> str:
        if self.config.fleet.redis != "embedded":
            return self.config.fleet.redis
        embedded = _embedded_redis(self.config)
        url = embedded.start()
        stack.callback(embedded.stop)
        return url

    def _token(self) -> str | None:
        path = self.config.security.token_file
        return configuration.read_secret(path, "security.token_file") if path else None

    # --- beside the node ---------------------------------------------------------------------------------------------

    def _start_beside(self, node: Node, notifier: SystemdNotifier) -> None:
        node.crew.start(_feed_watchdog(node, notifier), "watchdog")
        if (watch := self.config_watch) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, watch.poke)
            node.crew.start(self._reload(node, watch, notifier), "config")

    async def _reload(self, node: Node, watch: ConfigWatch, notifier: SystemdNotifier) -> None:
        """Take on each edit; a bad one leaves the last good configuration in force and says so."""
        async for _ in watch.changes():
            notifier.reloading()
            before = self.config.models
            fault = self._read_again(watch.path)
            self.limiter.rate_bytes_per_s = self.config.transfer.rate_limit_bytes_per_s
            self.scrub_limiter.rate_bytes_per_s = self.config.models.scrub_bytes_per_s
            node.reload(live_settings(self.config, fault))
            if self.config.models != before:
                await node.office.restart()
            notifier.ready("configuration fault" if fault else "configuration reloaded")

    def _read_again(self, path: Path) -> str | None:
        """Put an edited file in force as far as it can be; what is wrong with it, as a sentence, or None."""
        try:
            new = configuration.load(path)
        except ConfigurationFault as error:
            log.error("config.refused", error=str(error), next="the last good configuration stays in force")
            return str(error)
        changed = configuration.differences(self.config, new)
        self.config = configuration.in_force(self.config, new)
        log.info("config.reloaded", live=list(changed.live), restart=list(changed.restart))
        if not changed.restart:
            return None
        return f"{', '.join(changed.restart)}: changed in the file, and taken on at the next restart"


def _embedded_redis(config: Config) -> EmbeddedRedis:
    """A Valkey beside this node: at the same port after a restart, and with a password where others can reach it."""
    root, host = config.node.state_dir / "redis", config.node.listen.host
    durable.make_directories(root)
    own = config.node.listen.port
    beside = own + REDIS_BESIDE if own + REDIS_BESIDE < 1 << 16 else own - REDIS_BESIDE
    port = _remembered(root / "port", lambda: str(beside))
    password = None if is_loopback(host) else _remembered(root / "password", lambda: secrets.token_urlsafe(24))
    return EmbeddedRedis(root, host=host, port=int(port), password=password, die_with_parent=True)


def _remembered(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        durable.replace_file(path, make().encode(), 0o600)
    return path.read_text().strip()


async def _feed_watchdog(node: Node, notifier: SystemdNotifier) -> None:
    """Tell systemd that the election loop turns; when it has not, silence brings the restart."""
    interval_s = watchdog_interval_s()
    if interval_s is None:
        return
    while True:
        if node.clock.boottime_s() - node.elector.beat < interval_s:
            notifier.watchdog()
        await asyncio.sleep(interval_s / 4)


def _sent(server: HttpServer) -> dict[str, int]:
    return {"sent_bytes": server.sent_bytes, "sent_content_bytes": server.sent_content_bytes}


def _snapshot(parts: Assembly, node: Node) -> dict[str, Any]:
    return {
        "primary": node.elector.authority is not None,
        "epoch": node.elector.epoch,
        "redis_up": node.health.error is None,
        "config_ok": node.settings.config_error is None,
        "alarms": {**dict.fromkeys(KINDS, 0), **node.alarms.counts},
        "models": node.activator.report(),
        "under_way": parts.under_way.lines(),
        "uploaded_bytes": parts.uploads.received_bytes,
        "received_bytes": node.stager.received.wire_bytes,
        "received_content_bytes": node.stager.received.content_bytes,
    }
