"""Asking a peer which bytes of an object it holds. What it says is hostile input: bounded, checked, and only a hint.

A peer that claims what it does not have costs one refused request, and wrong bytes never pass their digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from modelsync.core.errors import PeerRefused
from modelsync.core.ids import Digest
from modelsync.core.transfer.chunk_map import MAX_RANGES, Ranges
from modelsync.edges.pull.connections import Connections
from modelsync.ports import Peer

MAX_BYTES = 2 * 64 * MAX_RANGES
"""Two lists; two numbers of up to 14 digits a range, their punctuation, and room to spare."""


@dataclass(frozen=True, slots=True)
class PeerMap:
    """What a peer says it holds of an object."""

    ranges: Ranges
    pulling: bool
    coming: Ranges = ()
    """What it has asked of somebody who holds everything."""


def read_map(connections: Connections, peer: Peer, digest: Digest, size_bytes: int) -> PeerMap:
    """Which bytes of an object a peer holds.

    Args:
        size_bytes: of the object.
    Raises: PeerUnavailable, PeerRefused.
    """
    data = connections.small_document(peer, f"/v1/have/{digest}", MAX_BYTES)
    try:
        return _parsed(json.loads(data), size_bytes)
    except (ValueError, RecursionError) as error:
        raise PeerRefused(peer=peer.id, status=200, reason=f"what it holds cannot be read: {error}"[:200]) from error


def _parsed(value: object, size_bytes: int) -> PeerMap:
    if not isinstance(value, dict) or not isinstance(value.get("held"), bool):
        raise ValueError("no `held`")
    if value["held"]:
        return PeerMap(((0, size_bytes),), pulling=False)
    held, coming = (_ranges(value.get(field, []), size_bytes) for field in ("ranges", "coming"))
    return PeerMap(held, value.get("pulling") is True, coming)


def _ranges(value: object, size_bytes: int) -> Ranges:
    if not isinstance(value, list) or len(value) > MAX_RANGES:
        raise ValueError("no list of ranges, or too long a one")
    return [_range(each, size_bytes) for each in value]


def _range(value: object, size_bytes: int) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(number) is int for number in value):
        raise ValueError("a range is not two whole numbers")
    start, end = value
    if not 0 <= start < end <= size_bytes:
        raise ValueError(f"a range outside of {size_bytes} bytes")
    return start, end
