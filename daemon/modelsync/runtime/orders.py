"""What people order, in plain words, by redis-cli, the command line and HTTP alike: the holder executes and answers."""

from __future__ import annotations

import structlog

from modelsync.core import commands, policy
from modelsync.core import fleet as fleets
from modelsync.core.errors import LocalFault, ModelsyncError
from modelsync.core.fleet import Switchover
from modelsync.core.ids import NodeId
from modelsync.core.messages import announcement
from modelsync.ports import Catalog, Clock
from modelsync.runtime.book import Book
from modelsync.runtime.elector import Elector
from modelsync.runtime.following import Following
from modelsync.runtime.office import Office
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.rollouts import Rollouts
from modelsync.runtime.settings import Identity

log = structlog.get_logger()


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

    async def heard(self, text: str) -> None:
        """A command from the control channel: the holder answers it, everyone else leaves it alone."""
        authority = self._elector.authority
        if authority is None:
            return
        try:
            result = await self.execute(text, by="redis-cli")
            event, fields = "command.done", result
        except ModelsyncError as error:
            event, fields = "command.refused", {"reason": str(error)}
        answer = announcement(event, self._identity.fleet, authority.epoch, "", command=text[:200], **fields)
        try:
            await self._catalog.answer(answer)
        except ModelsyncError as error:
            log.warning("command.unanswered", command=text[:200], error=str(error), next="what it did stays done")

    async def execute(self, text: str, by: str) -> dict[str, object]:
        """Run one command in plain words. Raises BadName, PolicyRefusal, NoSuchVersion, AuthorityLost, RemoteFault."""
        command = commands.parse(text)
        if command.verb in commands.FLEET_VERBS:
            return await self._fleet_command(command, by)
        if command.verb == "rollout":
            return await self._rollouts.command(command, by)
        record = await self._publisher.command(command, by)
        return {
            "model": record.name,
            "wanted": record.wanted,
            "pinned": record.pinned,
            "why": policy.wanted(record, None).why,
        }

    async def _fleet_command(self, command: commands.Command, by: str) -> dict[str, object]:
        if command.verb == "switchover":
            return await self._switchover(command.node, by)
        if command.verb == "forget":
            return await self._forget(command.node, by)
        if command.verb == "pause":
            await self._publisher.fleet_change(
                lambda record, at: fleets.paused(record, by, at), "fleet.paused", f"by {by}"
            )
        elif self._elector.authority is not None:
            await self.resume(by)
        else:
            # Nobody holds the lease, or nobody can be reached who does: this node resumes for itself, becomes primary
            # if no other is, and writes it down then.
            self._following.resume_by = by
            self._following.tell_elector()
        return {"paused": command.verb == "pause"}

    async def _forget(self, node: str, by: str) -> dict[str, object]:
        fleets.forgettable(node, self._book.nodes)
        await self._publisher.fleet_change(
            lambda record, at: fleets.forgot(record, node, at), "node.forgotten", f"{node}, by {by}"
        )
        await self._catalog.forget(NodeId(node))
        await self._following.refresh_nodes()
        return {"forgotten": node}

    async def resume(self, by: str) -> None:
        self._following.resume_by = ""
        await self._publisher.fleet_change(fleets.resumed, "fleet.resumed", f"by {by}")

    async def _switchover(self, target: str, by: str) -> dict[str, object]:
        """Write the job down, then let go; the next primary writes what came of it."""
        chosen = fleets.switchover_target(target, self._identity.node, self._book.nodes)
        job = Switchover(self._identity.node, chosen, by, self._clock.wall_ms())
        try:
            await self._publisher.fleet_change(
                lambda record, at: fleets.handing_over(record, job, at), "switchover.begun", f"to {chosen}, by {by}"
            )
        except LocalFault as error:  # of this disk, after Redis has it: all the more reason to hand over
            log.warning("switchover.unsaved", error=str(error), next="the lease is handed over all the same")
        await self._office.leave()
        await self._elector.release(chosen)
        return {"switchover": chosen, "state": job.state}
