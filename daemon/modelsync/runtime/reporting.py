"""What a node says of itself: its report in Redis, and announcements of what has happened here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Mapping

from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import ModelsyncError
from modelsync.core.ids import ModelName, Version
from modelsync.core.messages import announcement
from modelsync.ports import Catalog, Clock, VersionStore
from modelsync.runtime.activator import Activator
from modelsync.runtime.alarms import Alarms
from modelsync.runtime.book import Book
from modelsync.runtime.crew import Crew
from modelsync.runtime.elector import Elector
from modelsync.runtime.following import Following
from modelsync.runtime.office import Office
from modelsync.runtime.placer import Placer
from modelsync.runtime.redis_health import RedisHealth
from modelsync.runtime.settings import Identity, LiveSettings
from modelsync.runtime.under_way import UnderWay
from modelsync.runtime.wake import Wake

REPORT_EVERY_S = 2.0
WHOLE_EVERY_S = 60.0
"""However little is new: should somebody have changed it in Redis, it is right again by then."""
REPORT_PAUSE_S = 0.03
"""What changes within this time is told in one report, and the switch that is under way goes first."""


class Reporting:
    """One node's reports."""

    def __init__(
        self,
        *,
        identity: Identity,
        settings: LiveSettings,
        book: Book,
        catalog_: Catalog,
        store: VersionStore,
        activator: Activator,
        elector: Elector,
        office: Office,
        placer: Placer,
        following: Following,
        health: RedisHealth,
        alarms: Alarms,
        clock: Clock,
        under_way: UnderWay,
        switched: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.crew = Crew()
        self.switched = switched
        """Told when something may be left to collect: a switch, a rejection, what is let go, a full disk."""
        self._identity = identity
        self._book = book
        self._catalog = catalog_
        self._store = store
        self._activator = activator
        self._elector = elector
        self._office = office
        self._placer = placer
        self._following = following
        self._health = health
        self._alarms = alarms
        self._clock = clock
        self._under_way = under_way
        self._incarnation = secrets.token_hex(8)
        self._has_reported = False
        self._writing = asyncio.Lock()
        self._written: dict[str, str] | None = None
        """What Redis is known to have; None: nobody knows."""
        self._whole_due_s = 0.0
        self._changes = self._beats = 0
        self._beat = ""
        self._got_further: set[ModelName] = set()
        """Models of which the next report tells something that a rollout waits for."""
        self._wake = Wake()

    def wake(self) -> None:
        """Something that others read of this node has changed."""
        self._wake.set()

    async def changed(self, name: ModelName, what: str, version: Version | None) -> None:
        """A model's state here moved: report it, and announce an activation."""
        self._wake.set()
        rollout = self._book.record(name).rollout
        if rollout is not None and rollout.open:
            self._got_further.add(name)
        if what in ("activated", "rejected", "freed", "full"):
            self.switched()
        if what not in ("activated", "rejected"):
            return
        text = announcement(
            f"version.{what}",
            self._identity.fleet,
            self._elector.epoch,
            "",
            model=name,
            version=version,
            digest=str(self._book.record(name).require(version).digest) if version else None,
            node=self._identity.node,
            reason=self._activator.reason(name, version) if version and what == "rejected" else None,
        )
        self.crew.start(self._announce(text), "announce")

    def tell_alarm(self, kind: str, what: str) -> None:
        text = announcement(
            "alarm.raised",
            self._identity.fleet,
            self._elector.epoch,
            "",
            kind=kind,
            what=what,
            node=self._identity.node,
        )
        self.crew.start(self._announce(text), "alarm")

    async def _announce(self, text: str) -> None:
        with contextlib.suppress(ModelsyncError):
            await self._catalog.announce(text)

    async def run(self) -> None:
        nodes_due_s = 0.0
        while True:
            try:
                if self._clock.boottime_s() >= nodes_due_s:  # not with each report of a busy node
                    await self._following.refresh_nodes()
                    nodes_due_s = self._clock.boottime_s() + self._following.look_every_s
                    self._look_for_twin()  # before our own report hides what a twin has written
                further, self._got_further = self._got_further, set()
                await self.write()
                await self._tell_holder(further)
                self._has_reported = True
                self._health.answered("report")
            except ModelsyncError as error:
                self._health.failed("report", error)
            await self._wake.wait(REPORT_EVERY_S)
            await asyncio.sleep(REPORT_PAUSE_S)

    async def write(self) -> None:
        """Write what of the report is new, and that this node is alive. Raises RedisUnavailable, RedisRefused."""
        async with self._writing:
            fields, now_s = self.report(), self._clock.boottime_s()
            whole = self._written is None or now_s >= self._whole_due_s
            before = self._written or {}
            self._written = None  # until it is known to be there
            if _said(fields) != _said(before):
                self._changes += 1
            new = fields if whole else {key: text for key, text in fields.items() if before.get(key) != text}
            after = "" if whole else self._beat
            if not await self._catalog.report(self._identity.node, new, self._next_beat(), after=after):
                self._changes += 1  # others may have read what this Redis had kept of it
                await self._catalog.report(self._identity.node, fields, self._next_beat(), after="")
            if whole:
                self._whole_due_s = now_s + WHOLE_EVERY_S
            self._written = fields

    def _next_beat(self) -> str:
        self._beats += 1
        self._beat = f"{self._incarnation[:8]}.{self._changes} {self._beats}"
        return self._beat

    async def _tell_holder(self, names: set[ModelName]) -> None:
        """A report about an open rollout is out: its holder reads it now rather than at its next look."""
        for name in sorted(names):
            await self._catalog.announce(
                announcement(
                    "rollout.reported",
                    self._identity.fleet,
                    self._elector.epoch,
                    "",
                    model=name,
                    node=self._identity.node,
                )
            )

    def report(self) -> dict[str, str]:
        """The fields of ``node:ID``."""
        extra: dict[str, object] = {}
        sealing = "" if self._elector.settings.excluded else self._activator.signing.sealing_fault
        troubles = (self.settings.config_error, self._elector.trouble, self._health.of("events"), sealing)
        for key, value in (
            ("error", "; ".join(filter(None, troubles))),
            ("refusals", dict(list(self._office.refusals().items())[:50])),
            ("orphans", {name: self._orphan_paths(record) for name, record in self._book.orphans.items()}),
            ("fencing", self._elector.fencing),
            ("labels", list(self.settings.labels)),
            ("alarms", self._alarms.sentences(5)),
            ("placement_error", self._placer.trouble),
            ("storage_error", self._activator.keeper.trouble(self._activator.report())),
            ("serve_url", self.settings.serve_url),
            ("capacity_bytes", self._store.capacity_bytes()),
            ("disk_full", self._activator.disk_full),
            ("leaving", self._activator.keeper.settings.leaving),
            ("asked", sorted(self._activator.keeper.asked)),
        ):
            if value:
                extra[key] = value
        failed = [line for line in self._activator.report().values() if line["error"]]
        return {
            "id": self._identity.node,
            "role": self._elector.role,
            "url": self._identity.url,
            "rack": self._identity.labels.rack,
            "zone": self._identity.labels.zone,
            "state": "degraded" if failed or self.settings.config_error else "ok",
            "epoch": str(self._elector.epoch),
            "applied": str(self._book.applied),
            "priority": str(self._elector.settings.priority),
            "eligible": "" if self._elector.settings.excluded else "yes",
            "incarnation": self._incarnation,
            "models": json.dumps(self._activator.report(), ensure_ascii=False),
            "extra": json.dumps(extra, ensure_ascii=False),
            "moving": json.dumps({key: line for key, line in self._under_way.lines().items() if line}),
        }

    def _orphan_paths(self, record: ModelRecord) -> dict[str, str]:
        """Version to the tree that can be published again."""
        return {
            str(number): str(self._store.tree_path(record.name, entry.digest))
            for number, entry in sorted(record.versions.items())
        }

    def _look_for_twin(self) -> None:
        """After our own first report only another living process can have written one under this id."""
        for node in self._book.nodes:
            if node.id == self._identity.node and self._has_reported and node.incarnation != self._incarnation:
                self._alarms.raised("node.twin", f"{node.id} at {node.url or 'no address'} and at {self._identity.url}")
                self._written = None  # so that what stands there is not the other's for long


def _said(fields: Mapping[str, str]) -> dict[str, object]:
    """What others must read: of what moves, that it does, and not each time how far it is."""
    moving = json.loads(fields.get("moving", "{}"))
    return {**fields, "moving": [(kind, sorted(lines)) for kind, lines in sorted(moving.items())]}
