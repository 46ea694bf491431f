"""The catalog as Redis holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelsync.core.catalog import ModelRecord
from modelsync.core.election.lease import Authority, LeaseView
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import EntryId, ModelName, NodeId, Version
from modelsync.core.rollout.record import Rollout
from modelsync.core.status import NodeReport


@dataclass(frozen=True, slots=True)
class Change:
    """One catalog change as it is written: the log entry, the model's changed fields, the announcement."""

    id: EntryId
    model: str
    """Empty for a change of the fleet, not of a model."""
    version: Version | None
    digest: str | None
    log: Mapping[str, str]
    written: Mapping[str, str]
    removed: Sequence[str]
    announcement: str


@dataclass(frozen=True, slots=True)
class LogChanges:
    """The lease, and what the log says has changed: its end, and the models named since; None where it does not reach
    back so far."""

    lease: LeaseView
    tail: EntryId
    names: Sequence[ModelName] | None
    manifests: Sequence[bytes] = ()
    """Small manifests that came along in the log, unchecked: whoever uses one compares its digest."""


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """Records as Redis has them; one that cannot be parsed is left out, with its fault by its name."""

    records: Sequence[ModelRecord]
    fleet: FleetRecord
    faults: Mapping[ModelName, str]


@dataclass(frozen=True, slots=True)
class Glance:
    """As much of a model's record as a rollout's signal needs, and the lease, in one round trip."""

    lease: LeaseView
    id: EntryId
    desired: Version | None
    pinned: Version | None
    rollout: Rollout | None


@dataclass(frozen=True, slots=True)
class Beats:
    """Who belongs to the fleet, and what each that writes beats wrote last (``core.rollcall``)."""

    names: Sequence[str]
    beats: Mapping[str, str]


class Catalog(Protocol):
    """The catalog as Redis holds it. Every method raises RedisUnavailable, RedisRefused or MalformedMessage."""

    async def changes(self, after: EntryId) -> LogChanges: ...

    async def model_names(self) -> Sequence[ModelName]: ...

    async def read(self, names: Sequence[ModelName]) -> CatalogRead: ...

    async def glance(self, name: ModelName) -> Glance: ...

    async def append(self, authority: Authority, change: Change) -> None:
        """Write one change, fenced. Raises LeaseLost, StaleEpoch, VersionConflict too."""

    async def beats(self) -> Beats: ...

    async def reports(self, names: Sequence[str]) -> list[NodeReport]:
        """Those of these nodes that there are."""

    async def report(self, node: NodeId, fields: Mapping[str, str], beat: str, *, after: str) -> bool:
        """Write what of this node's report is new since the beat ``after``, and its beat; with ``""`` it is all of it.
        False: the rest is gone, and must be written again."""

    async def forget(self, node: NodeId) -> None: ...

    async def announce(self, text: str) -> None: ...

    async def answered(self) -> frozenset[str]: ...

    async def answer(self, authority: Authority, names: Sequence[str], text: str) -> bool:
        """What became of a command, fenced; False: it was answered before. Raises LeaseLost too."""
