"""The composition root: builds one node out of its parts and runs it until it is told to stop.

Nothing is decided here; this is the only place that knows every edge by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from modelsync import config as configuration
from modelsync.config import Config
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import ConfigurationFault, PeerUnavailable
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import NodeId
from modelsync.core.neighbours import Labels
from modelsync.edges.disk import durable
from modelsync.edges.disk.asked_file import AskedFile, UsedVersions
from modelsync.edges.disk.catalog_files import CatalogFiles
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.disk.live import Live
from modelsync.edges.disk.rejections import RejectionFiles
from modelsync.edges.disk.scrub import StoreCheck
from modelsync.edges.disk.state_file import StateFile
from modelsync.edges.gates.prometheus import Prometheus
from modelsync.edges.gates.servers import LocalServers
from modelsync.edges.gates.validate import CagedValidator
from modelsync.edges.gates.views import ViewTrees
from modelsync.edges.host.clock import SystemClock
from modelsync.edges.host.config_watch import ConfigWatch
from modelsync.edges.host.metrics import Metrics
from modelsync.edges.host.systemd import SystemdNotifier, watchdog_interval_s
from modelsync.edges.http.control import ControlClient
from modelsync.edges.http.guard import EPOCH_HEADER, is_loopback
from modelsync.edges.http.server import HttpServer
from modelsync.edges.models.directory import read_notes
from modelsync.edges.models.scan import DirectoryScanner
from modelsync.edges.models.watch import InotifyWatch
from modelsync.edges.objectstore.client import ObjectStore
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.edges.redis.bus import RedisBus
from modelsync.edges.redis.catalog import RedisCatalog
from modelsync.edges.redis.embedded import EmbeddedRedis
from modelsync.edges.redis.lease import RedisLease
from modelsync.ports import Promise, SourceFile, Sources
from modelsync.redis_client import LEASE_TIMEOUT_S, redis_client
from modelsync.runtime.activator import Activator
from modelsync.runtime.alarms import KINDS, Alarms
from modelsync.runtime.answers import NodeAnswers
from modelsync.runtime.book import Book
from modelsync.runtime.care import Care
from modelsync.runtime.elector import Elector, ElectorIdentity, ElectorSettings
from modelsync.runtime.flips import Flips
from modelsync.runtime.gates import Gates
from modelsync.runtime.keeping import Keeper, StorageSettings
from modelsync.runtime.node import Identity, LiveSettings, Node
from modelsync.runtime.office import Office
from modelsync.runtime.placer import Placer
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.read_through import ReadThrough
from modelsync.runtime.rollouts import Rollouts
from modelsync.runtime.sources import SourceWatcher
from modelsync.runtime.staging import Stager

log = structlog.get_logger()

RESCAN_S = 30.0


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
        store = IngestingStore(config.node.state_dir)
        await asyncio.to_thread(store.open)
        stack.callback(store.close)
        self.redis_url = self._redis(stack)
        ledger = StateFile(config.node.state_dir / "state.json")
        node = self._assemble(stack, store, ledger)
        answers = NodeAnswers(node, Metrics(lambda: {**_snapshot(node), "sent_bytes": server.sent_bytes}).render)
        server = HttpServer(
            answers,
            host=config.node.listen.host,
            port=config.node.listen.port,
            token=self._token(),
            node=config.node.id,
            fleet=config.fleet.name,
            care=self._care(stack, node, store),
        )
        await server.start()
        stack.push_async_callback(server.stop)
        await node.load()
        return node

    def _care(self, stack: AsyncExitStack, node: Node, store: IngestingStore) -> Care:
        self.scrub_limiter = RateLimiter(self.config.models.scrub_bytes_per_s)
        check = StoreCheck(store, self.scrub_limiter)
        care = Care(node, check, lambda: self.config.models.scrub_days)
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

    def _client(self, timeout_s: float) -> Any:
        return redis_client(self.redis_url, self.config.security, timeout_s)

    def _assemble(self, stack: AsyncExitStack, store: IngestingStore, ledger: StateFile) -> Node:
        config, clock = self.config, SystemClock()
        identity = Identity(
            config.fleet.name, config.node.id, config.node.advertise, Labels(config.node.rack, config.node.zone)
        )
        catalog = RedisCatalog(self._client(2.0), identity.fleet)
        bus = RedisBus(self._client(10.0), identity.fleet)
        lease = RedisLease(self._client(LEASE_TIMEOUT_S), identity.fleet, identity.node, identity.url)
        for part in (catalog, bus, lease):
            stack.push_async_callback(part.close)
        disk = CatalogFiles(config.node.state_dir)
        live = Live(config.node.live_dir, store.trees, config.node.state_dir)
        live.open()
        alarms = Alarms()
        book = Book(catalog, disk, ledger, alarms.raised)
        self.limiter = RateLimiter(config.transfer.rate_limit_bytes_per_s)
        token = self._token()
        depot = self._depot(stack, store)
        fetcher = Fetcher(store, self.limiter, lambda: _fleet_headers(elector, token), identity.node, depot=depot)
        stack.callback(fetcher.close)
        loop = asyncio.get_running_loop()

        def accused(peer: str) -> None:  # on a thread of a pull
            loop.call_soon_threadsafe(alarms.raised, "peer.lied", peer)

        fetcher.suspects.accused = accused
        control = ControlClient(token)
        stack.push_async_callback(control.close)
        elector = Elector(
            identity=ElectorIdentity(identity.node, identity.url),
            settings=ElectorSettings(
                ttl_s=config.lease.ttl_s,
                heartbeat_s=config.lease.heartbeat_s,
                role=config.node.role,
                priority=config.node.priority,
                nofailover=config.node.nofailover,
            ),
            coordinator=lease,
            peers=_Promises(control, book),
            ledger=ledger,
            clock=clock,
            alarm=alarms.raised,
        )
        publisher = Publisher(
            fleet=identity.fleet,
            node=identity.node,
            book=book,
            catalog_=catalog,
            store=store,
            clock=clock,
            authority=lambda: elector.authority,
            on_published=lambda name: activator.wake([name]),
            start_of=lambda name, by: rollouts.start_of_publish(name, by),  # noqa: PLW0108  it is made after this
            initial=lambda name, size_bytes: placer.initial(name, size_bytes),  # noqa: PLW0108
            depot=depot,
            alarm=alarms.raised,
        )
        servers = LocalServers()
        stack.push_async_callback(servers.close)
        views = ViewTrees(config.node.view_dir)
        views.sweep()
        gates = Gates(
            validator=CagedValidator(),
            servers=servers,
            views=views,
            disk=RejectionFiles(config.node.state_dir),
            clock=clock,
            node_pin=lambda name: activator.pins.get(name),  # noqa: PLW0108  pins are replaced by each reload
        )
        rollouts = Rollouts(
            node=identity.node,
            book=book,
            publisher=publisher,
            clock=clock,
            gate=Prometheus(),
            authority=lambda: elector.authority,
            plan=lambda name: self.config.rollout(name),  # noqa: PLW0108  a reload replaces the configuration
        )
        stager = Stager(
            book=book,
            store=store,
            puller=fetcher,
            clock=clock,
            peers=lambda name, number: node.peers(name, number),  # noqa: PLW0108  node is made last
            concurrency=config.transfer.concurrency,
            gates=gates,
        )
        keeper = Keeper(
            node=identity.node,
            book=book,
            settings=self._storage(),
            asked=AskedFile(config.node.state_dir),
            used=UsedVersions(store),
            depot=depot,
        )
        placer = Placer(
            node=identity.node,
            book=book,
            publisher=publisher,
            stager=stager,
            clock=clock,
            depot=depot,
            keeper=keeper,
            is_primary=lambda: elector.authority is not None,
        )
        activator = Activator(
            node=identity.node,
            keeper=keeper,
            book=book,
            store=store,
            live=live,
            stager=stager,
            gates=gates,
            clock=clock,
            on_change=lambda name, what, number: node.changed(name, what, number),  # noqa: PLW0108
        )
        office = Office(
            node=identity.node,
            watch=config.models.watch,
            publisher=publisher,
            disk=disk,
            open_sources=lambda known: self._sources(known, clock),
            read_notes=read_notes,
        )
        node = Node(
            identity=identity,
            settings=self._settings(None),
            book=book,
            catalog_=catalog,
            bus=bus,
            store=store,
            activator=activator,
            stager=stager,
            publisher=publisher,
            office=office,
            elector=elector,
            rollouts=rollouts,
            flips=Flips(book=book, catalog_=catalog, activator=activator, clock=clock, wake=lambda: node.wake()),  # noqa: PLW0108
            clock=clock,
            placer=placer,
            reader=ReadThrough(book=book, store=store, stager=stager, keeper=keeper),
            peer_catalog=lambda node_id: _peer_catalog(control, book, node_id),
            alarms=alarms,
        )
        elector.on_promoted = node.promoted
        elector.on_demoted = node.demoted
        return node

    @contextlib.asynccontextmanager
    async def _sources(self, known: Mapping[str, tuple[SourceFile, ...]], clock: SystemClock) -> AsyncIterator[Sources]:
        models = self.config.models
        assert models.watch is not None
        watcher = SourceWatcher(
            root=models.watch,
            settle_s=models.settle_s,
            rescan_s=RESCAN_S,
            include=models.include,
            exclude=models.exclude,
            known=known,
            scanner=DirectoryScanner(models.watch),
            watch=InotifyWatch(models.watch),
            clock=clock,
        )
        async with watcher:
            yield watcher

    def _settings(self, fault: str | None) -> LiveSettings:
        config = self.config
        return LiveSettings(
            poll_s=config.fleet.poll_s,
            pins=config.pins,
            keep=config.keep,
            keep_days=config.keep_days,
            gates=config.gates,
            storage=self._storage(),
            serve_url=config.node.serve_url,
            concurrency=config.transfer.concurrency,
            priority=config.node.priority,
            nofailover=config.node.nofailover,
            labels=config.node.labels,
            config_error=fault,
        )

    def _depot(self, stack: AsyncExitStack, store: IngestingStore) -> ObjectStore | None:
        config = self.config.storage
        if not config.url:
            return None
        depot = ObjectStore(config.url, config.credentials_file, self.config.fleet.name, store)
        stack.callback(depot.close)
        return depot

    def _storage(self) -> StorageSettings:
        config = self.config
        return StorageSettings(
            ahead=config.storage.ahead,
            cache_bytes=config.storage.cache_bytes,
            replace_after_s=config.storage.replace_after_s,
            moves=config.storage.moves,
            keep=config.keep,
            keep_days=config.keep_days,
            mode=config.mode,
        )

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
            node.reload(self._settings(fault))
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
    port = _remembered(root / "port", lambda: str(config.node.listen.port + 1))
    password = None if is_loopback(host) else _remembered(root / "password", lambda: secrets.token_urlsafe(24))
    return EmbeddedRedis(root, host=host, port=int(port), password=password, die_with_parent=True)


def _remembered(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        durable.replace_file(path, make().encode(), 0o600)
    return path.read_text().strip()


class _Promises:
    """Asks other members for promises over HTTP."""

    def __init__(self, control: ControlClient, book: Book) -> None:
        self._control = control
        self._book = book

    async def promise(self, node: NodeId, epoch: int, holder: NodeId, nonce: str) -> Promise:
        return await self._control.promise(_url_of(self._book, node), epoch, holder, nonce)


async def _peer_catalog(control: ControlClient, book: Book, node: NodeId) -> tuple[list[ModelRecord], FleetRecord]:
    return await control.catalog(_url_of(book, node))


def _url_of(book: Book, node: NodeId) -> str:
    """Where a member listens, as it last reported. Raises PeerUnavailable."""
    for report in book.nodes:
        if report.id == node and report.url:
            return report.url
    raise PeerUnavailable(peer=node, reason="its address is not known")


def _fleet_headers(elector: Elector, token: str | None) -> dict[str, str]:
    """What a pull tells its peer: the highest epoch seen here, and that it is one of the fleet."""
    headers = {EPOCH_HEADER: str(elector.epoch)} if elector.epoch else {}
    return {**headers, "Authorization": f"Bearer {token}"} if token else headers


async def _feed_watchdog(node: Node, notifier: SystemdNotifier) -> None:
    """Tell systemd that the election loop turns; when it has not, silence brings the restart."""
    interval_s = watchdog_interval_s()
    if interval_s is None:
        return
    while True:
        if node.clock.boottime_s() - node.elector.beat < interval_s:
            notifier.watchdog()
        await asyncio.sleep(interval_s / 4)


def _snapshot(node: Node) -> dict[str, Any]:
    return {
        "primary": node.elector.authority is not None,
        "epoch": node.elector.epoch,
        "redis_up": node.redis_error is None,
        "config_ok": node.settings.config_error is None,
        "alarms": {**dict.fromkeys(KINDS, 0), **node.alarms.counts},
        "models": node.activator.report(),
        "transfers": node.activator.transfers(),
    }
