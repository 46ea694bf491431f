"""What this host holds of models, mode by mode: whether it must, whether it may let go, what it keeps besides.

This file gathers what core.storage.modes and core.storage.cache decide upon. It must not know how bytes come or go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from modelsync.core import policy
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import RemoteFault
from modelsync.core.ids import Digest, ModelName, NodeId, Version
from modelsync.core.storage import cache, modes
from modelsync.core.storage.modes import Demand, Mode
from modelsync.ports import ActiveRecord, AskedModels, Depot, VersionCache
from modelsync.runtime.book import Book


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """What a reload may change."""

    ahead: tuple[str, ...] = ("*",)
    cache_bytes: int = 0
    replace_after_s: float = 600.0
    moves: int = 4
    keep: Callable[[ModelName], int] = lambda name: 5
    keep_days: Callable[[ModelName], float] = lambda name: 0.0
    mode: Callable[[ModelName], tuple[Mode, int]] = lambda name: ("replicated", 0)


class Keeper:
    """One host's part in the fleet's storage."""

    def __init__(
        self,
        *,
        node: NodeId,
        book: Book,
        settings: StorageSettings,
        asked: AskedModels,
        used: VersionCache,
        depot: Depot | None,
    ) -> None:
        self._node = node
        self._book = book
        self._asked_disk = asked
        self._used = used
        self.depot = depot
        self.settings = settings
        self.asked: frozenset[str] = frozenset()
        self._released: set[ModelName] = set()
        """Models of which others were seen to have everything that this host needs not have."""

    async def load(self) -> None:
        """Raises DiskFailed."""
        self.asked = await asyncio.to_thread(self._asked_disk.load)

    async def ask(self, name: ModelName, *, wanted: bool) -> None:
        """Hold a model from now on, or no longer than needed. Raises DiskFull, DiskFailed."""
        self.asked = self.asked | {name} if wanted else self.asked - {name}
        await asyncio.to_thread(self._asked_disk.save, self.asked)

    def must_hold(self, name: ModelName) -> bool:
        """Whether this host must have the wanted version active."""
        demand = Demand(self.settings.ahead, self.asked)
        return modes.holds(self._book.record(name).placement, self._node, name, demand)

    def where(self, name: ModelName) -> str:
        """Where a model is that this host need not hold, as a phrase."""
        at = self._book.record(name).placement
        if at.mode == "partitioned":
            return f"it lies on {', '.join(at.owners)}, and is loaded here when it is asked for"
        return "it lies in the object store, and is loaded here when it is asked for"

    def holders(self, name: ModelName, number: Version) -> frozenset[str]:
        """Living nodes that reported a version verified."""
        living = (node for node in self._book.nodes if not node.lost)
        return frozenset(node.id for node in living if number in node.models.get(name, {}).get("held", ()))

    def versions(self, record: ModelRecord, active: ActiveRecord | None, wish: policy.Wish) -> frozenset[Version]:
        """What a host that holds everything keeps of a model."""
        return policy.retained(
            record,
            self.settings.keep(record.name),
            self.settings.keep_days(record.name),
            active.version if active else None,
            active.previous_version if active else None,
            wish,
        )

    def also_held(self, record: ModelRecord) -> list[Version]:
        """Older versions that an owner has besides what is wanted, as far as anybody living has them."""
        if record.placement.mode != "partitioned" or self._node not in record.placement.owners:
            return []
        numbers = self.versions(record, None, policy.wanted(record, None))
        return sorted(number for number in numbers if number in record.versions and self.holders(record.name, number))

    # --- letting go --------------------------------------------------------------------------------------------------

    async def let_go(self, record: ModelRecord, held: Iterable[Version]) -> bool:
        """Whether all that this host holds of a model may be removed; remembered for ``retained``."""
        for number in held:
            in_store = await self._in_store(record, number)
            if not modes.may_let_go(record.placement, self._node, self.holders(record.name, number), in_store=in_store):
                self._released.discard(record.name)
                return False
        self._released.add(record.name)
        return True

    async def _in_store(self, record: ModelRecord, number: Version) -> bool:
        if record.placement.mode != "shared" or self.depot is None:
            return False
        try:
            return await asyncio.to_thread(self.depot.has_version, record.name, number, record.versions[number].digest)
        except RemoteFault:
            return False

    # --- what is kept ------------------------------------------------------------------------------------------------

    def retained(
        self, record: ModelRecord, active: ActiveRecord | None, wish: policy.Wish
    ) -> tuple[set[Digest], set[Digest]]:
        """Manifests of a model that are kept whatever they take, and those that are kept while there is room."""
        numbers = self.versions(record, active, wish)
        listed = {number: record.versions[number].digest for number in numbers if number in record.versions}
        mode, held = record.placement.mode, self.must_hold(record.name)
        if mode == "replicated" or (mode == "partitioned" and self._node in record.placement.owners):
            return set(listed.values()), set()
        if not held and record.name not in self._released:
            return set(listed.values()), set()
        firm = {listed[wish.version]} if held and wish.version in listed else set()
        if active is not None:
            firm |= {active.digest, active.previous_digest or active.digest}
        return firm, {entry.digest for entry in record.versions.values()} - firm

    def in_cache(self, candidates: Iterable[Digest]) -> frozenset[Digest]:
        """Of what lies here without having to, what there is room for. Blocks. Raises DiskFailed."""
        found = [entry for digest in candidates if (entry := self._used.cached(digest)) is not None]
        return cache.kept(found, self.settings.cache_bytes)

    def used(self, digest: Digest) -> None:
        """A version is used now; blocks."""
        self._used.touch(digest)


def storage_report(names: Mapping[str, object], settings: StorageSettings) -> dict[str, object]:
    """This host's part in a status document: which models it holds by request, and its cache's bound."""
    return {"asked": sorted(names), "cache_bytes": settings.cache_bytes} if names else {}
