"""A fleet that pulls one object, in virtual time: the real plan of every node, over links that are modelled.

What is modelled: each node has a link whose two directions carry so many bytes a second. A chunk takes its turn on the
sender's and on the receiver's link, first come first served, so that requests that run beside each other share a link
as TCP streams would and never more than its rate passes. What is left out: processors, disks, lost packets, TCP's slow
start. To simulate thousands of nodes, chunks are coarser than real ones; nothing else changes.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modelsync.core.swarm import neighbours, shares
from modelsync.core.swarm.messages import (
    AbandonRun,
    AskRun,
    Candidate,
    ChunkDone,
    Effect,
    Limits,
    PeerHas,
    PeerSilent,
    PeersSeen,
    ReadMap,
    RunDone,
    RunFailed,
)
from modelsync.core.swarm.plan import Swarm

PRIMARY = "primary"
SALT = b"an object"
LOOK_BYTES = 1000
"""A map of chunks with its HTTP heads."""

TURN_S = 0.002
"""What comes within this time is thought about together, as by a thread that has to be woken."""


@dataclass
class Link:
    """One direction of one node's link."""

    rate_bytes_per_s: float
    free_s: float = 0.0
    carried_bytes: float = 0.0

    def carry(self, size_bytes: float, now_s: float) -> float:
        """When these bytes have passed, after all that was to pass before."""
        self.free_s = max(self.free_s, now_s) + size_bytes / self.rate_bytes_per_s
        self.carried_bytes += size_bytes
        return self.free_s


@dataclass
class Host:
    """One node: its links, its plan (none for the primary, which has everything), and what it has under way."""

    id: str
    up: Link
    down: Link
    plan: Swarm | None = None
    rng: random.Random = field(default_factory=random.Random)
    alive: bool = True
    sending: int = 0
    open: dict[int, bool] = field(default_factory=dict)
    """By request: whether it was broken off."""
    wake_s: float = float("inf")
    done_s: float | None = None
    gave_up_s: float | None = None
    asks: list[AskRun] = field(default_factory=list)


