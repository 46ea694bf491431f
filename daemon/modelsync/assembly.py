"""The parts of one node, each made when the first other part needs it.

With ``app`` the only place that knows every edge by name; nothing is decided here. A lambda stands where two parts know
each other: it is called when both have been made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from functools import cached_property, partial
from typing import Any

import structlog

from modelsync.config import Config
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import ModelsyncError, PeerUnavailable
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import NodeId
from modelsync.core.status import UNREAD, NodeReport
from modelsync.core.swarm.neighbours import Labels
from modelsync.edges.disk.asked_file import AskedFile, UsedVersions
from modelsync.edges.disk.catalog_files import CatalogFiles
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.disk.live import Live
from modelsync.edges.disk.outstanding import outstanding_bytes
from modelsync.edges.disk.rejections import RejectionFiles
from modelsync.edges.disk.state_file import StateFile
from modelsync.edges.gates.prometheus import Prometheus
from modelsync.edges.gates.servers import LocalServers
from modelsync.edges.gates.validate import CagedValidator
from modelsync.edges.gates.views import ViewTrees
from modelsync.edges.host.clock import SystemClock
from modelsync.edges.host.ed25519 import Ed25519Verifier, load_signer
from modelsync.edges.http.control import ControlClient
from modelsync.edges.http.guard import EPOCH_HEADER
from modelsync.edges.models.directory import read_notes
from modelsync.edges.models.scan import DirectoryScanner
from modelsync.edges.models.watch import InotifyWatch
from modelsync.edges.objectstore.bucket import Bucket
from modelsync.edges.objectstore.client import ObjectStore
from modelsync.edges.objectstore.credentials import credentials_of
from modelsync.edges.objectstore.sweep import Sweeper
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.edges.redis.bus import RedisBus
from modelsync.edges.redis.catalog import RedisCatalog
from modelsync.edges.redis.lease import RedisLease
from modelsync.edges.uploads.kept import Uploads
from modelsync.ports import Promise, SourceFile, Sources
from modelsync.redis_client import LEASE_TIMEOUT_S, redis_client
from modelsync.runtime.activator import Activator
from modelsync.runtime.alarms import Alarms
from modelsync.runtime.book import Book
from modelsync.runtime.collecting import Collecting
from modelsync.runtime.crew import Crew
from modelsync.runtime.desk import Desk
from modelsync.runtime.elector import Elector, ElectorIdentity, ElectorSettings
from modelsync.runtime.flips import Flips
from modelsync.runtime.following import Following
from modelsync.runtime.gates import Gates
from modelsync.runtime.keeping import Keeper, StorageSettings
from modelsync.runtime.listening import Listening
from modelsync.runtime.node import Node
from modelsync.runtime.office import Office
from modelsync.runtime.orders import Orders
from modelsync.runtime.placer import Placer
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.read_through import ReadThrough
from modelsync.runtime.redis_health import RedisHealth
from modelsync.runtime.reporting import Reporting
from modelsync.runtime.rollouts import Rollouts
from modelsync.runtime.room import Room
from modelsync.runtime.settings import Identity, LiveSettings
from modelsync.runtime.signing import Signing
from modelsync.runtime.sources import SourceWatcher
from modelsync.runtime.sourcing import Sourcing
from modelsync.runtime.staging import Stager
from modelsync.runtime.sweeping import Sweeping
from modelsync.runtime.under_way import UnderWay

RESCAN_S = 30.0


class Assembly:
    """Builds a node. What must be closed is pushed on ``stack`` as it is made."""

    def __init__(self, stack: AsyncExitStack, config: Callable[[], Config], token: str | None) -> None:
        """``config`` is the configuration in force: a reload replaces it."""
        self._stack = stack
        self._config = config
        self.redis_url = ""
        """Where Redis is; set before ``node`` is called, and after the lock of the state directory is had."""
        self._token = token
        self.clock = SystemClock()
        self.alarms = Alarms()
        self.health = RedisHealth()
        self.crew = Crew()
        node = config().node
        self.identity = Identity(config().fleet.name, node.id, node.advertise, Labels(node.rack, node.zone))

    async def open_disk(self) -> None:
        """Before anything else: the state directory's lock says whether this is the only daemon there.

        Raises: LocalFault, StateInUse.
        """
        await asyncio.to_thread(self.store.open)
        self._stack.callback(self.store.close)
        self.live.open()
        self.views.sweep()

    def node(self) -> Node:
        """Everything, bound together."""
        node = Node(
            identity=self.identity,
            settings=live_settings(self._config(), None),
            clock=self.clock,
            store=self.store,
            book=self.book,
            catalog=self.catalog,
            health=self.health,
            alarms=self.alarms,
            elector=self.elector,
            publisher=self.publisher,
            office=self.office,
            stager=self.stager,
            activator=self.activator,
            placer=self.placer,
            rollouts=self.rollouts,
            flips=self.flips,
            reader=self.reader,
            following=self.following,
            orders=self.orders,
            desk=self.desk,
            listening=self.listening,
            reporting=self.reporting,
            collecting=self.collecting,
            crew=self.crew,
            peer_catalog=self._peer_catalog,
        )
        self.elector.on_promoted = node.promoted
        self.elector.on_demoted = node.demoted
        self.alarms.told = self.reporting.tell_alarm
        return node

    # --- disk --------------------------------------------------------------------------------------------------------

    @cached_property
    def store(self) -> IngestingStore:
        return IngestingStore(self._config().node.state_dir)

    @cached_property
    def ledger(self) -> StateFile:
        return StateFile(self._config().node.state_dir / "state.json")

    @cached_property
    def catalog_files(self) -> CatalogFiles:
        return CatalogFiles(self._config().node.state_dir)

    @cached_property
    def live(self) -> Live:
        node = self._config().node
        return Live(node.live_dir, self.store.trees, node.state_dir)

    @cached_property
    def views(self) -> ViewTrees:
        return ViewTrees(self._config().node.view_dir)

    # --- Redis -------------------------------------------------------------------------------------------------------

    def _redis(self, timeout_s: float) -> Any:
        return redis_client(self.redis_url, self._config().security, timeout_s)

    @cached_property
    def catalog(self) -> RedisCatalog:
        catalog = RedisCatalog(self._redis(2.0), self.identity.fleet)
        self._stack.push_async_callback(catalog.close)
        return catalog

    @cached_property
    def bus(self) -> RedisBus:
        bus = RedisBus(self._redis(10.0), self.identity.fleet, self.identity.node)
        self._stack.push_async_callback(bus.close)
        return bus

    @cached_property
    def lease(self) -> RedisLease:
        lease = RedisLease(self._redis(LEASE_TIMEOUT_S), self.identity.fleet, self.identity.node, self.identity.url)
        self._stack.push_async_callback(lease.close)
        return lease

    @cached_property
    def book(self) -> Book:
        return Book(self.catalog, self.catalog_files, self.ledger, self.clock.boottime_s, self.alarms.raised)

    # --- peers -------------------------------------------------------------------------------------------------------

    @cached_property
    def control(self) -> ControlClient:
        control = ControlClient(self._token)
        self._stack.push_async_callback(control.close)
        return control

    async def promise(self, node: NodeId, epoch: int, holder: NodeId, nonce: str) -> Promise:
        """Implements ports.Peers: asks another member for its promise over HTTP."""
        return await self.control.promise(await self._url_of(node), epoch, holder, nonce)

    async def _peer_catalog(self, node: NodeId) -> tuple[list[ModelRecord], FleetRecord]:
        return await self.control.catalog(await self._url_of(node))

    async def _url_of(self, node: NodeId) -> str:
        """Where a member listens, as it last reported. Raises PeerUnavailable."""
        known = next((report for report in self.book.nodes if report.id == node), None)
        if known is not None and known.state == UNREAD:  # a large fleet's reports are read by and by
            known = await self._read_report(node)
        if known is not None and known.url:
            return known.url
        raise PeerUnavailable(peer=node, reason="its address is not known")

    async def _read_report(self, node: NodeId) -> NodeReport | None:
        try:
            return await self.book.report_of(node)
        except ModelsyncError as error:
            raise PeerUnavailable(peer=node, reason=f"its address cannot be read: {error}") from error

    @cached_property
    def limiter(self) -> RateLimiter:
        return RateLimiter(self._config().transfer.rate_limit_bytes_per_s)

    @cached_property
    def depot(self) -> ObjectStore | None:
        storage = self._config().storage
        if not storage.url:
            return None
        depot = ObjectStore(
            Bucket(storage.url, credentials_of(storage.credentials_file)), self.identity.fleet, self.store
        )
        self._stack.callback(depot.close)
        return depot

    @cached_property
    def fetcher(self) -> Fetcher:
        fetcher = Fetcher(
            self.store,
            self.limiter,
            self._peer_headers,
            self.identity.node,
            depot=self.depot,
            compression=lambda: self._config().transfer.compression,
        )
        self._stack.callback(fetcher.close)
        loop = asyncio.get_running_loop()

        def accused(peer: str) -> None:  # on a thread of a pull
            loop.call_soon_threadsafe(self.alarms.raised, "peer.lied", peer)

        fetcher.suspects.accused = accused
        fetcher.opener.refused = lambda reason: structlog.get_logger().info("direct_writes.refused", reason=reason)
        return fetcher

    def _peer_headers(self) -> dict[str, str]:
        """What a pull tells its peer: the highest epoch seen here, and that it is one of the fleet."""
        headers = {EPOCH_HEADER: str(self.elector.epoch)} if self.elector.epoch else {}
        return {**headers, "Authorization": f"Bearer {self._token}"} if self._token else headers

    @cached_property
    def sourcing(self) -> Sourcing:
        return Sourcing(identity=self.identity, book=self.book, elector=self.elector, depot=self.depot)

    # --- authority ---------------------------------------------------------------------------------------------------

    @cached_property
    def elector(self) -> Elector:
        config = self._config()
        return Elector(
            identity=ElectorIdentity(self.identity.node, self.identity.url),
            settings=ElectorSettings(
                ttl_s=config.lease.ttl_s,
                heartbeat_s=config.lease.heartbeat_s,
                role=config.node.role,
                priority=config.node.priority,
                nofailover=config.node.nofailover,
            ),
            coordinator=self.lease,
            peers=self,
            ledger=self.ledger,
            clock=self.clock,
            alarm=self.alarms.raised,
        )

    @cached_property
    def publisher(self) -> Publisher:
        return Publisher(
            fleet=self.identity.fleet,
            node=self.identity.node,
            book=self.book,
            catalog_=self.catalog,
            store=self.store,
            clock=self.clock,
            signing=self.signing,
            authority=lambda: self.elector.authority,
            on_published=lambda name: self.activator.wake([name]),
            start_of=lambda name, by: self.rollouts.start_of_publish(name, by),
            initial=lambda name, files: self.placer.initial(name, files),
            depot=self.depot,
            alarm=self.alarms.raised,
        )

    @cached_property
    def office(self) -> Office:
        return Office(
            node=self.identity.node,
            watch=self._config().models.watch,
            publisher=self.publisher,
            disk=self.catalog_files,
            open_sources=self._sources,
            read_notes=read_notes,
        )

    @contextlib.asynccontextmanager
    async def _sources(self, known: Mapping[str, tuple[SourceFile, ...]]) -> AsyncIterator[Sources]:
        models = self._config().models
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
            clock=self.clock,
        )
        async with watcher:
            yield watcher

    @cached_property
    def rollouts(self) -> Rollouts:
        return Rollouts(
            node=self.identity.node,
            book=self.book,
            publisher=self.publisher,
            clock=self.clock,
            gate=Prometheus(),
            authority=lambda: self.elector.authority,
            plan=lambda name: self._config().rollout(name),
        )

    # --- versions on this host ---------------------------------------------------------------------------------------

    @cached_property
    def gates(self) -> Gates:
        servers = LocalServers()
        self._stack.push_async_callback(servers.close)
        return Gates(
            validator=CagedValidator(),
            servers=servers,
            views=self.views,
            disk=RejectionFiles(self._config().node.state_dir),
            clock=self.clock,
            node_pin=lambda name: self.activator.pins.get(name),
        )

    @cached_property
    def signing(self) -> Signing:
        """Raises ConfigurationFault."""
        key_file = self._config().security.signing_key_file
        return Signing(
            fleet=self.identity.fleet,
            signer=load_signer(key_file) if key_file is not None else None,
            verifier=Ed25519Verifier(),
            trusted=self._config().security.trusted_keys,
            active=lambda name: self.activator.records.get(name),
            alarm=self.alarms.raised,
        )

    @cached_property
    def stager(self) -> Stager:
        return Stager(
            book=self.book,
            store=self.store,
            puller=self.fetcher,
            clock=self.clock,
            peers=self.sourcing.of,
            concurrency=self._config().transfer.concurrency,
            gates=self.gates,
            room=Room(self.store.require_space, partial(outstanding_bytes, self.store)),
            signing=self.signing,
        )

    @cached_property
    def keeper(self) -> Keeper:
        return Keeper(
            node=self.identity.node,
            book=self.book,
            settings=storage_settings(self._config()),
            asked=AskedFile(self._config().node.state_dir),
            used=UsedVersions(self.store),
            depot=self.depot,
        )

    @cached_property
    def activator(self) -> Activator:
        return Activator(
            node=self.identity.node,
            keeper=self.keeper,
            book=self.book,
            store=self.store,
            live=self.live,
            stager=self.stager,
            gates=self.gates,
            signing=self.signing,
            clock=self.clock,
            on_change=lambda name, what, number: self.reporting.changed(name, what, number),
        )

    @cached_property
    def placer(self) -> Placer:
        return Placer(
            node=self.identity.node,
            book=self.book,
            publisher=self.publisher,
            stager=self.stager,
            clock=self.clock,
            depot=self.depot,
            keeper=self.keeper,
            is_primary=lambda: self.elector.authority is not None,
        )

    def sweeping(self, node: Node) -> Sweeping | None:
        """The object store's garbage, which runs beside the node; None without an object store."""
        if self.depot is None:
            return None
        sweeping = Sweeping(
            book=self.book,
            keeper=self.keeper,
            publisher=self.publisher,
            depot=self.depot,
            sweeper=Sweeper(self.depot, self.clock),
            clock=self.clock,
            is_primary=lambda: self.elector.authority is not None,
            put_back=self.placer.upload,
        )
        node.crew.start(sweeping.run(), "sweeping")
        return sweeping

    @cached_property
    def reader(self) -> ReadThrough:
        return ReadThrough(
            book=self.book,
            store=self.store,
            stager=self.stager,
            keeper=self.keeper,
            came=lambda name: self.activator.wake({name}),
        )

    @cached_property
    def flips(self) -> Flips:
        return Flips(
            book=self.book,
            catalog_=self.catalog,
            activator=self.activator,
            clock=self.clock,
            wake=lambda: self.following.wake(),
        )

    @cached_property
    def collecting(self) -> Collecting:
        return Collecting(book=self.book, activator=self.activator, publisher=self.publisher, store=self.store)

    # --- with the fleet ----------------------------------------------------------------------------------------------

    @cached_property
    def following(self) -> Following:
        return Following(
            settings=live_settings(self._config(), None),
            book=self.book,
            activator=self.activator,
            elector=self.elector,
            publisher=self.publisher,
            health=self.health,
        )

    @cached_property
    def orders(self) -> Orders:
        return Orders(
            identity=self.identity,
            book=self.book,
            catalog_=self.catalog,
            elector=self.elector,
            publisher=self.publisher,
            rollouts=self.rollouts,
            office=self.office,
            following=self.following,
            clock=self.clock,
        )

    @cached_property
    def desk(self) -> Desk:
        return Desk(
            fleet=self.identity.fleet,
            bus=self.bus,
            catalog_=self.catalog,
            clock=self.clock,
            authority=lambda: self.elector.authority,
            execute=self.orders.execute,
            others_hold=lambda: self.elector.follows,
            alone=self.orders.heard_alone,
        )

    @cached_property
    def listening(self) -> Listening:
        return Listening(
            node=self.identity.node,
            bus=self.bus,
            desk=self.desk,
            flips=self.flips,
            rollouts=self.rollouts,
            following=self.following,
            elector=self.elector,
            health=self.health,
        )

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self.store)

    @cached_property
    def under_way(self) -> UnderWay:
        return UnderWay(pulls=self.activator.pulls, uploads=self.uploads.progress, clock=self.clock)

    @cached_property
    def reporting(self) -> Reporting:
        return Reporting(
            identity=self.identity,
            settings=live_settings(self._config(), None),
            book=self.book,
            catalog_=self.catalog,
            store=self.store,
            activator=self.activator,
            elector=self.elector,
            office=self.office,
            placer=self.placer,
            following=self.following,
            health=self.health,
            alarms=self.alarms,
            clock=self.clock,
            under_way=self.under_way,
            switched=self.collecting.wake,
        )


def live_settings(config: Config, fault: str | None) -> LiveSettings:
    """What a reload may change; ``fault``: what of the edited file could not be taken on."""
    return LiveSettings(
        poll_s=config.fleet.poll_s,
        pins=config.pins,
        keep=config.keep,
        keep_days=config.keep_days,
        gates=config.gates,
        storage=storage_settings(config),
        serve_url=config.node.serve_url,
        concurrency=config.transfer.concurrency,
        priority=config.node.priority,
        nofailover=config.node.nofailover,
        labels=config.node.labels,
        trusted=config.security.trusted_keys,
        config_error=fault,
    )


def storage_settings(config: Config) -> StorageSettings:
    return StorageSettings(
        ahead=config.storage.ahead,
        cache_bytes=config.storage.cache_bytes,
        replace_after_s=config.storage.replace_after_s,
        moves=config.storage.moves,
        keep=config.keep,
        keep_days=config.keep_days,
        mode=config.mode,
        split_bytes=config.storage.split_bytes,
        leaving=config.storage.leaving,
        grace_s=config.storage.grace_s,
    )
