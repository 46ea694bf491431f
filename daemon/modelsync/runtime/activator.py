"""One host's versions: pulled, built, switched, reported. The numbered algorithm of PROTOCOL.md section 5.

This file orders the switch and what follows a failure. What is wanted comes from core.policy; how a version gets ready
is staging.py's; how links switch is the edge's. A failure leaves `current` as it was, is shown in the report, and is
tried again with a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from modelsync.core import policy, status
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import DiskFull, HookFailed, ModelsyncError, VersionRejected
from modelsync.core.ids import Digest, EntryId, ModelName, NodeId, Version
from modelsync.core.manifest import Manifest
from modelsync.ports import ActiveRecord, Clock, LiveLinks, Progress, VersionStore
from modelsync.runtime import inventory
from modelsync.runtime.book import Book
from modelsync.runtime.crew import Crew
from modelsync.runtime.gates import Gates
from modelsync.runtime.inventory import Inventory
from modelsync.runtime.keeping import Keeper
from modelsync.runtime.signing import Signing
from modelsync.runtime.staging import Stager, Work

log = structlog.get_logger()

RETRY_FIRST_S = 0.5
RETRY_LONGEST_S = 30.0
LET_GO_S = 2.0
"""How often a host that need not hold a model looks whether others have it by now."""


@dataclass(frozen=True, slots=True)
class Ack:
    """How far this host is with a rollout: what its holder counts, for this rollout's id and digest alone."""

    id: EntryId
    version: Version
    digest: Digest
    refused: str = ""
    """Empty: staged, so that a switch needs no more than a rename."""

    def fields(self) -> dict[str, object]:
        value = {"id": str(self.id), "digest": str(self.digest), "staged": not self.refused}
        return value | ({"refused": self.refused} if self.refused else {})


@dataclass
class _Model(Work):
    """What goes on with one model here; only its own task writes it."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    error: str | None = None
    failures: int = 0
    ack: Ack | None = None
    switching: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held around a switch: a rollout's signal must not meet an ordinary activation half way."""
    here: Inventory = field(default_factory=Inventory)
    no_room: bool = False
    free: bool = False
    """All that lies here without having to may go."""


