"""The three storage modes as answers to two questions: must this node hold a model, and may it let go of one.

DESIGN section 8. One engine pulls, verifies and activates in all of them. ``replicated`` is the answer "everything",
``shared`` is "what is used here, the rest lies in the object store", ``partitioned`` is "what the primary placed here".
A model that lies in one piece is one share, a big one may lie in several (``parts``): nothing else tells them apart.
How owners are chosen is ``placing``'s; this file must not know.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import NodeId, node_id
from modelsync.core.storage import moves
from modelsync.core.storage.parts import MAX_PARTS

Mode = Literal["replicated", "shared", "partitioned"]
MODES: tuple[Mode, ...] = ("replicated", "shared", "partitioned")
MAX_OWNERS = 64
MAX_FIELD_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Placement:
    """How one model is kept, as its record says: a decision of the primary, the same for every node."""

    mode: Mode = "replicated"
    copies: int = 0
    """Copies that were asked for; 0 where the mode does not count them."""
    owners: tuple[NodeId, ...] = ()
    """``partitioned`` in one piece: who holds it; the first is asked first."""
    parts: tuple[tuple[NodeId, ...], ...] = ()
    """``partitioned`` in several: who holds each part. ``owners`` is empty then."""

    @property
    def shares(self) -> tuple[tuple[NodeId, ...], ...]:
        """The owners of each piece it lies in; of most models there is one."""
        return self.parts or (self.owners,)

    @property
    def everyone(self) -> tuple[NodeId, ...]:
        """All nodes that own something of it."""
        return tuple(dict.fromkeys(owner for share in self.shares for owner in share))

    def owned(self, node: str) -> frozenset[int]:
        """The shares of a node, by their place in ``shares``."""
        return frozenset(index for index, share in enumerate(self.shares) if node in share)

    def owns_all(self, node: str) -> bool:
        """Whether a node owns the whole: only then is it active there without having been asked for."""
        return len(self.owned(node)) == len(self.shares)


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
    """Whether a node must hold and activate the whole of a model's wanted version."""
    if at.mode == "partitioned":
        return at.owns_all(node) or name in demand.asked
    return at.mode == "replicated" or demand.wants(name)


def may_let_go(at: Placement, share: int, node: str, holders: Collection[str], *, in_store: bool) -> bool:
    """Whether a node that need not hold a share of a version may remove it.

    Args:
        holders: living nodes that reported this share of this version verified.
        in_store: the object store was seen to hold it.
    """
    if at.mode == "partitioned":
        return moves.may_let_go(node, at.shares[share], holders)
    return at.mode == "shared" and in_store


def encode(at: Placement) -> str:
    """The field ``placement`` of a model's record; empty for what every model begins with."""
    if at == REPLICATED:
        return ""
    value: dict[str, Any] = {"mode": at.mode, "copies": at.copies, "owners": list(at.owners)}
    if at.parts:
        value["parts"] = [list(owners) for owners in at.parts]
    return canonical.encode(value).decode()


def decode(text: str) -> Placement:
    """Parse the field as hostile input. Raises MalformedMessage."""
    if not text:
        return REPLICATED
    value = canonical.decode(text.encode(errors="surrogatepass"), "placement", max_bytes=MAX_FIELD_BYTES)
    if not isinstance(value, dict) or value.keys() - {"parts"} != {"mode", "copies", "owners"}:
        raise MalformedMessage(what="placement", reason="it is not an object of mode, copies and owners")
    mode, copies, split = value["mode"], value["copies"], value.get("parts", [])
    if mode not in MODES or not isinstance(copies, int) or isinstance(copies, bool) or not 0 <= copies <= MAX_OWNERS:
        raise MalformedMessage(what="placement", reason="its mode or number of copies is none")
    if not isinstance(split, list) or len(split) > MAX_PARTS:
        raise MalformedMessage(what="placement", reason="parts is not a short list")
    return Placement(cast(Mode, mode), copies, _owners(value["owners"]), tuple(map(_owners, split)))


def _owners(value: Any) -> tuple[NodeId, ...]:
    if not isinstance(value, list) or len(value) > MAX_OWNERS:
        raise MalformedMessage(what="placement", reason="owners is not a short list")
    try:
        return tuple(dict.fromkeys(node_id(owner) for owner in value))
    except BadName as error:
        raise MalformedMessage(what="placement", reason=str(error)) from error
