"""What the fleet knows of one model, and every change that may be made to it.

This file alone decides what a publish, a pin, an update or a rollback means for the record. It must not know where the
record is kept, nor how it is written down: ``catalog_fields`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from modelsync.core.errors import BadName, NoSuchVersion, PolicyRefusal, VersionConflict
from modelsync.core.ids import ZERO_ID, Digest, EntryId, ModelName, Version, alias_name, same_command, version
from modelsync.core.rollout import record as rollout
from modelsync.core.rollout.record import Rollout
from modelsync.core.storage.modes import REPLICATED, Placement

MAX_VERSIONS = 500
"""Records kept for one model; the oldest that nothing names are dropped first. Their manifests go with their bytes."""
MAX_ALIASES = 100
MAX_CHANGES = 50
"""Wishes remembered of one model, the newest: who asked for what. Publishes stand with their versions."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version, as lists show it; everything else stands in its manifest."""

    digest: Digest
    content: Digest
    id: EntryId
    size_bytes: int
    created_ms: int
    author: str = ""
    note: str = ""
    parent: Digest | None = None
    signature: str = ""
    """Of whoever published it (``core.signing``), as it was read: whether it counts is each host's to say."""


@dataclass(frozen=True, slots=True)
class WishChange:
    """One thing that somebody asked of the fleet: who, when, in which words, and what was wanted after it."""

    id: EntryId
    at_ms: int
    by: str
    command: str
    wanted: Version | None
    note: str = ""
    ask: str = ""
    """Under which names the command was heard on ``control``: what keeps it from being carried out twice."""

    @property
    def chooses(self) -> bool:
        """Whether it chose what is to run; an alias or a deletion does not."""
        return self.command.partition(" ")[0] in ("update", "pin", "unpin", "rollback", "rollout")


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model. ``id`` is that of the last change to any field."""

    name: ModelName
    id: EntryId = ZERO_ID
    head: Version | None = None
    """The highest version published."""
    desired: Version | None = None
    """What publish, update or rollback chose last; a pin stands above it."""
    pinned: Version | None = None
    aliases: Mapping[str, Version] = field(default_factory=dict)
    versions: Mapping[Version, VersionRecord] = field(default_factory=dict)
    deleted: frozenset[Version] = frozenset()
    """Numbers an operator deleted: what tells a deleted version from one that another node never heard of."""
    rollout: Rollout | None = None
    """The last one; it is followed while it is open."""
    placement: Placement = REPLICATED
    """How it is kept, and who owns it."""
    changes: tuple[WishChange, ...] = ()
    """What people asked for, the newest last; bounded."""

    @property
    def wanted(self) -> Version | None:
        """What the fleet should run, before any node's own pins and the waves of a rollout."""
        return self.pinned or self.desired or (None if self._held_back else self.head)

    @property
    def _held_back(self) -> bool:
        """Whether the very first version waits for its rollout, or was not let through by it."""
        return self.rollout is not None and self.rollout.state != rollout.DONE

    @property
    def named(self) -> frozenset[Version]:
        """Versions that are kept whatever their age."""
        roll = self.rollout if self.rollout is not None and self.rollout.open else None
        numbers = (self.head, self.desired, self.pinned, roll and roll.version, roll and roll.before)
        return frozenset(number for number in (*numbers, *self.aliases.values()) if number)

    def require(self, number: Version) -> VersionRecord:
        """The record of a version. Raises NoSuchVersion."""
        found = self.versions.get(number)
        if found is None:
            known = ", ".join(str(n) for n in sorted(self.versions)[-8:]) or "none"
            raise NoSuchVersion(reason=f"{self.name} has no version {number}; known (newest 8): {known}")
        return found

    def with_content(self, content: Digest) -> Version | None:
        """The newest version that holds these bytes, if any does."""
        same = [number for number, record in self.versions.items() if record.content == content]
        return max(same, default=None)


# --- changes: each returns the record as it will be -----------------------------------------------------------------


