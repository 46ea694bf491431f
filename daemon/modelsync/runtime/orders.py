"""What people order, in plain words, by redis-cli, the command line and HTTP alike: the holder executes."""

from __future__ import annotations

import asyncio

import structlog

from modelsync.core import commands, policy
from modelsync.core import fleet as fleets
from modelsync.core.errors import LocalFault, PolicyRefusal, TargetBehind
from modelsync.core.fleet import Switchover
from modelsync.core.ids import NodeId
from modelsync.ports import Catalog, Clock
from modelsync.runtime.book import Book
from modelsync.runtime.elector import Elector
from modelsync.runtime.following import Following
from modelsync.runtime.office import Office
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.rollouts import Rollouts
from modelsync.runtime.settings import Identity

log = structlog.get_logger()

CATCH_UP_LOOKS = 12
CATCH_UP_PAUSE_S = 0.25
"""Together longer than the 2 s that a report may be late."""


class Orders:
    """Executes commands on the primary."""

    def __init__(
        self,
        *,
        identity: Identity,
        book: Book,
        catalog_: Catalog,
        elector: Elector,
        publisher: Publisher,
        rollouts: Rollouts,
        office: Office,
        following: Following,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._book = book
        self._catalog = catalog_
        self._elector = elector
        self._publisher = publisher
        self._rollouts = rollouts
        self._office = office
        self._following = following
        self._clock = clock

    async def execute(self, text: str, by: str, ask: str = "", refusal: str = "") -> dict[str, object]:
        """Run one command in plain words, or tell the outcome of one that was run under one of these names (``ask``).

        ``refusal``: why it must not be run any more, if so.

        Raises: BadName, PolicyRefusal, NoSuchVersion, AuthorityLost, RemoteFault.
        """
        command = commands.parse(text)
        done = bool(ask) and await self._publisher.carried_out(command.model, ask)
        if refusal and not done:
            raise PolicyRefusal(reason=refusal)
        if command.verb in commands.FLEET_VERBS:
            if not done:
                await self._fleet_command(command, by, ask)
            return await self._fleet_outcome(command)
        if command.verb == "rollout":
            return await self._rollouts.command(command, by, ask, done=done)
        assert command.model is not None
        record = self._book.record(command.model) if done else await self._publisher.command(command, by, ask)
        return {
            "model": record.name,
            "wanted": record.wanted,
            "pinned": record.pinned,
            "why": policy.wanted(record, None).why,
            **commands.told(command, record),
        }

    async def _fleet_command(self, command: commands.Command, by: str, ask: str) -> None:
        if command.verb == "switchover":
            await self._switchover(command.node, by, ask)
        elif command.verb == "forget":
            fleets.forgettable(command.node, self._book.nodes)
            note = f"{command.node}, by {by}"
            await self._publisher.fleet_change(
                lambda record, at: fleets.forgot(record, command.node, at), "node.forgotten", note, ask
            )
        elif command.verb == "pause":
            await self._publisher.fleet_change(
                lambda record, at: fleets.paused(record, by, at), "fleet.paused", f"by {by}", ask
            )
        elif self._elector.authority is not None:
            await self.resume(by, ask)
        else:
            self._resume_alone(by)

    async def _fleet_outcome(self, command: commands.Command) -> dict[str, object]:
        """What has come of a command that was carried out, by this primary or the one before."""
        if command.verb == "switchover":
            job = self._book.fleet.switchover
            return {"switchover": job.target, "state": job.state} if job else {}
        if command.verb == "forget":
            await self._catalog.forget(NodeId(command.node))
            await self._following.refresh_nodes()
            return {"forgotten": command.node}
        return {"paused": command.verb == "pause"}

    async def resume(self, by: str, ask: str = "") -> None:
        self._following.resume_by = ""
        await self._publisher.fleet_change(fleets.resumed, "fleet.resumed", f"by {by}", ask)

    def _resume_alone(self, by: str) -> None:
        """Nobody holds the lease, or nobody can be reached who does: this node resumes for itself, becomes primary if
        no other is, and writes it down then."""
        self._following.resume_by = by
        self._following.tell_elector()

    def heard_alone(self, text: str) -> None:
        """A command on ``control`` and no primary: this node can carry out the one that lets there be one."""
        if text.split() == ["resume"] and self._book.fleet.paused and not self._following.resume_by:
            self._resume_alone("redis-cli")

    async def _switchover(self, target: str, by: str, ask: str) -> None:
        """Write the job down, then let go; the next primary writes what came of it."""
        chosen = await self._fit_target(target)
        job, note = Switchover(self._identity.node, chosen, by, self._clock.wall_ms()), f"to {chosen}, by {by}"
        try:
            await self._publisher.fleet_change(
                lambda record, at: fleets.handing_over(record, job, at), "switchover.begun", note, ask
            )
        except LocalFault as error:  # of this disk, after Redis has it: all the more reason to hand over
            log.warning("switchover.unsaved", error=str(error), next="the lease is handed over all the same")
        await self._office.leave()
        await self._elector.release(chosen)

    async def _fit_target(self, asked: str) -> str:
        """Raises PolicyRefusal, RemoteFault. One that seems behind gets time to report: right after a change of primary
        everybody seems so."""
        for _ in range(CATCH_UP_LOOKS):
            try:
                return fleets.switchover_target(asked, self._identity.node, self._book.nodes)
            except TargetBehind:
                await asyncio.sleep(CATCH_UP_PAUSE_S)
                await self._following.refresh_nodes()
        return fleets.switchover_target(asked, self._identity.node, self._book.nodes)