class Activator:
    """Brings every model to its wanted version, one task a model, so that a slow pull holds up no other."""

    def __init__(
        self,
        *,
        node: NodeId,
        book: Book,
        store: VersionStore,
        live: LiveLinks,
        stager: Stager,
        gates: Gates,
        signing: Signing,
        keeper: Keeper,
        clock: Clock,
        on_change: Callable[[ModelName, str, Version | None], Awaitable[None]],
    ) -> None:
        self._node = node
        self.keeper = keeper
        self._book = book
        self._store = store
        self._live = live
        self._stager = stager
        self.gates = gates
        self.signing = signing
        self._clock = clock
        self._on_change = on_change
        self._models: dict[ModelName, _Model] = {}
        self._closing = False
        self.crew = Crew()
        self.pins: Mapping[ModelName, int | str] = {}
        self.records: dict[ModelName, ActiveRecord] = {}

    # --- the outside -------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what was active; a link that does not match its record, or a broken tree, is put right later."""
        self.records = await asyncio.to_thread(self._live.records)
        await self.gates.load()

    def wake(self, names: Sequence[ModelName] | set[ModelName] | None = None) -> None:
        """Look at these models (or all) again now."""
        for name in self._book.records if names is None else names:
            model = self._models.setdefault(name, _Model())
            model.wake.set()
            if not model.started and not self._closing:
                model.started = True
                self.crew.start(self._run(name, model), f"activate-{name}")

    async def close(self) -> None:
        """Stop every pull; what is verified of it stays for the next start."""
        self._closing = True
        for model in self._models.values():
            if model.progress is not None:
                model.progress.cancelled.set()
        await self.crew.close()

    def active_version(self, name: ModelName) -> Version | None:
        record = self.records.get(name)
        return record.version if record else None

    def wish(self, name: ModelName) -> policy.Wish:
        return policy.wanted(self._book.record(name), self.pins.get(name), self._node)

    def report(self) -> dict[str, dict[str, object]]:
        """Every model's line for the node's report."""
        lines = {}
        for name, model in self._models.items():
            wish, needed = self.wish(name), self.keeper.must_hold(name)
            lines[str(name)] = status.node_model(
                active=self.active_version(name),
                wanted=wish.version if needed or name in self.records else None,
                held=model.here.whole,
                parts=model.here.parts,
                shares=len(self._book.record(name).placement.shares),
                state=model.state,
                error=model.error or self.signing.runs_untrusted(self._book.record(name)),
                why=wish.why if needed else self.keeper.where(name),
                rejected={**self.gates.shown(name), **self.signing.shown(self._book.record(name))},
                apart=name in self.pins or not needed,
                trial=name in self.records and bool(self.records[name].unsettled),
                ack=model.ack.fields() if model.ack else None,
            )
        return lines

    def reason(self, name: ModelName, number: Version) -> str:
        """Why a version was rejected here, for the announcement."""
        refused = self.signing.shown(self._book.record(name)).get(str(number))
        return refused or self.gates.reason(name, number) or self._models[name].error or ""

    def pulls(self) -> dict[str, Progress]:
        """Pulls under way, by model."""
        return {str(name): model.progress for name, model in self._models.items() if model.progress}

    def unready(self) -> list[str]:
        """Models whose wanted version is not active here, as phrases."""
        lines = []
        for name in self._book.records:
            wish, active = self.wish(name), self.active_version(name)
            if active is None and not self.keeper.must_hold(name):
                continue
            if wish.waiting or wish.version != active:
                lines.append(
                    f"{name}: wants {wish.version or 'a version that is not published'}, runs {active or 'none'}"
                )
        return lines

    # --- one model ---------------------------------------------------------------------------------------------------

    async def _run(self, name: ModelName, model: _Model) -> None:
        while True:
            await model.wake.wait()
            model.wake.clear()
            try:
                await self._reconcile(name, model)
                model.failures, model.error, model.no_room = 0, None, False
            except VersionRejected as error:
                await self._rejected(name, model, error)
            except ModelsyncError as error:
                await self._failed(name, model, error)
            finally:
                model.progress = None

    @property
    def disk_full(self) -> bool:
        """Whether a model could not be taken in for want of room: this host is given no more until it could."""
        return any(model.no_room for model in self._models.values())

    async def _failed(self, name: ModelName, model: _Model, error: ModelsyncError) -> None:
        model.no_room = isinstance(error, DiskFull)
        model.failures += 1
        text = str(error)
        if model.error != text:
            log.warning("activation.failed", model=name, error=text, next="the old version stays; tried again")
        model.state, model.error = "failed", text
        pause = min(RETRY_LONGEST_S, RETRY_FIRST_S * 2 ** min(model.failures - 1, 10))
        asyncio.get_running_loop().call_later(pause * random.uniform(0.5, 1.0), model.wake.set)
        await self._on_change(name, "full" if model.no_room else "failed", None)

    async def _rejected(self, name: ModelName, model: _Model, error: VersionRejected) -> None:
        """Stay with what runs; nothing is tried again until somebody asks."""
        model.failures, model.state, model.error = 0, "rejected", str(error)
        self.signing.note(error)
        roll = self._book.record(name).rollout
        if roll is not None and roll.open and roll.version == error.version:
            model.ack = Ack(roll.id, roll.version, roll.digest, str(error))
        model.here = await asyncio.to_thread(inventory.take, self._book.record(name), self._store)
        await self._on_change(name, "rejected", Version(error.version))
        await self._tell_earlier(name, model)

    async def _tell_earlier(self, name: ModelName, model: _Model) -> None:
        """After a rollback: the servers get the earlier version back, however often they have to be told."""
        active = self.records.get(name)
        if active is None or not active.unsettled:
            return
        try:
            await self.gates.tell_again(self._stager.candidate(name, active.version, active.digest))
            await self._settled(active)
        except ModelsyncError as fault:
            log.warning("servers.untold", model=name, error=str(fault), next="they are told again")
            asyncio.get_running_loop().call_later(RETRY_FIRST_S, model.wake.set)

    async def _reconcile(self, name: ModelName, model: _Model) -> None:
        record = self._book.record(name)
        wish = self.wish(name)
        self.signing.look(record)
        if not self.keeper.must_hold(name):
            await self._hold_parts(record, model)
            if await self._stood_down(record, model):
                return
        if self._is_behind(record):
            return  # the catalog on disk is older than what was activated: what Redis knows decides, when it answers
        if wish.version is None:
            model.state = "waiting" if wish.waiting else "idle"
        else:
            try:
                await self._activate(record, wish, model)
            except VersionRejected:
                await self._stage_rollout(record, model)  # what is wanted will not do; what is to come may
                raise
        await self._stage_rollout(record, model)
        for number in sorted({record.wanted, record.head} - {None, wish.version}, key=lambda n: n or 0):
            with contextlib.suppress(VersionRejected):  # remembered, and it is not what is wanted here
                await self._stager.stage(record, Version(number or 0), model)
        for number in self.keeper.also_held(record):
            with contextlib.suppress(VersionRejected):
                await self._stager.stage(record, number, model)
        await self._hold_parts(record, model)
        model.state = "waiting" if wish.waiting else "active" if wish.version is not None else "idle"
        model.here = await asyncio.to_thread(inventory.take, record, self._store)
        await self.keeper.let_go_of_parts(record, model.here)
        await self._on_change(name, model.state, None)

    def _is_behind(self, record: ModelRecord) -> bool:
        active = self.records.get(record.name)
        return active is not None and active.id > record.id

    async def _stage_rollout(self, record: ModelRecord, model: _Model) -> None:
        """Get an open rollout's version ready and say so; what will not do here is refused, with the reason."""
        roll = record.rollout
        if roll is None or not roll.open:
            model.ack = None
            return
        if model.ack is not None and (model.ack.id, model.ack.digest) == (roll.id, roll.digest):
            return
        refused = ""
        try:
            await self._stager.stage(record, roll.version, model)
        except ModelsyncError as error:
            if error.retryable:
                raise
            refused = str(error)
            log.warning("rollout.refused", model=record.name, version=roll.version, error=refused)
        await self._book.saved()  # the switch that may follow at once has the disk to itself
        model.ack = Ack(roll.id, roll.version, roll.digest, refused)
        if not refused:
            staged_s = self._clock.boottime_s()
            log.info("rollout.staged", model=record.name, version=roll.version, rollout=str(roll.id), staged_s=staged_s)
        await self._on_change(record.name, "staged", roll.version)

    async def _stood_down(self, record: ModelRecord, model: _Model) -> bool:
        """Go without a model that this host need not hold: once others have everything of it, and not before.

        False: it was in use here and goes on as it was; this is looked at again soon.
        """
        model.here = await asyncio.to_thread(inventory.take, record, self._store)
        free = await self.keeper.let_go(record, model.here)
        freed, model.free = free and not model.free, free
        model.state = "part" if record.placement.owned(self._node) else "elsewhere"
        if record.name in self.records and not free:
            asyncio.get_running_loop().call_later(LET_GO_S, model.wake.set)
            return False
        if record.name in self.records:
            await asyncio.to_thread(self._live.clear, record.name)
            await asyncio.to_thread(self.keeper.used, self.records[record.name].digest)  # until now, for the cache
            del self.records[record.name]
            log.info("model.let_go", model=record.name, where=self.keeper.where(record.name))
        elif model.here.touched and not free:
            asyncio.get_running_loop().call_later(LET_GO_S, model.wake.set)
        await self._on_change(record.name, "freed" if freed and model.here.touched else model.state, None)
        return True

    async def _hold_parts(self, record: ModelRecord, model: _Model) -> None:
        """Have what this host owns of a model that lies in parts; what is whole here for another reason has them."""
        mine, numbers = self.keeper.parts_held(record)
        rejected: VersionRejected | None = None
        for number in numbers:
            try:
                await self._stager.stage_parts(record, number, mine, model)
            except VersionRejected as error:  # one that nobody trusted has signed holds up no other
                rejected = error if number == record.wanted else rejected
        if rejected is not None:
            raise rejected

    async def _activate(self, record: ModelRecord, wish: policy.Wish, model: _Model) -> None:
        number = wish.version
        assert number is not None
        if await self._is_active(record, number):
            await self._settle(record, wish, model)
            model.state = "active"
            return
        self.gates.require(record, number)
        started_s = self._clock.boottime_s()
        async with self._stager.held(record, number, model) as (manifest, digest):
            model.state = "activating"
            await self._validated(record, number, manifest, digest)
            async with model.switching:
                if self._is_behind(record):
                    return  # a rollout's signal was quicker than the catalog
                new = self._intent(record.name, number, digest, record.id)
                await asyncio.to_thread(self._switch, manifest, new)
                self.records[record.name] = new
            await self._settle(record, wish, model)  # (9)
        model.state, model.error = "active", None
        model.here = replace(model.here, whole=model.here.whole | {number})
        took_ms = round(1000 * (self._clock.boottime_s() - started_s), 1)
        log.info("version.activated", model=record.name, version=number, why=wish.why, took_ms=took_ms)
        await self._on_change(record.name, "activated", number)  # (10)

    async def _validated(self, record: ModelRecord, number: Version, manifest: Manifest, digest: Digest) -> None:
        if self.gates.checks(record.name):  # else the tree is built on the way to the switch, in one thread
            await asyncio.to_thread(self._stager.build, manifest, digest)
            await self.gates.validate(record, self._stager.candidate(record.name, number, digest))

    # --- after the switch --------------------------------------------------------------------------------------------

    async def _settle(self, record: ModelRecord, wish: policy.Wish, model: _Model) -> None:
        """Step 9, where it is still to be done: servers take the version and stay well, or it is rolled back.

        Raises VersionRejected; HookFailed where there is nothing to go back to, and it is tried again.
        """
        active = self.records[record.name]
        candidate = self._stager.candidate(record.name, active.version, active.digest)
        if not active.unsettled:
            await self.gates.show(candidate)
            return
        model.state = "settling"
        before = active.previous_version, active.previous_digest
        try:
            await self.gates.settle(candidate, obsolete=lambda: self.wish(record.name).version != wish.version)
        except VersionRejected as error:
            if active.unsettled != "trial":
                raise HookFailed(hook=error.gate, reason=f"{error.reason}; there is nothing to go back to") from error
            if not self.signing.may_switch(record, *before):
                fault = f"{error.reason}; version {before[0]} is not gone back to: nobody who is trusted has signed it"
                raise HookFailed(hook=error.gate, reason=fault) from error
            await self._roll_back(record, active, error)
            raise
        await self._settled(active)
        await self.gates.forgive(record.name, active.digest)

    async def _settled(self, active: ActiveRecord) -> None:
        done = replace(active, unsettled="")
        await asyncio.to_thread(self._live.write_record, done)
        self.records[active.model] = done

    async def _roll_back(self, record: ModelRecord, failed: ActiveRecord, error: VersionRejected) -> None:
        """Back to what ran before: the rejection is on disk first, so that no crash leads to the bad version again."""
        assert failed.previous_digest is not None and failed.previous_version is not None
        started_s = self._clock.boottime_s()
        await self.gates.reject(record, failed.version, failed.digest, error)
        earlier = replace(
            failed,
            version=failed.previous_version,
            digest=failed.previous_digest,
            since_ms=self._clock.wall_ms(),
            previous_version=None,
            previous_digest=None,
            unsettled="tell",
        )
        await asyncio.to_thread(self._live.switch, earlier)
        self.records[record.name] = earlier
        took_ms = round(1000 * (self._clock.boottime_s() - started_s), 1)
        log.warning(
            "version.rolled_back", model=record.name, version=failed.version, to=earlier.version, took_ms=took_ms
        )

    # --- a rollout's signal ------------------------------------------------------------------------------------------

    def acked(self, name: ModelName) -> Ack | None:
        """The rollout for which this host waits, staged, for the signal; None: no signal is obeyed."""
        model = self._models.get(name)
        ready = model is not None and model.ack is not None and not model.ack.refused and name not in self.pins
        return model.ack if model is not None and ready else None

    async def flip(self, name: ModelName, ack: Ack, at: EntryId) -> bool:
        """Switch to what is staged, at once; ``settle_flip`` follows. Raises DiskFull, DiskFailed."""
        if not self.signing.may_switch(self._book.record(name), ack.version, ack.digest):
            return False  # its key was taken out since it was staged
        async with self._models[name].switching:
            before = self.records.get(name)
            if before is not None and (before.id > at or before.digest == ack.digest):
                return False
            new = self._intent(name, ack.version, ack.digest, at)
            await asyncio.to_thread(self._live.flip, new)
            self.records[name] = new
        return True

    async def settle_flip(self, name: ModelName, ack: Ack) -> None:
        """What a flip left for later: make it durable, and tell of it. Servers hear of it by the next look (9)."""
        new = self.records.get(name)
        if new is None or new.digest != ack.digest:
            return
        try:
            async with self._models[name].switching:
                await asyncio.to_thread(self._live.settle, new)
        except ModelsyncError as error:
            log.warning("flip.undurable", model=name, error=str(error), next="it is done again")
            self.records.pop(name, None)  # what is on disk is not what runs: the next look activates it as any version
        await self._on_change(name, "activated", ack.version)

    # --- the switch --------------------------------------------------------------------------------------------------

    def _intent(self, name: ModelName, number: Version, digest: Digest, at: EntryId) -> ActiveRecord:
        before, active = self.records.get(name), self._live.active(name)
        replaced = active if active != digest else None
        if replaced is None and before is not None and before.digest != digest:
            replaced = before.digest  # a crash after a flip: the link was switched, its record not yet
        known = before.version if before and before.digest == replaced else None
        return ActiveRecord(
            model=name,
            version=number,
            digest=digest,
            id=at,
            since_ms=self._clock.wall_ms(),
            previous_version=known,
            previous_digest=replaced,
            unsettled=("trial" if known is not None else "tell") if self.gates.tells(name) else "",
        )

    def _switch(self, manifest: Manifest, new: ActiveRecord) -> None:
        self._stager.build(manifest, new.digest)  # (4) to (6)
        self._live.switch(new)  # (7) and (8)

    async def _is_active(self, record: ModelRecord, number: Version) -> bool:
        active, digest = self.records.get(record.name), record.require(number).digest
        if active is None or active.version != number or self._live.active(record.name) != digest:
            return False
        return await asyncio.to_thread(self._is_whole, digest)

    def _is_whole(self, digest: Digest) -> bool:
        manifest = self._store.manifest(digest)
        return manifest is not None and self._store.tree_is_whole(manifest, digest)
