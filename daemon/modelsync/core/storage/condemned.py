"""What may be removed from an object store that others publish to meanwhile. Pure.

A **name** is where an object lies: its digest and a turn. Before a delete its name is **condemned**, durably, in a
log of numbered documents that are only ever created; a condemned name is never relied upon again, so a delete may
come as late as it likes, of a process that was stopped for a week: whoever puts those bytes again uses the next turn.
What makes the race of a publisher and a collector safe is their order:

    publisher   puts or finds objects under names that are not condemned -> claims the version -> reads the log again
    collector   condemns unreferenced names -> waits ``grace_s`` -> reads all claims -> deletes what nothing names

At least one of the two sees the other. ``grace_s`` is measured by the collector's own clock and needs to outlast only
how late listings may be. No clock of a store decides anything, except that objects younger than ``grace_s`` (by the
store's own time) are left alone, which spares a slow upload the repetition. PROTOCOL.md section 9.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from modelsync.core import canonical
from modelsync.core.errors import MalformedMessage, PolicyRefusal
from modelsync.core.ids import Digest, FleetName, ModelName, Version
from modelsync.core.storage.claims import Claim

Kind = Literal["objects", "manifests"]
MAX_NAMES = 2000
"""In one document of the log: 170 KB."""
MAX_LOG_BYTES = 1 << 20
MAX_TURN = 999
"""A log that says more is not believed: looking for an object would never end."""
HEX_DIGITS = 64


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """Where an object lies: ``objects/b3/HH/HEX`` or ``manifests/HEX``, with ``.TURN`` from the second on."""

    kind: Kind
    hex: str
    turn: int = 0

    @property
    def digest(self) -> Digest:
        return Digest(bytes.fromhex(self.hex))

    def __str__(self) -> str:
        place = f"objects/b3/{self.hex[:2]}/{self.hex}" if self.kind == "objects" else f"manifests/{self.hex}"
        return f"{place}.{self.turn}" if self.turn else place


def parse_name(key: str) -> Name | None:
    """A name from a listing or the log; None for what is none of ours, and is never touched."""
    place, _, turn = key.partition(".")
    kind, hexadecimal = place.partition("/")[0], place.rpartition("/")[2]
    if len(hexadecimal) != HEX_DIGITS or not set(hexadecimal) <= set("0123456789abcdef"):
        return None
    if not (turn == "" or (turn.isascii() and turn.isdigit() and len(turn) <= len(str(MAX_TURN)))):
        return None
    name = Name(cast(Kind, kind), hexadecimal, int(turn or 0))
    return name if kind in ("objects", "manifests") and str(name) == key else None


@dataclass(slots=True)
class CondemnedLog:
    """What a process has read of the log. It only grows."""

    read: int = 0
    """Documents read so far, which is the number of the next."""
    turns: dict[tuple[Kind, str], int] = field(default_factory=dict)
    """The first turn of an object that is not condemned; 0 is not written down."""

    def add(self, names: Iterable[Name]) -> None:
        """One more document."""
        self.read += 1
        for name in names:
            at = (name.kind, name.hex)
            self.turns[at] = max(self.turns.get(at, 0), name.turn + 1)

    def usable(self, kind: Kind, digest: Digest) -> Name:
        """The name under which an object may be put, or found and relied upon."""
        return Name(kind, digest.hex, self.turns.get((kind, digest.hex), 0))

    def readable(self, kind: Kind, digest: Digest) -> list[Name]:
        """Where to look for an object, best first: a condemned name that is still there has the same bytes."""
        turn = self.turns.get((kind, digest.hex), 0)
        return [Name(kind, digest.hex, each) for each in range(turn, -1, -1)]

    def condemns(self, name: Name) -> bool:
        return name.turn < self.turns.get((name.kind, name.hex), 0)


def log_key(number: int) -> str:
    return f"condemned/{number:010}"


def encode(names: Sequence[Name]) -> bytes:
    return canonical.encode({"names": [str(name) for name in names]})


def decode(data: bytes) -> list[Name]:
    """Parse a document of the log as hostile input. Raises MalformedMessage: then nothing is removed."""
    value = canonical.decode(data, "condemned names", max_bytes=MAX_LOG_BYTES)
    names = value.get("names") if isinstance(value, dict) and value.keys() == {"names"} else None
    if not isinstance(names, list) or len(names) > MAX_NAMES:
        raise MalformedMessage(what="condemned names", reason="it is not an object of a short list of names")
    parsed = [parse_name(name) if isinstance(name, str) else None for name in names]
    if None in parsed:
        raise MalformedMessage(what="condemned names", reason=f"{names[parsed.index(None)]!r:.80} is no name")
    return [name for name in parsed if name is not None]


# --- versions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed:
    """A version that the store has, as its claim says."""

    model: ModelName
    version: Version
    claim: Claim


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the fleet's catalog says of one model."""

    head: Version | None
    kept: Mapping[Version, Digest]
    """Manifests of the versions that are to stay: named, and the newest by count and age."""
    shared: bool = True
    """Whether hosts rely on the store to have them; else they stay there only because they are there."""


