"""Which chunks of which peer come next: the choice that a plan makes over and over. Pure functions over sets of chunks.

Sets of chunks are whole numbers whose bit n is chunk n, so that a choice among thousands of chunks and a dozen peers is
some dozens of operations on long integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from modelsync.core.swarm.peers import KnownPeer

WINDOW_CHUNKS = 256
"""Rarest first within so many chunks of the first that can be had: write-back likes neighbours."""
_SLOWER = 4
"""A nearer peer that is so many times slower keeps nothing from being asked of one further away."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What one peer may be asked for now."""

    peer: KnownPeer
    chunks: int


def offers(peers: Iterable[KnownPeer], wanted: int, now_s: float, share_of: Callable[[KnownPeer], int]) -> list[Offer]:
    """What each usable peer may be asked for: not what a nearer one has, and only what is ours to take from it."""
    usable = [peer for peer in peers if peer.has & wanted and peer.usable(now_s)]
    usable.sort(key=lambda peer: peer.cost)
    result = []
    for peer in usable:
        chunks = peer.has & wanted
        for nearer in usable:
            if nearer.cost >= peer.cost:
                break
            # Of a primary only a share is taken while others pull: the rest is had from them, wherever they stand.
            if (peer.is_source or not nearer.primary) and not _is_much_slower(nearer, peer, now_s):
                chunks &= ~nearer.has
        if chunks:
            result.append(Offer(peer, chunks & share_of(peer)))
    return result


def _is_much_slower(nearer: KnownPeer, further: KnownPeer, now_s: float) -> bool:
    if nearer.slow_until_s > now_s:
        return True
    return 0 < nearer.rate_bytes_per_s * _SLOWER < further.rate_bytes_per_s


def in_order(found: Iterable[Offer], per_peer: int, now_s: float) -> list[Offer]:
    """Those that may be asked at all now, the best first: near, not slow lately, with little to do, quick."""
    free = (offer for offer in found if offer.peer.open < per_peer)
    return sorted(free, key=lambda offer: _merit(offer.peer, now_s))


def _merit(peer: KnownPeer, now_s: float) -> tuple[bool, int, int, float]:
    return (peer.slow_until_s > now_s, peer.cost, peer.open, -peer.rate_bytes_per_s)


def rarity(peers: Iterable[KnownPeer]) -> Sequence[int]:
    """The chunks that no pulling peer has, those that one has, two, and more: the rarest first."""
    once = twice = often = 0
    for peer in peers:
        if not peer.complete:
            often |= twice & peer.has
            twice |= once & peer.has
            once |= peer.has
    return (~once, once & ~twice, twice & ~often, often)


def run_of(chunks: int, classes: Sequence[int], longest: int, draw: Callable[[int], int] | None) -> tuple[int, int]:
    """First and last of the consecutive chunks to ask for next, of a set that is not empty.

    Args:
        draw: where in the window to look first, so that two nodes rarely ask one peer for the same; None: at its start.
    """
    start = lowest(chunks)
    window = chunks & ((1 << WINDOW_CHUNKS) - 1) << start
    found = next(rare for each in classes if (rare := window & each))
    place = start + draw(WINDOW_CHUNKS) if draw else start
    first = lowest(found >> place << place or found)
    return first, first + min(longest, _length(found >> first)) - 1


def lowest(chunks: int) -> int:
    """The first chunk of a set that is not empty."""
    return (chunks & -chunks).bit_length() - 1


def _length(chunks: int) -> int:
    """How many consecutive chunks a set begins with; its first is chunk 0."""
    return lowest(~chunks)
