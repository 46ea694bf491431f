"""What this host holds of models, mode by mode: whether it must, whether it may let go, what it keeps besides.

This file gathers what core.storage.modes and core.storage.cache decide upon. It must not know how bytes come or go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelsync.core import policy
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import RemoteFault
from modelsync.core.ids import Digest, ModelName, NodeId, Version
from modelsync.core.storage import cache, modes, parts
from modelsync.core.storage.modes import Demand, Mode
from modelsync.ports import ActiveRecord, AskedModels, Depot, VersionCache
from modelsync.runtime.book import Book
from modelsync.runtime.inventory import Inventory

MAX_SHOWN = 20
"""Models in one sentence."""


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
    split_bytes: int = 0
    leaving: bool = False
    grace_s: float = 3600.0


@dataclass
class Retention:
    """What garbage collection leaves of one model, by its manifests."""

    firm: set[Digest] = field(default_factory=set)
    """Kept whatever they take."""
    loose: set[Digest] = field(default_factory=set)
    """Kept while there is room."""
    parts: dict[Digest, frozenset[int]] = field(default_factory=dict)
    """Of some of the loose, the parts that are kept whatever they take."""


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
        self.unswept: str | None = None
        """Why the object store's garbage stays, while this node is primary."""
        self._released: dict[ModelName, tuple[int, frozenset[tuple[Version, int]]]] = {}
        """By model, the number of its shares, and each (version, share) that its owners were seen to have."""

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
        """Where a model is that this host need not hold as a whole, as a phrase."""
        at = self._book.record(name).placement
        if mine := at.owned(self._node):
            owned = ", ".join(str(index + 1) for index in sorted(mine))
            which = (
                f"part {owned} of {len(at.shares)} lies" if len(mine) == 1 else f"parts {owned} of {len(at.shares)} lie"
            )
            return f"{which} here; the whole is loaded here when it is asked for"
        if at.mode == "partitioned":
            return f"it lies on {', '.join(at.everyone)}, and is loaded here when it is asked for"
        return "it lies in the object store, and is loaded here when it is asked for"

    def holders(self, record: ModelRecord, number: Version) -> tuple[frozenset[str], ...]:
        """For each share of a model, the living nodes that reported it verified."""
        count = len(record.placement.shares)
        return tuple(self.holders_of(record.name, number, share, count) for share in range(count))

    def holders_of(self, name: ModelName, number: Version, share: int, count: int) -> frozenset[str]:
        """The living nodes that reported one of ``count`` shares of a version verified, and said nothing else since."""
        living = (node for node in self._book.nodes if not node.lost and not node.stale)
        return frozenset(node.id for node in living if parts.holds(node.models.get(name, {}), number, share, count))

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
        at = record.placement
        mine = at.owned(self._node) if at.mode == "partitioned" else frozenset()
        numbers = self.versions(record, None, policy.wanted(record, None)) if mine else frozenset()
        return sorted(number for number in numbers if number in record.versions and self._is_had(record, number, mine))

    def _is_had(self, record: ModelRecord, number: Version, mine: Iterable[int]) -> bool:
        holders = self.holders(record, number)
        return all(holders[share] for share in mine)

    def parts_held(self, record: ModelRecord) -> tuple[frozenset[int], list[Version]]:
        """(parts, versions) that this host has without having the whole; no parts: none."""
        at = record.placement
        mine = at.owned(self._node) if at.mode == "partitioned" else frozenset()
        if not mine or at.owns_all(self._node):
            return frozenset(), []
        newest = {number for number in (record.wanted, record.head) if number is not None and number in record.versions}
        return mine, sorted(newest | set(self.also_held(record)))

    # --- letting go --------------------------------------------------------------------------------------------------

    async def let_go(self, record: ModelRecord, here: Inventory) -> bool:
        """Whether all that this host holds of a model and need not may be removed; remembered for ``retained``."""
        at, released, all_of_it = record.placement, set(), True
        others = frozenset(range(len(at.shares))) - at.owned(self._node)
        kept = self.versions(record, None, policy.wanted(record, None))
        for number in here.touched:  # what the fleet keeps no longer is in nobody's store, and nobody's loss
            in_store = number not in kept or await self._in_store(record, number)
            holders = self.holders(record, number)
            for share in others:
                if modes.may_let_go(at, share, self._node, holders[share], in_store=in_store):
                    released.add((number, share))
                else:
                    all_of_it = False
        self._released[record.name] = (len(at.shares), frozenset(released))
        return all_of_it

    async def let_go_of_parts(self, record: ModelRecord, here: Inventory) -> None:
        """The same on a host that has the whole for a reason of its own: what it has besides need not stay."""
        if record.placement.mode == "partitioned" and not record.placement.owns_all(self._node):
            await self.let_go(record, here)

    async def _in_store(self, record: ModelRecord, number: Version) -> bool:
        if record.placement.mode != "shared" or self.depot is None:
            return False
        try:
            return await asyncio.to_thread(self.depot.has_version, record.name, number, record.versions[number].digest)
        except RemoteFault:
            return False

    # --- what is kept ------------------------------------------------------------------------------------------------

    def retained(self, record: ModelRecord, active: ActiveRecord | None, wish: policy.Wish) -> Retention:
        """What of a model is kept whatever it takes, and what while there is room."""
        numbers = self.versions(record, active, wish)
        listed = {number: record.versions[number].digest for number in numbers if number in record.versions}
        at, must = record.placement, self.must_hold(record.name)
        if at.mode == "replicated" or (at.mode == "partitioned" and at.owns_all(self._node)):
            return Retention(set(listed.values()))
        kept = Retention({listed[wish.version]} if (must or wish.pinned) and wish.version in listed else set())
        if active is not None:
            kept.firm |= {active.digest, active.previous_digest or active.digest}
        for number, digest in listed.items():
            shares = frozenset() if must and at.mode == "shared" else self._unreleased(record, number)
            if len(shares) == len(at.shares):
                kept.firm.add(digest)
            elif shares:
                kept.parts[digest] = shares
        kept.loose |= {entry.digest for entry in record.versions.values()} - kept.firm
        return kept

    def _unreleased(self, record: ModelRecord, number: Version) -> frozenset[int]:
        """Shares of a version that this host owns, or was not seen to be free to let go."""
        at, (count, released) = record.placement, self._released.get(record.name, (0, frozenset()))
        free = {share for each, share in released if each == number} if count == len(at.shares) else set()
        return frozenset(range(len(at.shares))) - free | at.owned(self._node)

    def in_cache(self, candidates: Iterable[Digest], besides: Mapping[Digest, frozenset[Digest]]) -> frozenset[Digest]:
        """Of what lies here without having to, what there is room for. Blocks. Raises DiskFailed.

        Args:
            besides: by manifest, the objects of it that must lie here; they take no room.
        """
        nothing: frozenset[Digest] = frozenset()
        found = [self._used.cached(digest, besides.get(digest, nothing)) for digest in candidates]
        return cache.kept([entry for entry in found if entry is not None], self.settings.cache_bytes)

    def used(self, digest: Digest) -> None:
        """A version is used now; blocks."""
        self._used.touch(digest)

    # --- for people --------------------------------------------------------------------------------------------------

    def trouble(self, lines: Mapping[str, Mapping[str, Any]]) -> str | None:
        """What is wrong with the object store, and what cannot be had here for it. ``lines``: as this host reports."""
        if self.depot is None or self.depot.trouble is None:
            return self.unswept
        lacking = [name for name, line in sorted(lines.items()) if self._lacks(ModelName(name), line)]
        cannot = f"not to be had here: {', '.join(lacking[:MAX_SHOWN])}" if lacking else "everything wanted is here"
        return f"{self.depot.trouble}; what is cached goes on; {cannot}"

    def _lacks(self, name: ModelName, line: Mapping[str, Any]) -> bool:
        wanted = self._book.record(name).wanted
        shared = self._book.record(name).placement.mode == "shared"
        return shared and wanted is not None and wanted not in line.get("held", ())