def published(record: ModelRecord, number: Version, entry: VersionRecord, *, held_back: bool = False) -> ModelRecord:
    """Add a version; it becomes the head and, unless a pin holds another or a rollout is to bring it, what is wanted.

    Raises:
        VersionConflict: the number is taken by other bytes.
        PolicyRefusal: the number is below the head: versions only increase.
    """
    known = record.versions.get(number)
    if known is not None and known.content != entry.content:
        raise VersionConflict(model=record.name, version=number, known=str(known.content), offered=str(entry.content))
    if record.head is not None and number <= record.head:
        raise PolicyRefusal(reason=f"{record.name}: version {number} is not above the head, {record.head}")
    versions = {**record.versions, number: entry}
    after = replace(record, id=entry.id, head=number, versions=versions)
    if held_back:
        return _bounded(replace(after, desired=record.wanted))
    return _bounded(_superseding(replace(after, desired=number), f"version {number} was published"))


def _superseding(record: ModelRecord, reason: str) -> ModelRecord:
    """An order of its own ends a rollout that was under way: nobody is to wait for two things at once."""
    return replace(record, rollout=rollout.superseded(record.rollout, reason))


def _bounded(record: ModelRecord) -> ModelRecord:
    surplus = len(record.versions) - MAX_VERSIONS
    if surplus <= 0:
        return record
    gone = set(_unnamed(record)[:surplus])
    return replace(record, versions={n: v for n, v in record.versions.items() if n not in gone})


def _unnamed(record: ModelRecord) -> list[Version]:
    """Versions that are kept for their age alone, oldest first."""
    return [number for number in sorted(record.versions) if number not in record.named]


def resolve(record: ModelRecord, target: int | str) -> Version:
    """A version number or alias as a version that exists. Raises NoSuchVersion."""
    try:
        named = record.aliases.get(target) if isinstance(target, str) else None
        number = named or version(target)
    except BadName as error:
        raise NoSuchVersion(reason=f"{record.name} has no alias {target!r}") from error
    record.require(number)
    return number


def pinned(record: ModelRecord, target: int | str, at: EntryId) -> ModelRecord:
    """Hold one version until ``unpinned``. Raises NoSuchVersion."""
    number = resolve(record, target)
    return _superseding(replace(record, id=at, pinned=number), f"the fleet was pinned to version {number}")


def unpinned(record: ModelRecord, at: EntryId) -> ModelRecord:
    """Follow what was published or chosen last again. Raises PolicyRefusal when nothing is pinned."""
    if record.pinned is None:
        raise PolicyRefusal(reason=f"{record.name} is not pinned")
    return replace(record, id=at, pinned=None)


def _require_unpinned(record: ModelRecord, verb: str) -> None:
    if record.pinned is not None:
        raise PolicyRefusal(reason=f"{record.name} is pinned to version {record.pinned}: unpin it before you {verb}")


def updated(record: ModelRecord, target: int | str | None, at: EntryId) -> ModelRecord:
    """Want one version, or without a target the head. The next publish moves on from it.

    Raises: PolicyRefusal while pinned; NoSuchVersion.
    """
    _require_unpinned(record, "update")
    if target is None and record.head is None:
        raise NoSuchVersion(reason=f"{record.name} has no version yet")
    number = resolve(record, target) if target is not None else record.head
    return _superseding(replace(record, id=at, desired=number), f"version {number} was asked for")


def rolled_back(record: ModelRecord, target: int | str | None, at: EntryId) -> ModelRecord:
    """Want an earlier version: the one named, or the next one below what is wanted now.

    Without a target, a rollout whose version the fleet does not want yet is what is taken back.

    Raises: PolicyRefusal while pinned, or when the target is not earlier; NoSuchVersion.
    """
    _require_unpinned(record, "roll back")
    now, under_way = record.wanted, record.rollout
    if target is None and under_way is not None and under_way.open and under_way.version != now:
        return _superseding(replace(record, id=at), "rolled back")
    if target is not None:
        number = resolve(record, target)
        if now is not None and number >= now:
            raise PolicyRefusal(reason=f"version {number} is not earlier than {now}: that would be an update")
        return _superseding(replace(record, id=at, desired=number), f"rolled back to version {number}")
    if now is None:
        raise NoSuchVersion(reason=f"{record.name} has no version yet")
    earlier = [number for number in record.versions if number < now]
    if not earlier:
        raise NoSuchVersion(reason=f"{record.name} has no version before {now}")
    return _superseding(replace(record, id=at, desired=max(earlier)), f"rolled back to version {max(earlier)}")