class World:
    """Hosts and what happens to them, in order of time.

    Args:
        replicas: how many, beside the primary.
        chunks, chunk_bytes: of the object.
        rate_bytes_per_s: of every link, in each direction.
        latency_s: one way.
        bodies: how many a host sends at once; it is busy for others.
        start_s: within it the replicas begin, at random.
        keep_asks: remember every request, for tests.
        racks: the replicas stand in so many, by turns; 0: nobody says where.
        apart: the distance between two racks.
        primary_rack: the primary stands in this one; None: elsewhere.
    """

    def __init__(
        self,
        *,
        replicas: int,
        chunks: int,
        chunk_bytes: int,
        rate_bytes_per_s: float,
        latency_s: float = 0.0005,
        bodies: int = 64,
        start_s: float = 0.1,
        seed: int = 1,
        limits: Limits = Limits(),
        keep_asks: bool = False,
        racks: int = 0,
        apart: int = 1,
        primary_rack: int | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.chunk_bytes = chunk_bytes
        self.chunks = chunks
        self.latency_s = latency_s
        self.bodies = bodies
        self.limits = limits
        self.keep_asks = keep_asks
        self.now_s = 0.0
        self.events = 0
        self.looks = 0
        self.most_open = 0
        self.racks, self._apart, self._primary_rack = racks, apart, primary_rack
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        names = [f"r{number}" for number in range(replicas)]
        self.hosts = {n: Host(n, Link(rate_bytes_per_s), Link(rate_bytes_per_s)) for n in (PRIMARY, *names)}
        self._tier = frozenset(shares.tier(names, SALT)) if replicas > neighbours.NEAR + neighbours.FAR + 1 else None
        order = {name: place for place, name in enumerate(sorted(names, key=lambda n: shares.rank_key(SALT, n)))}
        for name in names:
            self._at(self.rng.random() * start_s, self._starter(self.hosts[name], order[name]))

    def _starter(self, host: Host, rank: int) -> Callable[[], None]:
        return lambda: self._start(host, rank)

    def _start(self, host: Host, rank: int) -> None:
        host.rng = random.Random(self.rng.random())
        host.plan = Swarm(
            me=host.id,
            salt=SALT,
            sizes_bytes=[self.chunk_bytes] * self.chunks,
            held=0,
            draw=host.rng.randrange,
            now_s=self.now_s,
            limits=self.limits,
        )
        host.plan.step(PeersSeen(self._candidates(host), self._tier, rank), self.now_s)
        self.pump(host)

    def _candidates(self, host: Host) -> Sequence[Candidate]:
        names = [name for name in self.hosts if name not in (host.id, PRIMARY)]
        if self._tier is not None:  # as core.swarm.neighbours does, without sorting a large fleet for each of its nodes
            names = host.rng.sample(names, neighbours.NEAR + neighbours.FAR)
        others = [Candidate(name, self._distance(host.id, name)) for name in names]
        beside = self.racks and self._primary_rack == int(host.id[1:]) % self.racks
        return [*others, Candidate(PRIMARY, 0 if beside else 2, primary=True, holds=True)]

    def _distance(self, one: str, other: str) -> int:
        if not self.racks:
            return 2
        return 0 if int(one[1:]) % self.racks == int(other[1:]) % self.racks else self._apart

    # --- time --------------------------------------------------------------------------------------------------------

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at_s, self._number, what))

    def run(self, until_s: float = float("inf")) -> None:
        """Until everybody is done or has given up, or until a time."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._heap)
            self.events += 1
            what()

    # --- a node's turn -----------------------------------------------------------------------------------------------

    def pump(self, host: Host) -> None:
        """Let a node's plan say what to do now, and do it."""
        plan = host.plan
        if plan is None or not host.alive or host.done_s is not None:
            return
        effects = plan.next_effects(self.now_s)
        for effect in effects:
            self._do(host, effect)
        if looks := [effect.peer for effect in effects if isinstance(effect, ReadMap)]:
            self.looks += len(looks)
            self._at(self.now_s + 2 * self.latency_s, lambda: self._read(host, looks))
        if plan.done:
            host.done_s = self.now_s
        elif plan.stuck(self.now_s):
            host.gave_up_s, host.plan = self.now_s, None
        else:
            self._wake(host, plan.wake_s(self.now_s))

    def _wake(self, host: Host, at_s: float) -> None:
        at_s = max(at_s, self.now_s + TURN_S)
        if at_s < host.wake_s or host.wake_s <= self.now_s:
            host.wake_s = at_s

            def awake() -> None:
                if host.wake_s == at_s:
                    host.wake_s = float("inf")
                    self.pump(host)

            self._at(at_s, awake)

    def _do(self, host: Host, effect: Effect) -> None:
        if isinstance(effect, AskRun):
            if self.keep_asks:
                host.asks.append(effect)
            host.open[effect.ask] = False
            self.most_open = max(self.most_open, len(host.open))
            self._at(self.now_s + self.latency_s, lambda: self._begin(host, effect))
        elif isinstance(effect, AbandonRun):
            host.open[effect.ask] = True

    def _read(self, host: Host, names: Sequence[str]) -> None:
        for name in names:
            peer = self.hosts[name]
            peer.up.carry(LOOK_BYTES, self.now_s)
            if host.plan is None:
                continue
            if not peer.alive:
                host.plan.step(PeerSilent(name), self.now_s)
            else:
                held = peer.plan.held if peer.plan is not None else 0
                pulling = peer.plan is not None and peer.done_s is None
                coming = peer.plan.coming if peer.plan is not None else 0
                host.plan.step(PeerHas(name, held, pulling, coming), self.now_s)
        self._wake(host, self.now_s + TURN_S)

    # --- bytes -------------------------------------------------------------------------------------------------------

    def _begin(self, host: Host, run: AskRun) -> None:
        peer = self.hosts[run.peer]
        if not peer.alive:
            self._end(host, run, RunFailed(run.ask))
        elif peer.sending >= self.bodies:
            self._end(host, run, RunFailed(run.ask, busy_s=1.0))
        else:
            peer.sending += 1
            self._next(host, peer, run, run.first)

    def _next(self, host: Host, peer: Host, run: AskRun, chunk: int) -> None:
        sent_s = peer.up.carry(self.chunk_bytes, self.now_s)
        came_s = host.down.carry(self.chunk_bytes, self.now_s)
        self._at(max(sent_s, came_s) + self.latency_s, lambda: self._came(host, peer, run, chunk))

    def _came(self, host: Host, peer: Host, run: AskRun, chunk: int) -> None:
        if host.plan is None or not host.alive:
            peer.sending -= 1
            return
        if not peer.alive:
            self._end(host, run, RunFailed(run.ask))
            return
        host.plan.step(ChunkDone(run.ask, chunk), self.now_s)
        if host.open[run.ask] or chunk == run.last:
            peer.sending -= 1
            self._end(host, run, RunDone(run.ask))
        else:
            self._next(host, peer, run, chunk + 1)

    def _end(self, host: Host, run: AskRun, event: RunDone | RunFailed) -> None:
        host.open.pop(run.ask, None)
        if host.plan is not None:
            host.plan.step(event, self.now_s)
            self._wake(host, self.now_s + TURN_S)

    # --- what came of it ---------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> list[Host]:
        return [host for name, host in self.hosts.items() if name != PRIMARY]

    @property
    def last_s(self) -> float:
        """When the last replica was done."""
        return max((host.done_s if host.done_s is not None else float("inf")) for host in self.replicas)

    @property
    def egress_copies(self) -> float:
        """What left the primary, in copies of the object."""
        return self.hosts[PRIMARY].up.carried_bytes / (self.chunks * self.chunk_bytes)
