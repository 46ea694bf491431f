"""One host's gates: steps 6 and 9 of an activation, and the memory of what did not pass them.

This file orders checks, hooks and health probes, and keeps rejections on disk before anything acts on them, so that a
restart does not try a rejected version again. What a rejection means is core.gates'; switching is the activator's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from modelsync.core import gates
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import HookFailed, VersionRejected
from modelsync.core.gates import Check, ModelGates, Rejection, Window
from modelsync.core.ids import Digest, ModelName, Version
from modelsync.ports import Candidate, Clock, RejectionDisk, Servers, Validator, Views

log = structlog.get_logger()


@dataclass
class Gates:
    """Validates before a swap, tells servers after it."""

    validator: Validator
    servers: Servers
    views: Views
    disk: RejectionDisk
    clock: Clock
    settings: Callable[[ModelName], ModelGates] = lambda name: ModelGates()
    node_pin: Callable[[ModelName], int | str | None] = lambda name: None
    rejections: dict[ModelName, list[Rejection]] = field(default_factory=dict)
    _passed: dict[Digest, Check] = field(default_factory=dict)
    """What was found good since the start, and by which check: staging has done it when the switch asks."""

    async def load(self) -> None:
        """Read what was rejected before. Raises LayoutCorrupt, DiskFailed."""
        self.rejections = await asyncio.to_thread(self.disk.load_rejections)

    # --- rejections --------------------------------------------------------------------------------------------------

    def require(self, record: ModelRecord, number: Version) -> None:
        """Raises VersionRejected while a rejection of this version stands."""
        entry = record.require(number)
        for item in self.rejections.get(record.name, ()):
            if item.digest == entry.digest and gates.still_rejected(item, record, self.node_pin(record.name)):
                raise VersionRejected(model=record.name, version=number, gate=item.gate, reason=item.reason)

    def shown(self, name: ModelName) -> dict[str, str]:
        """Version to what its gate said, for the node's report; the newest five."""
        return {
            str(item.version): f"{item.gate}: {gates.shortened(item.reason, 300)}"
            for item in self.rejections.get(name, [])[-5:]
        }

    async def reject(self, record: ModelRecord, number: Version, digest: Digest, error: VersionRejected) -> None:
        """Remember durably. Raises DiskFull, DiskFailed."""
        pin = self.node_pin(record.name)
        item = Rejection(
            model=record.name,
            version=number,
            digest=digest,
            gate=error.gate,
            reason=gates.shortened(error.reason),
            at_ms=self.clock.wall_ms(),
            asked=gates.asked_for(record, number),
            node_pin="" if pin is None else str(pin),
        )
        others = [old for old in self.rejections.get(record.name, ()) if old.digest != digest]
        kept = [*others, item][-gates.MAX_REJECTIONS :]
        await asyncio.to_thread(self.disk.save_rejections, record.name, kept)
        self.rejections = {**self.rejections, record.name: kept}
        log.warning(
            "version.rejected",
            model=record.name,
            version=number,
            gate=item.gate,
            reason=item.reason,
            next="this host does not try it again until somebody asks for it",
        )

    async def forgive(self, name: ModelName, digest: Digest) -> None:
        """A version that was rejected once has passed now."""
        kept = [item for item in self.rejections.get(name, ()) if item.digest != digest]
        if len(kept) != len(self.rejections.get(name, ())):
            await asyncio.to_thread(self.disk.save_rejections, name, kept)
            self.rejections = {**self.rejections, name: kept}

    def reason(self, name: ModelName, number: Version) -> str:
        """What its gate said of a version, for the announcement."""
        return self.shown(name).get(str(number), "")

    # --- before the swap ---------------------------------------------------------------------------------------------

    def checks(self, name: ModelName) -> bool:
        return not self.settings(name).check.empty

    async def validate(self, record: ModelRecord, candidate: Candidate) -> None:
        """Step 6. Raises VersionRejected, remembered; LocalFault where the check itself could not run."""
        check = self.settings(candidate.model).check
        if check.empty or self._passed.get(candidate.digest) == check:
            return
        try:
            await self.validator.validate(candidate, check)
        except VersionRejected as error:
            await self.reject(record, candidate.version, candidate.digest, error)
            raise
        self._passed = {**self._passed, candidate.digest: check}

    # --- after the swap ----------------------------------------------------------------------------------------------

    def tells(self, name: ModelName) -> bool:
        return self.settings(name).tells

    async def show(self, candidate: Candidate) -> None:
        """Put a version into the views of its model. Raises DiskFull, DiskFailed."""
        kinds = self.settings(candidate.model).views
        if kinds:
            await asyncio.to_thread(self.views.show, candidate, kinds)

    async def settle(self, candidate: Candidate, obsolete: Callable[[], bool]) -> None:
        """Step 9: views, hooks, readiness, the health window. Raises VersionRejected.

        Args:
            obsolete: whether something else is wanted by now; then the window ends without a verdict.
        """
        settings = self.settings(candidate.model)
        try:
            await self.show(candidate)
            await self.servers.tell(candidate, settings.hooks)
        except HookFailed as error:
            raise self._rejected(candidate, "servers", str(error)) from error
        window = Window(self.clock.boottime_s())
        while not settings.health.empty and window.verdict == "going on" and not obsolete():
            fault = await self.servers.probe(candidate, settings.health)
            window = gates.probed(window, settings.health, fault, self.clock.boottime_s())
            if window.verdict == "failed":
                raise self._rejected(candidate, "health", window.reason)
            if window.verdict == "going on":
                await asyncio.sleep(settings.health.interval_s)

    @staticmethod
    def _rejected(candidate: Candidate, gate: str, reason: str) -> VersionRejected:
        reason = gates.shortened(reason)
        return VersionRejected(model=candidate.model, version=candidate.version, gate=gate, reason=reason)

    async def tell_again(self, candidate: Candidate) -> None:
        """After a rollback: let the servers have the earlier version back. Raises HookFailed, LocalFault."""
        await self.show(candidate)
        await self.servers.tell(candidate, self.settings(candidate.model).hooks)

    async def withdraw(self, keep: Mapping[ModelName, frozenset[Digest]]) -> None:
        """Unlink from views what is about to be removed. Raises DiskFailed."""
        await asyncio.to_thread(self._withdraw, keep)

    def _withdraw(self, keep: Mapping[ModelName, frozenset[Digest]]) -> None:
        for name, digests in keep.items():
            self.views.withdraw(name, digests, self.settings(name).views)