def aliased(record: ModelRecord, alias: str, target: int | str, at: EntryId) -> ModelRecord:
    """Let a word mean a version. Raises BadName, NoSuchVersion, PolicyRefusal above 100 aliases."""
    aliases = {**record.aliases, alias_name(alias): resolve(record, target)}
    if len(aliases) > MAX_ALIASES:
        raise PolicyRefusal(reason=f"{record.name} has {MAX_ALIASES} aliases already")
    return replace(record, id=at, aliases=aliases)


def deleted(record: ModelRecord, number: Version, at: EntryId) -> ModelRecord:
    """Forget a version. Raises NoSuchVersion; PolicyRefusal for the head and for what is wanted, pinned or aliased."""
    record.require(number)
    reasons = [
        (number == record.head, "it is the head, and its number must not be given again"),
        (number == record.wanted, "it is wanted"),
        (number == record.pinned, "it is pinned"),
        (number in record.aliases.values(), "an alias names it"),
        (number in record.named, "a rollout is under way with it"),
    ]
    for holds, reason in reasons:
        if holds:
            raise PolicyRefusal(reason=f"version {number} of {record.name} cannot be deleted: {reason}")
    rest = {n: v for n, v in record.versions.items() if n != number}
    gone = sorted(record.deleted | {number})[-MAX_VERSIONS:]
    return replace(record, id=at, versions=rest, deleted=frozenset(gone))


def placed(record: ModelRecord, placement: Placement, at: EntryId) -> ModelRecord:
    """Keep it in another mode, or on other nodes. What is wanted does not change."""
    return replace(record, id=at, placement=placement)


def noted(record: ModelRecord, change: WishChange) -> ModelRecord:
    """Remember who asked for a change; the oldest are forgotten."""
    return replace(record, changes=(*record.changes, change)[-MAX_CHANGES:])


def carried_out(record: ModelRecord, ask: str) -> bool:
    """Whether a command that was heard under these names is among what was asked for."""
    return any(same_command(ask, change.ask) for change in record.changes)


def merged(ours: ModelRecord, theirs: ModelRecord) -> ModelRecord:
    """Of two copies of one record the later: ids order all changes, so it knows everything that still holds.

    But signatures: a daemon of a release that knew none leaves them out of what it writes anew.
    """
    return _with_signatures(theirs, ours) if theirs.id > ours.id else ours


def _with_signatures(record: ModelRecord, known: ModelRecord) -> ModelRecord:
    lost = {
        number: replace(entry, signature=ours.signature)
        for number, entry in record.versions.items()
        if not entry.signature
        and (ours := known.versions.get(number)) is not None
        and ours.signature
        and ours.digest == entry.digest
    }
    return replace(record, versions={**record.versions, **lost}) if lost else record


def reissued(record: ModelRecord, at: EntryId) -> ModelRecord:
    """The same record under a new id, to be written to a Redis that has lost it."""
    return replace(record, id=at)


def orphaned(ours: ModelRecord, theirs: ModelRecord) -> dict[Version, VersionRecord]:
    """Versions of ours that a later record does not know: published by a primary whose last writes were lost.

    Deleted ones and those older than all that the later record keeps for their age are not orphans.
    """
    if theirs.id <= ours.id:
        return {}
    oldest = min(_unnamed(theirs) or theirs.versions, default=0)
    return {
        number: entry
        for number, entry in ours.versions.items()
        if number not in theirs.deleted
        and number >= oldest
        and (number not in theirs.versions or theirs.versions[number].digest != entry.digest)
    }


def contested(ours: ModelRecord, theirs: ModelRecord) -> list[Version]:
    """Versions whose number names one content here and another there: what a correct fleet never has."""
    both = ours.versions.keys() & theirs.versions.keys()
    return sorted(number for number in both if ours.versions[number].digest != theirs.versions[number].digest)


def newest_first(numbers: Iterable[Version]) -> list[Version]:
    return sorted(numbers, reverse=True)
