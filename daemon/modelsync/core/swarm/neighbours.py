"""Whom of a fleet a pull deals with: all of a small one, some of a large one.

The ones that stand near, and a few from anywhere, so that no corner of a fleet stays apart. Who they are differs from
node to node and stays the same from look to look.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from modelsync.core.swarm import shares
from modelsync.core.swarm.messages import Candidate, PeersSeen

NEAR, FAR = 6, 2
"""Peers by distance, and peers from anywhere. A random graph of degree 8 reaches 10,000 nodes in about five steps."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Where a node stands; empty: not said."""

    rack: str = ""
    zone: str = ""


UNLABELLED = Labels()


def distance(one: Labels, other: Labels) -> int:
    """0 in one rack, 1 in one zone, 2 beyond or unknown. Racks of different zones may share a name."""
    if one.zone != other.zone:
        return 2
    if one.rack and one.rack == other.rack:
        return 0
    return 1 if one.zone else 2


def seen(me: str, fleet: Sequence[Candidate], salt: bytes, useless: Collection[str] = ()) -> PeersSeen:
    """What a node makes of the fleet's reports for one pull.

    Args:
        fleet: everyone but this node.
        salt: the object's digest.
        useless: peers that did not answer, or have nothing and pull nothing: others take their place if there are.
    """
    primary = [candidate for candidate in fleet if candidate.primary]
    others = [candidate for candidate in fleet if not candidate.primary]
    others.sort(key=lambda c: (c.id in useless, c.distance, shares.affinity(me, c.id)))
    near, rest = others[:NEAR], others[NEAR:]
    rest.sort(key=lambda c: (c.id in useless, shares.affinity(me, c.id)))
    chosen = (*near, *rest[:FAR], *primary)
    if len(others) <= NEAR + FAR:
        return PeersSeen(chosen)
    pulling = {me} | {candidate.id for candidate in others if not candidate.holds}
    return PeersSeen(chosen, frozenset(shares.tier(pulling, salt)), shares.rank(me, pulling, salt))
