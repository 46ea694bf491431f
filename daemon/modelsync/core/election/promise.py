"""Promises: what a node grants at most once per epoch, and how a winner of the lease makes its epoch its own.

Redis may lose a grant and give its epoch away again; disks of a majority do not. So a lease alone lets nobody write:
its winner first collects the fsynced promises of a majority of the known members, and each member promises one grant
per epoch. Two majorities share a member, so one epoch has one writer whatever Redis does.

``grant_refusal`` is the receiver's check for promises and for writes alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from modelsync.core.election.lease import Authority, same_grant
from modelsync.core.ids import EntryId


@dataclass(frozen=True, slots=True)
class Promise:
    """A node's answer when asked to promise an epoch: granted or not, the highest it accepted, and its head."""

    node: str
    granted: bool
    epoch: int
    holder: str
    nonce: str
    applied: EntryId


class GrantRefusal(Enum):
    """Why a receiver turns a grant away."""

    LOWER_EPOCH = "a higher epoch was accepted here"
    OTHER_GRANT = "this epoch was promised to another holder, or to another grant of the same one"


def grant_refusal(accepted: Authority | None, epoch: int, holder: str, nonce: str) -> GrantRefusal | None:
    """The receiver's check, for promises and for writes.

    Args:
        accepted: the highest grant on this node's disk; None where there is none yet.
    Returns:
        None: it may be accepted, after it was persisted. Else why not.
    """
    if accepted is None or epoch > accepted.epoch or same_grant(accepted, epoch, holder, nonce):
        return None
    return GrantRefusal.LOWER_EPOCH if epoch < accepted.epoch else GrantRefusal.OTHER_GRANT


# --- the winner's side ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ahead:
    """Somebody in the majority has applied more than the winner: to be fetched before the first publish."""

    id: EntryId
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """One winner's collection of promises. Its own promise counts: it was persisted before the round opened."""

    authority: Authority
    members: frozenset[str]
    granted: frozenset[str]
    refused: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    """Did not answer when asked last; they are asked again until the round ends."""
    heads: tuple[tuple[str, EntryId], ...] = ()


class Verdict(Enum):
    """What a round has come to."""

    OPEN = "more answers are needed"
    ENOUGH = "this epoch is ours"
    IMPOSSIBLE = "no majority can be had any more"


def opened(authority: Authority, members: Iterable[str]) -> Round:
    """A round in which only the winner itself has promised."""
    own = frozenset({str(authority.holder)})
    return Round(authority, frozenset(members) | own, own)


def answered(round_: Round, promise: Promise) -> Round:
    """Count an answer. Answers of strangers, and promises of another grant, count for nothing."""
    node = promise.node
    if node not in round_.members or node in round_.granted:
        return round_
    if not promise.granted:
        return replace(round_, refused=round_.refused | {node}, silent=round_.silent - {node})
    if not same_grant(round_.authority, promise.epoch, promise.holder, promise.nonce):
        return round_
    return replace(
        round_,
        granted=round_.granted | {node},
        silent=round_.silent - {node},
        heads=(*round_.heads, (node, promise.applied)),
    )


def unanswered(round_: Round, node: str) -> Round:
    """Note that a member could not be reached when it was asked."""
    if node in round_.granted or node in round_.refused or node not in round_.members:
        return round_
    return replace(round_, silent=round_.silent | {node})


def needed(member_count: int) -> int:
    """How many promises make an epoch one's own: a majority."""
    return member_count // 2 + 1


def verdict(round_: Round) -> Verdict:
    """What the answers so far come to.

    In a fleet of two, a majority would be both, and the death of either would leave no primary. There the other is
    asked, and its refusal counts, but its silence does not stop the winner: that is ``fencing=degraded``.
    """
    total = len(round_.members)
    if len(round_.granted) >= needed(total):
        return Verdict.ENOUGH
    if len(round_.refused) > total - needed(total):
        return Verdict.IMPOSSIBLE
    return Verdict.ENOUGH if total == 2 and round_.silent else Verdict.OPEN


def everyone_was_asked(round_: Round) -> bool:
    """Whether each member has answered or failed to answer at least once."""
    return len(round_.granted) + len(round_.refused) + len(round_.silent) == len(round_.members)


def ahead(round_: Round, own: EntryId) -> Ahead | None:
    """The highest head among those that promised, if it is above the winner's own."""
    top = max((head for _, head in round_.heads), default=own)
    if top <= own:
        return None
    return Ahead(top, tuple(sorted(node for node, head in round_.heads if head == top)))


def fencing(member_count: int) -> str:
    """How well one epoch is kept to one writer, for status: ``alone``, ``degraded`` (two members) or ``majority``."""
    return {0: "alone", 1: "alone", 2: "degraded"}.get(member_count, "majority")
