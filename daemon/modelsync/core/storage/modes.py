"""The three storage modes as answers to two questions: must this node hold a model, and may it let go of one.

DESIGN section 8. One engine pulls, verifies and activates in all of them. ``replicated`` is the answer "everything",
``shared`` is "what is used here, the rest lies in the object store", ``partitioned`` is "what the primary placed here".
Where owners come from is ``placement``'s; this file must not know how they were chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import NodeId, Version, node_id
from modelsync.core.storage import placement
from modelsync.core.storage.placement import Item, Place

Mode = Literal["replicated", "shared", "partitioned"]
MODES: tuple[Mode, ...] = ("replicated", "shared", "partitioned")
MAX_OWNERS = 64


@dataclass(frozen=True, slots=True)
class Placement:
    """How one model is kept, as its record says: a decision of the primary, the same for every node."""

    mode: Mode = "replicated"
    copies: int = 0
    """Copies that were asked for; 0 where the mode does not count them."""
    owners: tuple[NodeId, ...] = ()
    """``partitioned`` only: who holds it; the first is asked first."""


REPLICATED = Placement()


@dataclass(frozen=True, slots=True)
class Demand:
    """What one host uses of its own accord: patterns from its configuration, and what was asked for here."""

    ahead: Sequence[str] = ("*",)
    """Shell patterns over names of ``shared`` models that this host has ready before anybody asks."""
    asked: frozenset[str] = frozenset()
    """Models that were loaded here by request, until they are unloaded."""

    def wants(self, name: str) -> bool:
        return name in self.asked or any(fnmatchcase(name, pattern) for pattern in self.ahead)


def holds(at: Placement, node: str, name: str, demand: Demand) -> bool:
    """Whether a node must hold and activate a model's wanted version."""
    if at.mode == "partitioned":
        return node in at.owners or name in demand.asked
    return at.mode == "replicated" or demand.wants(name)


def may_let_go(at: Placement, node: str, holders: Collection[str], *, in_store: bool) -> bool:
    """Whether a node that need not hold a version may remove it.

    Args:
        holders: living nodes that reported this version verified.
        in_store: the object store was seen to hold it.
    """
    if at.mode == "partitioned":
        return placement.may_let_go(node, at.owners, holders)
    return at.mode == "shared" and in_store


def encode(at: Placement) -> str:
    """The field ``placement`` of a model's record; empty for what every model begins with."""
    if at == REPLICATED:
        return ""
    return canonical.encode({"mode": at.mode, "copies": at.copies, "owners": list(at.owners)}).decode()


def decode(text: str) -> Placement:
    """Parse the field as hostile input. Raises MalformedMessage."""
    if not text:
        return REPLICATED
    value = canonical.decode(text.encode(errors="surrogatepass"), "placement", max_bytes=1 << 16)
    if not isinstance(value, dict) or value.keys() != {"mode", "copies", "owners"}:
        raise MalformedMessage(what="placement", reason="it is not an object of mode, copies and owners")
    mode, copies, owners = value["mode"], value["copies"], value["owners"]
    if mode not in MODES or not isinstance(copies, int) or isinstance(copies, bool) or not 0 <= copies <= MAX_OWNERS:
        raise MalformedMessage(what="placement", reason="its mode or number of copies is none")
    if not isinstance(owners, list) or len(owners) > MAX_OWNERS:
        raise MalformedMessage(what="placement", reason="owners is not a short list")
    try:
        return Placement(cast(Mode, mode), copies, tuple(dict.fromkeys(node_id(owner) for owner in owners)))
    except BadName as error:
        raise MalformedMessage(what="placement", reason=str(error)) from error


# --- what the primary decides ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """One model as the primary sees it when it places."""

    name: str
    size_bytes: int
    """Of the versions that owners hold together."""
    now: Placement
    mode: Mode
    """As the configuration asks."""
    copies: int
    holders: frozenset[str]
    """Living nodes that hold what it wants of the model, verified."""
    silent: frozenset[str] = frozenset()
    """Owners that do not answer just now: they are waited for, and count as holders until they are gone."""


def changes(models: Sequence[Kept], places: Sequence[Place], moves_at_once: int) -> dict[str, Placement]:
    """What to write into which model's record now, so that all are kept as the configuration asks.

    A model whose mode changes to ``partitioned`` is first given to nodes that hold it already: no bytes move for that.
    """
    result = {
        model.name: Placement(model.mode)
        for model in models
        if model.mode != "partitioned" and model.now != Placement(model.mode)
    }
    split = [model for model in models if model.mode == "partitioned"]
    items = [Item(model.name, model.size_bytes, model.copies) for model in split]
    held = {model.name: model.holders for model in split}
    believed = {model.name: model.holders | model.silent for model in split}
    before = {model.name: _owners_before(model) for model in split}
    target = placement.arranged(items, places, before, believed)
    recorded = {model.name: tuple(model.now.owners) for model in split}
    moves = placement.next_owners(items, recorded, target, held, moves_at_once)
    for model in split:
        owners = tuple(NodeId(owner) for owner in moves.get(model.name, recorded[model.name]))
        wanted = Placement("partitioned", model.copies, owners)
        if wanted != model.now and owners:
            result[model.name] = wanted
    return result


def _owners_before(model: Kept) -> tuple[str, ...]:
    if model.now.mode == "partitioned":
        return model.now.owners
    ordered = sorted(model.holders, key=lambda node: -placement.score(model.name, Place(node)))
    return tuple(ordered)  # all of them: ``arranged`` keeps as many as are asked for


# --- for people ------------------------------------------------------------------------------------------------------


def line(at: Placement, holders: Collection[str], versions_wanted: Version | None) -> dict[str, Any]:
    """A model's placement in ``status --json``: who owns it, who holds it, and what is missing."""
    shown: dict[str, Any] = {"mode": at.mode}
    if at.mode != "partitioned":
        return shown
    living = [owner for owner in at.owners if owner in holders]
    shown |= {"copies": at.copies, "owners": list(at.owners), "living": len(set(holders))}
    if versions_wanted is None:
        return shown
    if not holders:
        shown["trouble"] = f"no living node holds version {versions_wanted}: it is served again when one returns"
    elif len(living) < at.copies:
        missing = ", ".join(owner for owner in at.owners if owner not in holders) or "no node to give it to"
        shown["trouble"] = f"under-replicated: {len(living)} of {at.copies} owners hold it; missing: {missing}"
    return shown


def status_lines(
    placements: Mapping[str, Placement], holders: Mapping[str, Collection[str]], wanted: Mapping[str, Version | None]
) -> dict[str, dict[str, Any]]:
    """Every model's line, by its name."""
    return {name: line(at, holders.get(name, ()), wanted.get(name)) for name, at in sorted(placements.items())}
