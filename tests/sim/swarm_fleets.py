"""Large fleets that pull one large version, in virtual time, and what that would cost Redis.

Chunks are made coarser so that a fleet of thousands takes minutes rather than days: ``chunks_for`` says how much.
Coarser chunks travel more slowly from node to node, so what comes out is on the safe side. All links are alike, so
nothing is hedged.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core.swarm.messages import Limits
from tests.sim.swarm_world import World

TRANSFERS = 100_000
"""Chunks times nodes of one simulation: about a minute; a fleet of 10,000 has four times as many."""
FEWEST, MOST = 40, 640
REPORT_S = 2.0
REPORT_COMMANDS = 3
"""HSET, EXPIRE, SADD; runtime/reporting.py writes one each REPORT_S, and reads those of all others as often."""
CATALOG_COMMANDS = 8
"""Of one node that hears of a version: lease, end of the log, its entries, the record; and its announcement."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of one fleet."""

    replicas: int
    chunks: int
    ideal_s: float
    median_s: float
    last_s: float
    egress_copies: float
    maps_read_per_s: float
    """By each replica."""
    redis_commands: float
    gave_up: int
    events: int


def chunks_for(replicas: int) -> int:
    """How many chunks the object is cut into."""
    return max(FEWEST, min(MOST, TRANSFERS // replicas))


def pull(replicas: int, size_bytes: int, rate_bytes_per_s: float, seed: int = 1) -> Figures:
    """Let so many replicas pull one version."""
    chunks = chunks_for(replicas)
    world = World(
        replicas=replicas,
        chunks=chunks,
        chunk_bytes=-(-size_bytes // chunks),
        rate_bytes_per_s=rate_bytes_per_s,
        limits=Limits(hedges=0),
        seed=seed,
    )
    world.run(until_s=24 * 3600)
    done = sorted(host.done_s for host in world.replicas if host.done_s is not None)
    reads = 1 + 2 * (replicas + 1)  # SMEMBERS, and HGETALL and PTTL of each node
    each = CATALOG_COMMANDS + (REPORT_COMMANDS + reads) * world.last_s / REPORT_S
    return Figures(
        replicas=replicas,
        chunks=chunks,
        ideal_s=size_bytes / rate_bytes_per_s,
        median_s=done[len(done) // 2],
        last_s=world.last_s,
        egress_copies=world.egress_copies,
        maps_read_per_s=world.looks / replicas / world.last_s,
        redis_commands=replicas * each,
        gave_up=replicas - len(done),
        events=world.events,
    )
