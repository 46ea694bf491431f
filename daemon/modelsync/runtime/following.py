"""Keeping up with Redis: the catalog, and who else is there. A node acts on what is read here, never on a message."""

from __future__ import annotations

import asyncio

from modelsync.core import fleet as fleets
from modelsync.core import rollcall
from modelsync.core.election.candidacy import Rival
from modelsync.core.errors import AuthorityLost, ModelsyncError, RemoteFault
from modelsync.core.status import NodeReport
from modelsync.runtime.activator import Activator
from modelsync.runtime.book import Book
from modelsync.runtime.elector import Elector
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.redis_health import PAUSE_S, Pause, RedisHealth
from modelsync.runtime.settings import LiveSettings
from modelsync.runtime.wake import Wake


class Following:
    """The loop that rereads, and what the election is told of what it read."""

    def __init__(
        self,
        *,
        settings: LiveSettings,
        book: Book,
        activator: Activator,
        elector: Elector,
        publisher: Publisher,
        health: RedisHealth,
    ) -> None:
        self.settings = settings
        self.resume_by = ""
        """Who asked this node to end a pause that no primary could end; it is one as soon as it may be."""
        self._book = book
        self._activator = activator
        self._elector = elector
        self._publisher = publisher
        self._health = health
        self._wake = Wake()

    def wake(self) -> None:
        """Something may have changed: reread soon."""
        self._wake.set()

    async def run(self) -> None:
        pause, everything = Pause(), True
        while True:
            try:
                await self.refresh(everything=everything)
                pause.over()
                everything = False
                await self._restore_if_behind()
                await self._wake.wait(self.settings.poll_s)
            except (RemoteFault, AuthorityLost) as error:
                self._health.failed("read", error)
                await pause.take()
            except ModelsyncError as error:
                self._health.unread(error)
                await asyncio.sleep(PAUSE_S[1])

    async def refresh(self, *, everything: bool) -> None:
        """Read what changed, or everything. Raises RemoteFault, LocalFault, MalformedMessage."""
        before = self._book.fleet
        await self._book.refresh(self._activator.wake, everything=everything)
        if not self._book.nodes:
            await self.refresh_nodes()
        elif self._book.fleet != before:  # a pause counts from now on, however seldom a large fleet looks around
            self.tell_elector()
        self._health.answered("read")

    @property
    def look_every_s(self) -> float:
        """How often this node looks who else is there."""
        return rollcall.look_every_s(len(self._book.nodes), primary=self._elector.authority is not None)

    async def refresh_nodes(self) -> None:
        """Read who else is there; the election counts its majorities and ranks its candidates by it."""
        holder = self._elector.lease.holder
        await self._book.refresh_nodes(first=(holder,), everything=self._elector.authority is not None)
        self.tell_elector()
        reported, forgotten = {node.id for node in self._book.nodes}, self._book.fleet.forgotten
        await self._elector.note_members(frozenset((self._book.members | reported) - forgotten))
        returned = [node.id for node in self._book.nodes if node.id in forgotten and not node.lost]
        if returned and self._elector.authority is not None:
            await self._publisher.fleet_change(
                lambda record, at: fleets.remembered(record, returned, at), "node.returned", ", ".join(returned)
            )
        for node in self._book.nodes:
            self._elector.note_epoch(node.epoch)

    def tell_elector(self) -> None:
        """Whether promotions are paused, and against whom this node stands."""
        if not self._book.fleet.paused:
            self.resume_by = ""  # another node has resumed for all
        rivals = [self._rival(node) for node in self._book.nodes]
        self._elector.set_eligibility(paused=self._book.fleet.paused and not self.resume_by, rivals=rivals)

    def _rival(self, node: NodeReport) -> Rival:
        """One that has said something newer is taken to be as far as this node: in a large fleet that is not read yet,
        and everybody would think themselves the best.
        """
        applied = max(node.applied, self._book.applied) if node.stale else node.applied
        return Rival(node.id, applied, node.priority, node.eligible and not node.lost)

    async def _restore_if_behind(self) -> None:
        if self._book.redis_behind and self._elector.authority is not None:
            await self._publisher.restore()
