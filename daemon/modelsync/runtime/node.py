"""One node's life: what runs beside what, and what happens on promotion, demotion, reload and stop.

The parts are made elsewhere and handed in; what each does is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from modelsync.core.catalog import ModelRecord
from modelsync.core.election.promise import Ahead
from modelsync.core.errors import IntegrityFault, ModelsyncError, PeerUnavailable, RemoteFault
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import ModelName, NodeId
from modelsync.ports import Authority, Catalog, Clock, VersionStore
from modelsync.runtime.activator import Activator
from modelsync.runtime.alarms import Alarms
from modelsync.runtime.book import Book
from modelsync.runtime.collecting import Collecting
from modelsync.runtime.crew import Crew
from modelsync.runtime.desk import Desk
from modelsync.runtime.elector import Elector
from modelsync.runtime.flips import Flips
from modelsync.runtime.following import Following
from modelsync.runtime.listening import Listening
from modelsync.runtime.office import Office
from modelsync.runtime.orders import Orders
from modelsync.runtime.placer import Placer
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.read_through import ReadThrough
from modelsync.runtime.redis_health import RedisHealth
from modelsync.runtime.reporting import Reporting
from modelsync.runtime.rollouts import Rollouts
from modelsync.runtime.settings import Identity, LiveSettings
from modelsync.runtime.staging import Stager

log = structlog.get_logger()

PeerCatalog = Callable[[NodeId], Awaitable[tuple[Sequence[ModelRecord], FleetRecord]]]
"""Asks a node for all it knows. Raises RemoteFault, IntegrityFault."""


@dataclass(kw_only=True)
class Node:
    """The parts of one node, and their common life."""

    identity: Identity
    settings: LiveSettings
    clock: Clock
    store: VersionStore
    book: Book
    catalog: Catalog
    health: RedisHealth
    alarms: Alarms
    elector: Elector
    publisher: Publisher
    office: Office
    stager: Stager
    activator: Activator
    placer: Placer
    rollouts: Rollouts
    flips: Flips
    reader: ReadThrough
    following: Following
    orders: Orders
    desk: Desk
    listening: Listening
    reporting: Reporting
    collecting: Collecting
    crew: Crew
    """Whatever else runs beside the node, and ends with it."""
    peer_catalog: PeerCatalog

    async def load(self) -> None:
        """Read this node's disk, and bring up what it wants from what it holds, before Redis has said a word."""
        await self.book.load()
        await self.activator.load()
        await self.activator.keeper.load()
        self.activator.pins = self.settings.pins
        self.activator.gates.settings = self.settings.gates
        self.activator.wake()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set; then hand over the lease and leave everything in order."""
        loops = (self.following, self.listening, self.desk, self.reporting, self.collecting,
                 self.elector, self.rollouts, self.placer)  # fmt: skip
        crews = (self.crew, self.reporting.crew, self.activator.crew, self.office.crew,
                 self.flips.crew, self.rollouts.crew)  # fmt: skip
        tasks = [asyncio.create_task(each.run(), name=type(each).__name__) for each in loops]
        tasks += [asyncio.create_task(each.watch(), name="crew") for each in crews]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # a loop ends only by a fault of ours: let it end the process
        finally:
            await self._leave(tasks, stopping)

    async def _leave(self, tasks: Sequence[asyncio.Task[None]], stopping: asyncio.Task[bool]) -> None:
        for task in (*tasks, stopping):
            task.cancel()  # the election's loop among them: what is given back below is not taken again
        await self.office.leave()
        with contextlib.suppress(ModelsyncError):
            await self.elector.release()
        await self.reader.close()
        await self.activator.close()
        await self.reporting.crew.close()
        await self.crew.close()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)

    # --- authority ---------------------------------------------------------------------------------------------------

    async def promoted(self, authority: Authority, ahead: Ahead | None) -> None:
        """Take office: know all there is to know, say so in the log, give Redis back what it lost, and begin."""
        await self.following.refresh(everything=True)
        if ahead is not None and self.book.applied < ahead.id:  # else Redis has it, and has told us by now
            await self._catch_up(ahead)
        why = await self.publisher.take_office()
        await self.publisher.restore()
        self.office.enter()
        self.reporting.wake()
        log.info("primary.changed", epoch=authority.epoch, why=why)
        if self.following.resume_by:
            await self.orders.resume(self.following.resume_by)
        self.desk.open()

    async def _catch_up(self, ahead: Ahead) -> None:
        """Learn what a member of the majority has applied and Redis has lost. Raises PeerUnavailable, PeerRefused."""
        fault: ModelsyncError = PeerUnavailable(peer=", ".join(ahead.nodes), reason="no address is known")
        for node in ahead.nodes:
            try:
                records, fleet = await self.peer_catalog(NodeId(node))
            except (RemoteFault, IntegrityFault) as error:
                fault = error
                continue
            self.activator.wake(await self.book.learn(records, fleet))
            log.info("catalog.caught_up", source=node, applied=str(ahead.id))
            return
        raise fault

    async def demoted(self, reason: str) -> None:
        self.desk.close()
        await self.office.leave()
        self.reporting.wake()
        log.warning("lease.lost", reason=reason, next="this node follows as a replica")

    # --- changes from outside ----------------------------------------------------------------------------------------

    async def ask(self, name: ModelName, *, wanted: bool) -> None:
        """Hold a model here, or no longer than this host must. Raises DiskFull, DiskFailed."""
        await self.activator.keeper.ask(name, wanted=wanted)
        self.activator.wake([name])
        self.collecting.wake()

    def reload(self, settings: LiveSettings) -> None:
        """Take on what an edit of the config file changed."""
        before, self.settings = self.settings, settings
        self.following.settings = self.reporting.settings = settings
        self.activator.pins = settings.pins
        self.activator.gates.settings = settings.gates
        self.activator.keeper.settings = settings.storage
        self.stager.concurrency = settings.concurrency
        self.activator.signing.trusted = settings.trusted
        self.elector.settings = replace(
            self.elector.settings, priority=settings.priority, nofailover=settings.nofailover
        )
        self.reporting.wake()
        gates_changed = any(settings.gates(name) != before.gates(name) for name in self.book.records)
        looked_at = [(each.pins, each.storage, each.trusted) for each in (settings, before)]
        if gates_changed or looked_at[0] != looked_at[1]:
            self.activator.wake()
