"""One node's life: what runs beside what, what wakes whom, and what happens on promotion, demotion, reload and stop.

Everything that decides or touches the world is handed in. Redis being away is a state here, not a failure: the loops
that need it pause and come back, and whatever is active goes on being served.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from modelsync.core import commands, policy
from modelsync.core import fleet as fleets
from modelsync.core.candidacy import Rival
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import (
    AuthorityLost,
    IntegrityFault,
    LocalFault,
    ModelsyncError,
    PeerUnavailable,
    RemoteFault,
)
from modelsync.core.fleet import FleetRecord, Switchover
from modelsync.core.gates import ModelGates
from modelsync.core.ids import Digest, FleetName, ModelName, NodeId, Version
from modelsync.core.messages import announcement
from modelsync.core.neighbours import UNLABELLED, Labels, distance
from modelsync.core.promise import Ahead
from modelsync.core.status import NodeReport
from modelsync.ports import Authority, Bus, Catalog, Clock, CommandHeard, Peer, VersionStore, Woken
from modelsync.runtime.activator import Activator
from modelsync.runtime.alarms import Alarms
from modelsync.runtime.book import Book
from modelsync.runtime.crew import Crew
from modelsync.runtime.elector import Elector
from modelsync.runtime.flips import Flips
from modelsync.runtime.keeping import StorageSettings
from modelsync.runtime.office import Office
from modelsync.runtime.placer import Placer
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.read_through import ReadThrough
from modelsync.runtime.rollouts import Rollouts
from modelsync.runtime.staging import Stager

log = structlog.get_logger()

REPORT_EVERY_S = 2.0
REPORT_PAUSE_S = 0.03
"""What changes within this time is told in one report, and the switch that is under way goes first."""
COLLECT_EVERY_S = 600.0
COLLECT_PAUSE_S = 30.0
"""After an activation, so that a series of publishes is cleaned up after once, and none of them waits for it."""
COLLECT_AT_ONCE = 32
COLLECT_BREATH_S = 0.05
"""All 1,500 things of 500 small versions at once kept every fsync of this host, a promise too, waiting for 0.3 s."""
REDIS_PAUSE_S = (0.2, 5.0)
"""First and longest pause before Redis is tried again, each with jitter so that a fleet does not return in step."""


_NO_CHANGE = frozenset(
    {
        "version.activated",
        "version.rejected",
        "rollout.reported",
        "command.done",
        "command.refused",
        "alarm.raised",
    }
)
"""Announcements that change no catalog."""

PeerCatalog = Callable[[NodeId], Awaitable[tuple[Sequence[ModelRecord], FleetRecord]]]
"""Asks a node for all it knows. Raises RemoteFault, IntegrityFault."""


@dataclass
class LiveSettings:
    """What a reload may change while everything runs."""

    poll_s: float
    pins: Mapping[ModelName, int | str]
    keep: Callable[[ModelName], int]
    keep_days: Callable[[ModelName], float]
    gates: Callable[[ModelName], ModelGates]
    storage: StorageSettings
    serve_url: str
    concurrency: int
    priority: int
    nofailover: bool
    labels: Sequence[str] = ()
    config_error: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is, and where others reach it."""

    fleet: FleetName
    node: NodeId
    url: str
    labels: Labels = UNLABELLED


