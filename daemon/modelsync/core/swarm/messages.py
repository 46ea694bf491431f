"""What a pull's plan is told, and what it answers: events in the past tense, effects in the imperative.

Chunks are whole numbers whose bit n is chunk n. ``ask`` is the number of a request, given by the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that could give chunks, as the fleet's reports have it.

    ``holds``: it said that it has all of the version. Others may be pulling it, which only they can tell.
    """

    id: str
    distance: int = 2
    """See ``neighbours.distance``."""
    primary: bool = False
    holds: bool = False


@dataclass(frozen=True, slots=True)
class PeersSeen:
    """Everyone that may be asked from now on; who is not among them has left."""

    candidates: Sequence[Candidate]
    tier: frozenset[str] | None = None
    """In a large fleet: the nodes that take shares, of which this one need not be. None: whoever pulls does."""
    rank: int = 0
    """In a large fleet: this node's place among those that pull."""


@dataclass(frozen=True, slots=True)
class PeerHas:
    """A peer has told which chunks it holds, and whether it is pulling the others."""

    peer: str
    chunks: int
    pulling: bool
    coming: int = 0
    """Chunks that it has asked of somebody who holds everything."""


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """A peer did not tell: it is away, or too busy."""

    peer: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """So many bytes of a request's body have come by now, verified or not."""

    ask: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """A chunk is verified and written."""

    ask: int
    chunk: int


@dataclass(frozen=True, slots=True)
class RunDone:
    """A request has ended; what it did not deliver is asked for again."""

    ask: int


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A request broke off.

    ``refused``: it was answered, but not with this: what the peer holds is read again. ``busy_s``: the peer has too
    much to do and wants to be asked again after so long, which is no fault.
    """

    ask: int
    refused: bool = False
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChunkCorrupt:
    """A request brought bytes that are not what their digest says. Its peer is asked for nothing more."""

    ask: int


Event = PeersSeen | PeerHas | PeerSilent | Arrived | ChunkDone | RunDone | RunFailed | ChunkCorrupt

# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskRun:
    """Request chunks ``first`` to ``last``, both included, of a peer. ``hedge``: another was asked for them already."""

    ask: int
    peer: str
    first: int
    last: int
    hedge: bool = False


@dataclass(frozen=True, slots=True)
class AbandonRun:
    """Break a request off: what it would bring next has come from elsewhere."""

    ask: int


@dataclass(frozen=True, slots=True)
class ReadMap:
    """Ask a peer which chunks it holds."""

    peer: str


Effect = AskRun | AbandonRun | ReadMap


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pull may have under way at once."""

    in_all: int = 8
    per_peer: int = 2
    hedges: int = 2