def require_alone(claimed: Iterable[Claimed], fleet: FleetName) -> None:
    """Nothing is removed where two fleets share a store: a version that is wanted again is known to its own only.

    Raises PolicyRefusal.
    """
    for each in claimed:
        if each.claim.fleet != fleet:
            what = f"version {each.version} of {each.model} belongs to fleet {each.claim.fleet}"
            raise PolicyRefusal(reason=f"{what}: give each fleet a prefix of its own in storage.url")


def dropped(claimed: Iterable[Claimed], catalog: Mapping[ModelName, Wanted]) -> list[Claimed]:
    """Versions that the catalog keeps no longer.

    A number above the head may be a publish that is under way, or one that this catalog has lost: it stays, like
    everything of models that are not known here.
    """
    result = []
    for each in claimed:
        wanted = catalog.get(each.model)
        if wanted is None or wanted.head is None or each.version > wanted.head:
            continue
        if each.version not in wanted.kept:
            result.append(each)
    return result


def missing(claimed: Iterable[Claimed], catalog: Mapping[ModelName, Wanted]) -> list[tuple[ModelName, Version]]:
    """Versions that are to stay and that the store was not seen to have."""
    held = {(each.model, each.version, each.claim.digest) for each in claimed}
    return [
        (model, number)
        for model, wanted in sorted(catalog.items())
        if wanted.shared
        for number, digest in sorted(wanted.kept.items())
        if (model, number, digest) not in held
    ]


# --- objects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing has it. ``age_s``: by the store's own clock."""

    name: Name
    size_bytes: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of unreferenced objects in one round."""

    condemn: Sequence[Listed] = ()
    waiting: Sequence[Listed] = ()
    delete: Sequence[Listed] = ()


def judged(
    listed: Iterable[Listed],
    referenced: Collection[Digest],
    relied_on: Collection[Digest],
    log: CondemnedLog,
    seen_s: Mapping[Name, float],
    roots_s: float,
    grace_s: float,
) -> Judgement:
    """Decide over every object of a store.

    Args:
        referenced: by any claimed or kept version, read at ``roots_s`` or later.
        relied_on: by publishes of this process that are under way.
        seen_s: when each name was first seen to be condemned, by this process's own clock.
        roots_s: when the reading of claims began, by the same clock.
    """
    condemn: list[Listed] = []
    waiting: list[Listed] = []
    delete: list[Listed] = []
    for each in listed:
        digest = each.name.digest
        if digest in referenced or digest in relied_on:
            continue
        if not log.condemns(each.name):
            (condemn if each.age_s >= grace_s else waiting).append(each)
        elif each.name in seen_s and seen_s[each.name] + grace_s <= roots_s:
            delete.append(each)
        else:
            waiting.append(each)
    return Judgement(condemn, waiting, delete)
