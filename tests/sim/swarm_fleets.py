"""Large fleets that pull one large version, in virtual time, and what that would cost Redis.

Chunks are made coarser so that a fleet of thousands takes minutes rather than days: ``chunks_for`` says how much.
Coarser chunks travel more slowly from node to node, so what comes out is on the safe side. All links are alike, so
nothing is hedged.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core import rollcall
from modelsync.core.election.candidacy import MAX_RANKS, SELDOM
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.core.swarm.messages import Limits
from tests.sim.swarm_world import World

TRANSFERS = 100_000
"""Chunks times nodes of one simulation: about a minute; a fleet of 10,000 has four times as many."""
FEWEST, MOST = 40, 640
REPORT_S, POLL_S, TTL_S = 2.0, 5.0, 3.0
"""Of runtime/reporting.py, and the defaults of the configuration."""
CATALOG_COMMANDS = 8
"""Of one node that hears of a version: lease, end of the log, its entries, the record; and its announcement."""
CHANGES = 3
"""Reports of one node that are others than before: it pulls, it holds, it has switched."""


def redis_commands(nodes: int, took_s: float) -> float:
    """What all nodes of a fleet ask of Redis in that time, as ``tools/bench/crowd`` counts it."""
    look_s = rollcall.look_every_s(nodes, primary=False)
    report = took_s / REPORT_S * 3 + CHANGES  # EXPIRE, SADD and the beat; the report where it is another one
    looks = max(1.0, took_s / look_s)
    changed = min(rollcall.AT_ONCE + 1.0, CHANGES * nodes / looks) * 2  # HGETALL and PTTL of each
    lease = took_s / (SELDOM * TTL_S if nodes > MAX_RANKS else 0.25)
    follower = CATALOG_COMMANDS + report + looks * (2 + changed) + lease + took_s / POLL_S * 4
    primary = report + took_s / REPORT_S * 2 + 2 * CHANGES * nodes + took_s / 0.25
    return (nodes - 1) * follower + primary


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


def small(replicas: int, size_bytes: int, rate_bytes_per_s: float) -> World:
    """A fleet of a few replicas, chunk for chunk."""
    world = World(
        replicas=replicas,
        chunks=-(-size_bytes // CHUNK_BYTES),
        chunk_bytes=CHUNK_BYTES,
        rate_bytes_per_s=rate_bytes_per_s,
    )
    world.run()
    return world


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
    return Figures(
        replicas=replicas,
        chunks=chunks,
        ideal_s=size_bytes / rate_bytes_per_s,
        median_s=done[len(done) // 2],
        last_s=world.last_s,
        egress_copies=world.egress_copies,
        maps_read_per_s=world.looks / replicas / world.last_s,
        redis_commands=redis_commands(replicas + 1, world.last_s),
        gave_up=replicas - len(done),
        events=world.events,
    )