class Node:
    """The loops of one node."""

    def __init__(
        self,
        *,
        identity: Identity,
        settings: LiveSettings,
        book: Book,
        catalog_: Catalog,
        bus: Bus,
        store: VersionStore,
        activator: Activator,
        stager: Stager,
        publisher: Publisher,
        office: Office,
        elector: Elector,
        rollouts: Rollouts,
        flips: Flips,
        clock: Clock,
        peer_catalog: PeerCatalog,
        placer: Placer,
        reader: ReadThrough,
        alarms: Alarms,
    ) -> None:
        self.identity = identity
        self.settings = settings
        self.book = book
        self.catalog = catalog_
        self.bus = bus
        self.store = store
        self.activator = activator
        self.stager = stager
        self.publisher = publisher
        self.office = office
        self.elector = elector
        self.rollouts = rollouts
        self.flips = flips
        self.clock = clock
        self._redis_faults: dict[str, str] = {"read": "not read yet"}
        self.peer_catalog = peer_catalog
        self.placer = placer
        self.reader = reader
        self.alarms = alarms
        alarms.told = self._tell_alarm
        self._incarnation = secrets.token_hex(8)
        self._has_reported = False
        self._resume_by = ""
        self.crew = Crew()
        self._got_further: set[ModelName] = set()
        """Models of which the next report tells something that a rollout waits for."""
        self._sync_wake = asyncio.Event()
        self._report_wake = asyncio.Event()
        self._collect_wake = asyncio.Event()

    # --- life --------------------------------------------------------------------------------------------------------

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
        loops = (
            self._sync_loop,
            self._listen_loop,
            self._report_loop,
            self._collect_loop,
            self.elector.run,
            self.rollouts.run,
            self.placer.run,
        )
        watches = (
            self.crew.watch,
            self.activator.crew.watch,
            self.office.crew.watch,
            self.flips.crew.watch,
            self.rollouts.crew.watch,
        )
        tasks = [asyncio.create_task(loop(), name=loop.__qualname__) for loop in (*loops, *watches)]
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
        await self.crew.close()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)

    # --- authority ---------------------------------------------------------------------------------------------------

    async def promoted(self, authority: Authority, ahead: Ahead | None) -> None:
        """Take office: know all there is to know, say so in the log, give Redis back what it lost, and begin."""
        await self._refresh(everything=True)
        if ahead is not None and self.book.applied < ahead.id:  # else Redis has it, and has told us by now
            await self._catch_up(ahead)
        why = await self.publisher.take_office()
        await self.publisher.restore()
        self.office.enter()
        self._report_wake.set()
        log.info("primary.changed", epoch=authority.epoch, why=why)
        if self._resume_by:
            await self._resume(self._resume_by)

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
        await self.office.leave()
        self._report_wake.set()
        log.warning("lease.lost", reason=reason, next="this node follows as a replica")

    # --- reading -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may have changed: reread soon."""
        self._sync_wake.set()

    async def _sync_loop(self) -> None:
        pause_s, everything = REDIS_PAUSE_S[0], True
        while True:
            try:
                await self._refresh(everything=everything)
                pause_s, everything = REDIS_PAUSE_S[0], False
                await self._restore_if_behind()
                await _wait(self._sync_wake, self.settings.poll_s)
            except (RemoteFault, AuthorityLost) as error:
                self.redis_failed("read", error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, REDIS_PAUSE_S[1])
            except ModelsyncError as error:
                log.warning("catalog.unread", error=str(error), next="what is active goes on; read again")
                self._redis_faults["read"] = str(error)
                await asyncio.sleep(REDIS_PAUSE_S[1])

    async def _refresh(self, *, everything: bool) -> None:
        await self.book.refresh(self.activator.wake, everything=everything)
        if not self.book.nodes:
            await self._refresh_nodes()
        self._redis_answered("read")

    async def _refresh_nodes(self) -> None:
        """Read who else is there; the election counts its majorities and ranks its candidates by it."""
        await self.book.refresh_nodes()
        self._tell_elector()
        reported, forgotten = {node.id for node in self.book.nodes}, self.book.fleet.forgotten
        await self.elector.note_members(frozenset((self.book.members | reported) - forgotten))
        returned = [node.id for node in self.book.nodes if node.id in forgotten and not node.lost]
        if returned and self.elector.authority is not None:
            await self.publisher.fleet_change(
                lambda record, at: fleets.remembered(record, returned, at), "node.returned", ", ".join(returned)
            )
        for node in self.book.nodes:
            self.elector.note_epoch(node.epoch)
        self._look_for_twin()

    def _look_for_twin(self) -> None:
        """After our own first report only another living process can have written one under this id."""
        for node in self.book.nodes:
            if node.id == self.identity.node and self._has_reported and node.incarnation != self._incarnation:
                self.alarms.raised("node.twin", f"{node.id} at {node.url or 'no address'} and at {self.identity.url}")

    def _tell_elector(self) -> None:
        rivals = [Rival(n.id, n.applied, n.priority, n.eligible and not n.lost) for n in self.book.nodes]
        self.elector.set_eligibility(paused=self.book.fleet.paused and not self._resume_by, rivals=rivals)

    async def _restore_if_behind(self) -> None:
        if self.book.redis_behind and self.elector.authority is not None:
            await self.publisher.restore()

    @property
    def redis_error(self) -> str | None:
        """What keeps this node from reading or writing in Redis; None: nothing. One can fail without the other."""
        faults = [self._redis_faults[what] for what in ("read", "report") if what in self._redis_faults]
        return "; ".join(dict.fromkeys(faults)) or None

    def redis_failed(self, what: str, error: ModelsyncError) -> None:
        """``what``: read, report, or events, whose loss costs only delay. Told once, until it works again."""
        if what not in self._redis_faults:
            log.warning("redis.lost", what=what, error=str(error), next="models go on being served; tried again")
        self._redis_faults[what] = str(error)

    def _redis_answered(self, what: str) -> None:
        if self._redis_faults.pop(what, None) is not None:
            log.info("redis.reached", what=what)

    async def _listen_loop(self) -> None:
        pause_s = REDIS_PAUSE_S[0]
        while True:
            try:
                async for heard in self.bus.listen():
                    pause_s = REDIS_PAUSE_S[0]
                    self._redis_answered("events")
                    if isinstance(heard, CommandHeard):
                        await self._heard(heard.text)
                    elif heard.event == "rollout.flipped" and await self.flips.signal(heard.model):
                        continue
                    else:
                        self._woken(heard)
            except ModelsyncError as error:
                self.redis_failed("events", error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, REDIS_PAUSE_S[1])

    def _woken(self, heard: Woken) -> None:
        """Reread what the announcement may have changed; without a hint, everything."""
        if heard.event == "rollout.reported":
            self.rollouts.wake()
        if heard.event in _NO_CHANGE:
            return  # it changes no catalog: a fleet of N would reread it N times for each switch
        if heard.node != self.identity.node:
            self._sync_wake.set()
        if heard.event not in ("version.published", "wish.changed") and not heard.event.startswith("rollout."):
            self.elector.nudge()

    # --- commands ----------------------------------------------------------------------------------------------------

    async def _heard(self, text: str) -> None:
        """A command from the control channel: the holder answers it, everyone else leaves it alone."""
        authority = self.elector.authority
        if authority is None:
            return
        try:
            result = await self.execute(text, by="redis-cli")
            event, fields = "command.done", result
        except ModelsyncError as error:
            event, fields = "command.refused", {"reason": str(error)}
        answer = announcement(event, self.identity.fleet, authority.epoch, "", command=text[:200], **fields)
        try:
            await self.catalog.answer(answer)
        except ModelsyncError as error:
            log.warning("command.unanswered", command=text[:200], error=str(error), next="what it did stays done")

    async def execute(self, text: str, by: str) -> dict[str, object]:
        """Run one command in plain words. Raises BadName, PolicyRefusal, NoSuchVersion, AuthorityLost, RemoteFault."""
        command = commands.parse(text)
        if command.verb in commands.FLEET_VERBS:
            return await self._fleet_command(command, by)
        if command.verb == "rollout":
            return await self.rollouts.command(command, by)
        record = await self.publisher.command(command, by)
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
            await self.publisher.fleet_change(
                lambda record, at: fleets.paused(record, by, at), "fleet.paused", f"by {by}"
            )
        elif self.elector.authority is not None:
            await self._resume(by)
        else:
            # Nobody holds the lease, or nobody can be reached who does: this node resumes for itself, becomes primary
            # if no other is, and writes it down then.
            self._resume_by = by
            self._tell_elector()
        return {"paused": command.verb == "pause"}

    async def _forget(self, node: str, by: str) -> dict[str, object]:
        fleets.forgettable(node, self.book.nodes)
        await self.publisher.fleet_change(
            lambda record, at: fleets.forgot(record, node, at), "node.forgotten", f"{node}, by {by}"
        )
        await self.catalog.forget(NodeId(node))
        await self._refresh_nodes()
        return {"forgotten": node}

    async def _resume(self, by: str) -> None:
        self._resume_by = ""
        await self.publisher.fleet_change(fleets.resumed, "fleet.resumed", f"by {by}")

    async def _switchover(self, target: str, by: str) -> dict[str, object]:
        """Write the job down, then let go; the next primary writes what came of it."""
        chosen = fleets.switchover_target(target, self.identity.node, self.book.nodes)
        job = Switchover(self.identity.node, chosen, by, self.clock.wall_ms())
        try:
            await self.publisher.fleet_change(
                lambda record, at: fleets.handing_over(record, job, at), "switchover.begun", f"to {chosen}, by {by}"
            )
        except LocalFault as error:  # of this disk, after Redis has it: all the more reason to hand over
            log.warning("switchover.unsaved", error=str(error), next="the lease is handed over all the same")
        await self.office.leave()
        await self.elector.release(chosen)
        return {"switchover": chosen, "state": job.state}

    # --- reporting ---------------------------------------------------------------------------------------------------

    async def changed(self, name: ModelName, what: str, version: Version | None) -> None:
        """A model's state here moved: report it, and announce an activation."""
        self._report_wake.set()
        rollout = self.book.record(name).rollout
        if rollout is not None and rollout.open:
            self._got_further.add(name)
        if what not in ("activated", "rejected"):
            return
        self._collect_wake.set()
        text = announcement(
            f"version.{what}",
            self.identity.fleet,
            self.elector.epoch,
            "",
            model=name,
            version=version,
            digest=str(self.book.record(name).require(version).digest) if version else None,
            node=self.identity.node,
            reason=self.activator.gates.reason(name, version) if version and what == "rejected" else None,
        )
        self.crew.start(self._announce(text), "announce")

    def _tell_alarm(self, kind: str, what: str) -> None:
        text = announcement(
            "alarm.raised", self.identity.fleet, self.elector.epoch, "", kind=kind, what=what, node=self.identity.node
        )
        self.crew.start(self._announce(text), "alarm")

    async def _announce(self, text: str) -> None:
        with contextlib.suppress(ModelsyncError):
            await self.catalog.announce(text)

    async def _report_loop(self) -> None:
        nodes_due_s = 0.0
        while True:
            try:
                if self.clock.boottime_s() >= nodes_due_s:  # not with each report of a busy node: it costs N reads
                    nodes_due_s = self.clock.boottime_s() + REPORT_EVERY_S
                    await self._refresh_nodes()  # before our own report hides what a twin has written
                further, self._got_further = self._got_further, set()
                await self.catalog.report(self.identity.node, self.report())
                await self._tell_holder(further)
                self._has_reported = True
                self._redis_answered("report")
            except ModelsyncError as error:
                self.redis_failed("report", error)
            await _wait(self._report_wake, REPORT_EVERY_S)
            await asyncio.sleep(REPORT_PAUSE_S)

    async def _tell_holder(self, names: set[ModelName]) -> None:
        """A report about an open rollout is out: its holder reads it now rather than at its next look."""
        for name in sorted(names):
            await self.catalog.announce(
                announcement(
                    "rollout.reported",
                    self.identity.fleet,
                    self.elector.epoch,
                    "",
                    model=name,
                    node=self.identity.node,
                )
            )

    def report(self) -> dict[str, str]:
        """The fields of ``node:ID``."""
        extra: dict[str, object] = {}
        troubles = (self.settings.config_error, self.elector.trouble, self._redis_faults.get("events"))
        for key, value in (
            ("error", "; ".join(filter(None, troubles))),
            ("transfers", self.activator.transfers()),
            ("refusals", dict(list(self.office.refusals().items())[:50])),
            ("orphans", {name: self._orphan_paths(record) for name, record in self.book.orphans.items()}),
            ("fencing", self.elector.fencing),
            ("labels", list(self.settings.labels)),
            ("alarms", self.alarms.sentences(5)),
            ("placement_error", self.placer.trouble),
            ("serve_url", self.settings.serve_url),
            ("capacity_bytes", self.store.capacity_bytes()),
            ("disk_full", self.activator.disk_full),
            ("asked", sorted(self.activator.keeper.asked)),
        ):
            if value:
                extra[key] = value
        failed = [line for line in self.activator.report().values() if line["error"]]
        return {
            "id": self.identity.node,
            "role": self.elector.role,
            "url": self.identity.url,
            "rack": self.identity.labels.rack,
            "zone": self.identity.labels.zone,
            "state": "degraded" if failed or self.settings.config_error else "ok",
            "epoch": str(self.elector.epoch),
            "applied": str(self.book.applied),
            "priority": str(self.elector.settings.priority),
            "eligible": "" if self.elector.settings.excluded else "yes",
            "incarnation": self._incarnation,
            "models": json.dumps(self.activator.report(), ensure_ascii=False),
            "extra": json.dumps(extra, ensure_ascii=False),
        }

    def _orphan_paths(self, record: ModelRecord) -> dict[str, str]:
        """Version to the tree that can be published again."""
        return {
            str(number): str(self.store.tree_path(record.name, entry.digest))
            for number, entry in sorted(record.versions.items())
        }

    # --- garbage -----------------------------------------------------------------------------------------------------

    async def _collect_loop(self) -> None:
        while True:
            await _wait(self._collect_wake, COLLECT_EVERY_S)
            await asyncio.sleep(COLLECT_PAUSE_S)
            try:
                await self.collect()
            except ModelsyncError as error:
                log.warning("garbage.uncollected", error=str(error), next="nothing was removed; tried again later")

    async def collect(self, *, dry_run: bool = False) -> dict[str, int]:
        """Remove what no retained version needs, a slice at a time: publishes and promises go on in between.

        Raises: LocalFault, MalformedMessage of a damaged kept manifest.
        """
        total: dict[str, int] = {}
        at_most = None if dry_run else COLLECT_AT_ONCE
        while True:
            removed = await self._collect_slice(at_most, dry_run=dry_run)
            total = {what: total.get(what, 0) + count for what, count in removed.items()}
            if at_most is None or sum(removed.values()) - removed["size_bytes"] < at_most:
                break
            await asyncio.sleep(COLLECT_BREATH_S)
        if any(total.values()) and not dry_run:
            log.info("garbage.collected", **total)
        return total

    async def _collect_slice(self, at_most: int | None, *, dry_run: bool) -> dict[str, int]:
        async with self.publisher.gate.alone():  # what is kept is looked up anew: a wish may have moved meanwhile
            keep = await asyncio.to_thread(self.retained)
            if not dry_run:
                await self.activator.gates.withdraw(keep)
            return await asyncio.to_thread(self.store.collect, keep, dry_run=dry_run, at_most=at_most)

    def retained(self) -> dict[ModelName, frozenset[Digest]]:
        """Manifests that are kept, by model: all that this host must have, and what its cache has room for. Blocks."""
        firm: dict[ModelName, set[Digest]] = {}
        loose: dict[Digest, ModelName] = {}
        for name, record in self.book.records.items():
            active = self.activator.records.get(name)
            kept, cached = self.activator.keeper.retained(record, active, self.activator.wish(name))
            orphans = self.book.orphans.get(name)
            kept |= {entry.digest for entry in orphans.versions.values()} if orphans else set()
            if active is not None:
                kept |= {active.digest, active.previous_digest or active.digest}
            firm[name] = kept
            loose |= dict.fromkeys(cached - kept, name)
        for digest in self.activator.keeper.in_cache(loose):
            firm[loose[digest]].add(digest)
        return {name: frozenset(digests) for name, digests in firm.items()}

    async def ask(self, name: ModelName, *, wanted: bool) -> None:
        """Hold a model here, or no longer than this host must. Raises DiskFull, DiskFailed."""
        await self.activator.keeper.ask(name, wanted=wanted)
        self.activator.wake([name])
        self._collect_wake.set()

    # --- peers and reload --------------------------------------------------------------------------------------------

    def peers(self, name: ModelName, number: Version) -> list[Peer]:
        """Who could serve a version: the primary first, then living nodes that hold it, then those that may pull it."""
        primary, lease = self.elector.lease.holder, self.elector.lease
        others = [node for node in self.book.nodes if node.id != self.identity.node and node.url and not node.lost]
        peers = [self._peer(node, node.id == primary, name, number) for node in others]
        peers.sort(key=lambda peer: (not peer.primary, not peer.holds, peer.id))
        if lease.url and lease.holder != self.identity.node and all(peer.id != lease.holder for peer in peers):
            peers.insert(0, Peer(lease.holder, lease.url, primary=True))
        depot = self.activator.keeper.depot
        return [*peers, depot.peer] if depot is not None else peers

    def _peer(self, node: NodeReport, primary: bool, name: ModelName, number: Version) -> Peer:
        holds = primary or number in node.models.get(name, {}).get("held", ())
        return Peer(node.id, node.url, distance(self.identity.labels, node.labels), primary, holds)

    def reload(self, settings: LiveSettings) -> None:
        """Take on what an edit of the config file changed."""
        pins_changed = settings.pins != self.settings.pins
        gates_changed = any(settings.gates(name) != self.settings.gates(name) for name in self.book.records)
        storage_changed = settings.storage != self.settings.storage
        self.settings = settings
        self.activator.pins = settings.pins
        self.activator.gates.settings = settings.gates
        self.activator.keeper.settings = settings.storage
        self.stager.concurrency = settings.concurrency
        self.elector.settings = replace(
            self.elector.settings, priority=settings.priority, nofailover=settings.nofailover
        )
        self._report_wake.set()
        if pins_changed or gates_changed or storage_changed:
            self.activator.wake()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until it is set or the time is over; it is clear afterwards.

    asyncio.timeout, not wait_for: before Python 3.12 the latter loses a cancellation that comes with the event.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()
