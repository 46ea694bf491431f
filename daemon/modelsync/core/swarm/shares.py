"""Who of several pulling nodes takes which chunks from those that hold everything.

Each computes its own share by the same rule, from what it knows of the others, without a word between them: the node
with the highest hash for a block of chunks takes that block (rendezvous hashing), and the others have it from there.
Where two nodes know different fleets, a few blocks are taken twice and none is forgotten. When a node joins or leaves,
only the blocks that it takes or took change hands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import blake2b

FIRST_TIER = 64
"""In a larger fleet so many nodes take shares and all others have theirs from them: a holder answers few at once."""
_MASK = (1 << 64) - 1


def block_chunks(chunk_count: int) -> int:
    """Chunks of one block: enough blocks to share out evenly, and no more, since each is a request of its own."""
    return max(1, min(16, chunk_count // 128))


def share(me: str, takers: Collection[str], salt: bytes, chunk_count: int) -> int:
    """This node's chunks, bit n being chunk n: all of them where it is the only taker, none where it is no taker.

    Args:
        takers: the nodes that share an object among them.
        salt: names the object, so that one node is not the first to be asked for everything.
    """
    everything = (1 << chunk_count) - 1
    if me not in takers:
        return 0
    mine = rank_key(salt, me)
    rivals = [rank_key(salt, name) for name in takers if name != me]
    step = block_chunks(chunk_count)
    bits, block = 0, (1 << step) - 1
    for number in range(-(-chunk_count // step)):
        weight = _mix(mine, number)
        if all(_mix(rival, number) < weight for rival in rivals):
            bits |= block << number * step
    return bits & everything


def rank(me: str, others: Iterable[str], salt: bytes) -> int:
    """This node's place among the nodes that pull an object, from 0: who is the first to help itself."""
    mine = rank_key(salt, me)
    return sum(1 for name in others if name != me and rank_key(salt, name) < mine)


def affinity(me: str, other: str) -> int:
    """A number for a pair of nodes that is unlike that of any other pair: it spreads choices over a fleet."""
    return rank_key(me.encode(), other)


def tier(names: Collection[str], salt: bytes) -> list[str]:
    """Those of the nodes that pull an object that take shares at all."""
    return sorted(names, key=lambda name: rank_key(salt, name))[:FIRST_TIER]


def rank_key(salt: bytes, name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), key=salt[:64], digest_size=8).digest(), "big")


def _mix(hashed: int, number: int) -> int:
    """One 64-bit hash out of two numbers (the finalizer of splitmix64: Steele, Lea and Flood, 2014)."""
    value = (hashed + number * 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
