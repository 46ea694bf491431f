"""What the primary writes into which model's record. DESIGN section 8.

This file brings the configuration's wish (mode, copies, parts) and what lies where together; where things go is decided
by ``placement``, in which order by ``moves``. It must not know who is alive or how a record is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelsync.core.ids import NodeId
from modelsync.core.storage import moves, placement
from modelsync.core.storage.modes import Mode, Placement
from modelsync.core.storage.placement import Item, Place


@dataclass(frozen=True, slots=True)
class Kept:
    """One model as the primary sees it when it places."""

    name: str
    sizes: tuple[int, ...]
    """Bytes of each piece it shall lie in, over the versions that owners hold together; mostly there is one."""
    now: Placement
    mode: Mode
    """As the configuration asks."""
    copies: int
    holders: tuple[frozenset[str], ...]
    """For each piece, the living nodes that hold what is wanted of it, verified."""
    silent: frozenset[str] = frozenset()
    """Owners that do not answer just now: they are waited for, and count as holders until they are gone."""

    @property
    def in_shape(self) -> bool:
        """Whether its record speaks of the pieces it shall lie in."""
        return self.now.mode == "partitioned" and len(self.now.shares) == len(self.sizes)

    def names(self) -> list[str]:
        """Of its pieces, as ``placement`` knows them; no model's name holds a ``#``."""
        if len(self.sizes) == 1:
            return [self.name]
        return [f"{self.name}#{index + 1}" for index in range(len(self.sizes))]

    def items(self) -> list[Item]:
        return [Item(key, size, self.copies) for key, size in zip(self.names(), self.sizes, strict=True)]

    def held(self) -> dict[str, frozenset[str]]:
        return dict(zip(self.names(), self.holders, strict=True))

    def believed(self) -> dict[str, frozenset[str]]:
        """Holders, and silent owners until they are replaced."""
        recorded = self.recorded()
        return {key: nodes | (self.silent & set(recorded[key])) for key, nodes in self.held().items()}

    def recorded(self) -> dict[str, tuple[str, ...]]:
        """The owners of each piece as they stand in the record; none where it speaks of other pieces."""
        shares: Sequence[tuple[str, ...]] = self.now.shares if self.in_shape else [()] * len(self.sizes)
        return dict(zip(self.names(), shares, strict=True))

    def before(self) -> dict[str, tuple[str, ...]]:
        """Where to begin from: the record, or all who hold it, of whom ``arranged`` keeps as many as are asked for."""
        if self.in_shape:
            return self.recorded()
        return {
            key: tuple(sorted(nodes, key=lambda node: -placement.score(key, Place(node))))
            for key, nodes in self.held().items()
        }


def changes(models: Sequence[Kept], places: Sequence[Place], moves_at_once: int) -> dict[str, Placement]:
    """What to write into which model's record now, so that all are kept as the configuration asks.

    A model whose mode or pieces change is first given to nodes that hold it already: no bytes move for that.
    """
    result = {
        model.name: Placement(model.mode)
        for model in models
        if model.mode != "partitioned" and model.now != Placement(model.mode)
    }
    placed = [model for model in models if model.mode == "partitioned"]
    items = [item for model in placed for item in model.items()]
    held = {key: nodes for model in placed for key, nodes in model.held().items()}
    believed = {key: nodes for model in placed for key, nodes in model.believed().items()}
    before = {key: owners for model in placed for key, owners in model.before().items()}
    recorded = {key: owners for model in placed for key, owners in model.recorded().items()}
    target = placement.arranged(items, places, before, believed)
    now = moves.next_owners(items, recorded, target, held, moves_at_once)
    for model in placed:
        shares = [
            now.get(key)
            or _fewer(recorded[key], target[key], held[key], model.copies)
            or _stand_in(before[key], target[key], model)
            for key in model.names()
        ]
        wanted = _placement(model, shares)
        if wanted != model.now and all(shares):
            result[model.name] = wanted
    return result


def _fewer(recorded: tuple[str, ...], target: tuple[str, ...], held: frozenset[str], copies: int) -> tuple[str, ...]:
    """Owners of a piece that waits for its turn to move; where fewer are asked for now, those that hold it stay.

    With nobody living who holds it they all stay, being who may bring it back.
    """
    if len(recorded) <= copies or not held & set(recorded):
        return recorded
    best = sorted(recorded, key=lambda node: (node not in held, node not in target, recorded.index(node)))[:copies]
    return tuple(node for node in recorded if node in best)


def _stand_in(before: tuple[str, ...], target: tuple[str, ...], model: Kept) -> tuple[str, ...]:
    """Owners of a piece that has none yet and must wait for its turn to move: some of those who hold it."""
    return before[: model.copies] or target


def _placement(model: Kept, shares: Sequence[tuple[str, ...]]) -> Placement:
    named = tuple(tuple(NodeId(owner) for owner in share) for share in shares)
    copies = max(model.copies, *map(len, named))  # fewer once those can go that only wait to bring it back
    if len(named) == 1:
        return Placement("partitioned", copies, named[0])
    return Placement("partitioned", copies, (), named)
