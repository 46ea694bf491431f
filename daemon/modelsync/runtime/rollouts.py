"""The holder's part in rollouts: reads what hosts report, steps the core, writes each step fenced.

Nothing of it is remembered that a new holder would need: the record in the catalog says how far a rollout is, and the
reports say what each host has. What is lost with a holder is how long it has watched, and that is counted again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from modelsync.core import commands, status
from modelsync.core.commands import Command
from modelsync.core.errors import (
    AuthorityLost,
    IntegrityFault,
    ModelsyncError,
    NoSuchVersion,
    PolicyRefusal,
    RemoteFault,
)
from modelsync.core.ids import ModelName, NodeId
from modelsync.core.rollout import orders as rollout_orders
from modelsync.core.rollout import steps as rollout_steps
from modelsync.core.rollout.orders import Start
from modelsync.core.rollout.record import EACH, Gate, Plan
from modelsync.core.rollout.steps import AskGate, GateAnswered, Looked, Said, Watch, Write
from modelsync.ports import Authority, Clock, HealthGate
from modelsync.runtime.book import Book
from modelsync.runtime.crew import Crew
from modelsync.runtime.publisher import Publisher

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
"""While a rollout is open, even if no host says that it has got further."""


class Rollouts:
    """Begins, drives and stops rollouts while this node holds the lease."""

    def __init__(
        self,
        *,
        node: NodeId,
        book: Book,
        publisher: Publisher,
        clock: Clock,
        gate: HealthGate,
        authority: Callable[[], Authority | None],
        plan: Callable[[ModelName], Plan],
    ) -> None:
        self._node = node
        self._book = book
        self._publisher = publisher
        self._clock = clock
        self._gate = gate
        self._authority = authority
        self.plan = plan
        self._watches: dict[ModelName, Watch] = {}
        self._wake = asyncio.Event()
        self._stepping = asyncio.Lock()
        self.crew = Crew()

    def wake(self) -> None:
        """A host may have got further, or a rollout may have begun."""
        self._wake.set()

    # --- orders ------------------------------------------------------------------------------------------------------

    def start(self, name: ModelName, by: str, strategy: str = "") -> Start:
        """All that begins a rollout of a model now, as the configuration says."""
        plan = self.plan(name)
        plan = replace(plan, strategy=strategy) if strategy else plan
        said = self._said(name)
        members = sorted({node for node, one in said.items() if one.follows and not one.lost} | {self._node})
        labels = {node.id: _labels(node.extra) for node in self._book.nodes}
        return Start(plan, members, labels, by, self._clock.wall_ms())

    def start_of_publish(self, name: ModelName, by: str) -> Start | None:
        """How a publish begins a rollout; None where every host just follows."""
        if self.plan(name).strategy == EACH:
            return None
        self._wake.set()
        return self.start(name, by)

    async def command(self, command: Command, by: str, ask: str = "", *, done: bool = False) -> dict[str, object]:
        """Carry out ``rollout``; ``done``: it is, and only its outcome is asked for.

        Raises PolicyRefusal, NoSuchVersion, LeaseLost, NoPrimary, RedisUnavailable."""
        name = command.model
        assert name is not None
        if command.action != commands.STATUS and not done:
            await self._order(name, command, by, ask)
            self._wake.set()
        shown = status.rollout_line(self._book.record(name).rollout)
        if shown is None:
            raise NoSuchVersion(reason=f"no rollout of {name} was ever asked for")
        return {"model": name, "wanted": self._book.record(name).wanted, "rollout": shown}

    async def _order(self, name: ModelName, command: Command, by: str, ask: str) -> None:
        if command.action == commands.ABORT:
            await self._publisher.change_model(
                name,
                lambda record, at: rollout_orders.stopped(record, by, at),
                kind="rollout",
                event="rollout.aborted",
                note=str(command),
                by=by,
                ask=ask,
            )
            return
        target = command.target
        assert target is not None, "parse() lets no rollout begin without its version"
        await self._book.refresh_nodes()
        start = self.start(name, by, command.strategy)
        await self._publisher.change_model(
            name,
            lambda record, at: rollout_orders.begun(record, target, start, at),
            kind="rollout",
            event="rollout.begun",
            note=str(command),
            by=by,
            ask=ask,
        )

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at every open rollout whenever something may have moved, while this node holds the lease."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            open_ = [record.name for record in self._book.records.values() if record.rollout and record.rollout.open]
            self._watches = {name: watch for name, watch in self._watches.items() if name in open_}
            if self._authority() is None:
                self._watches.clear()  # whoever takes over counts from its own beginning, this node again included
            elif open_:
                await self._look(open_)

    async def _look(self, names: list[ModelName]) -> None:
        try:
            await self._book.refresh_nodes()
            for name in names:
                await self._step(name, Looked(self._said(name)))
        except (RemoteFault, AuthorityLost, IntegrityFault) as error:
            log.debug("rollout.unread", error=str(error))

    async def _step(self, name: ModelName, event: Looked | GateAnswered) -> None:
        """One event at a time, with its write: an answer must not be weighed while a decision is on its way."""
        async with self._stepping:
            await self._weigh(name, event)

    async def _weigh(self, name: ModelName, event: Looked | GateAnswered) -> None:
        rollout, now_s = self._book.record(name).rollout, self._clock.boottime_s()
        if rollout is None:
            return
        watch = rollout_steps.watched(rollout, self._watches.get(name), now_s)
        self._watches[name], effects = rollout_steps.step(watch, event, now_s)
        for effect in effects:
            if isinstance(effect, Write):
                await self._write(name, effect)
            elif isinstance(effect, AskGate):
                self.crew.start(self._ask(name, effect.gate, now_s), f"gate-{name}")

    async def _write(self, name: ModelName, write: Write) -> None:
        rollout = write.rollout
        note = f"{rollout.strategy} of version {rollout.version}: {rollout.state}"
        if rollout.waves and rollout.open:
            note += f" {rollout.wave + 1} of {len(rollout.waves)}"
        note += f": {rollout.reason}" if rollout.reason else ""
        try:
            await self._publisher.change_model(
                name,
                lambda record, at: rollout_orders.advanced(record, write, at),
                kind="rollout",
                event=write.event,
                note=note,
                by=self._node,
                asked=False,
            )
        except PolicyRefusal as error:
            log.info("rollout.overtaken", model=name, error=str(error))
        self._wake.set()

    async def _ask(self, name: ModelName, gate: Gate, asked_s: float) -> None:
        try:
            worst = await self._gate.worst(gate)
        except ModelsyncError as error:
            log.warning("gate.unanswered", model=name, error=str(error), next="asked again; no answer is no health")
            worst = None
        if self._authority() is None or name not in self._watches:
            return
        try:
            await self._step(name, rollout_steps.gate_answered(gate, worst, asked_s))
        except (RemoteFault, AuthorityLost) as error:
            log.debug("rollout.unwritten", error=str(error))
        self._wake.set()

    def _said(self, name: ModelName) -> Mapping[str, Said]:
        record = self._book.record(name)
        return {node.id: rollout_orders.said(node, record) for node in self._book.nodes}


def _labels(extra: Mapping[str, object]) -> list[str]:
    labels = extra.get("labels")
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []
