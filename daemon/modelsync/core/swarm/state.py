"""What one pull knows, and how that changes with each event. Pure; time is handed in.

``swarm`` decides by it what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modelsync.core.swarm.messages import (
    Arrived,
    ChunkCorrupt,
    ChunkDone,
    Event,
    Limits,
    PeerHas,
    PeerSilent,
    PeersSeen,
    RunDone,
    RunFailed,
)
from modelsync.core.swarm.peers import KnownPeer
from modelsync.core.swarm.runs import OpenRun


class SwarmState:
    """One pull of one object.

    Args:
        me: this node's id.
        salt: the object's digest.
        sizes_bytes: of the chunks, in order.
        held: the chunks that are here already, bit n being chunk n.
        draw: ``draw(n)`` gives a number from 0 to n - 1; seeded by whoever wants to see the same again.
        now_s: any monotonic time, here and later.
        limits: what may be under way at once.
    """

    def __init__(
        self,
        *,
        me: str,
        salt: bytes,
        sizes_bytes: Sequence[int],
        held: int,
        draw: Callable[[int], int],
        now_s: float,
        limits: Limits,
    ) -> None:
        self._me = me
        self._salt = salt
        self._sizes = sizes_bytes
        self._everything = (1 << len(sizes_bytes)) - 1
        self._mean_bytes = max(1, sum(sizes_bytes) // max(1, len(sizes_bytes)))
        self._missing = self._everything & ~held
        self._draw = draw
        self._limits = limits
        self.rate_limit_bytes_per_s = 0
        """What this node lets itself receive; 0: no limit. Who is slow because of it is not blamed."""
        self._peers: dict[str, KnownPeer] = {}
        self._tier: frozenset[str] | None = None
        self._rank = 0
        self._open: dict[int, OpenRun] = {}
        self._asked = 0
        self._news_s = now_s
        self._idle_since_s: float | None = None
        self._helped = 0
        self._shares: dict[frozenset[str], int] = {}
        self._changed = True
        """Whether something has happened by which more may be asked for than when that was last worked out."""
        self._overtaking = False
        """Whether a request is to be broken off, as what it would bring has come from elsewhere."""
        self._same_until_s = 0.0
        """If nothing happens, until then there is nothing more to ask for."""

    # --- what has happened -------------------------------------------------------------------------------------------

    def step(self, event: Event, now_s: float) -> None:
        """Take one event in. Those of requests and peers that are no longer known are ignored."""
        if not isinstance(event, PeerHas | Arrived | ChunkDone):  # most say nothing new: see there
            self._changed = True
        match event:
            case PeersSeen():
                self._see(event, now_s)
            case PeerHas():
                self._told(event, now_s)
            case PeerSilent(name) if name in self._peers:
                self._peers[name].failed(now_s)
            case Arrived(ask, size_bytes) if ask in self._open:
                self._open[ask].size_bytes = size_bytes
            case ChunkDone(ask, chunk):
                self._done(ask, chunk, now_s)
            case RunDone() | RunFailed() | ChunkCorrupt():
                self._ended(event, now_s)

    @property
    def held(self) -> int:
        """The chunks that are here."""
        return self._everything & ~self._missing

    @property
    def done(self) -> bool:
        """Whether every chunk is here."""
        return not self._missing

    @property
    def coming(self) -> int:
        """The chunks that this node has asked of somebody who holds everything: told to whoever pulls too."""
        coming = 0
        for run in self._open.values():
            peer = self._peers.get(run.ask.peer)
            if peer is not None and peer.is_source:
                coming |= run.pending
        return coming

    @property
    def useless(self) -> frozenset[str]:
        """Peers that did not answer, lied, or have nothing and pull nothing."""
        return frozenset(peer.id for peer in self._peers.values() if peer.useless)

    def _see(self, event: PeersSeen, now_s: float) -> None:
        self._tier, self._rank = event.tier, event.rank
        stay = {run.ask.peer for run in self._open.values()} | {peer.id for peer in self._peers.values() if peer.lied}
        for gone in self._peers.keys() - {candidate.id for candidate in event.candidates} - stay:
            del self._peers[gone]
        for candidate in event.candidates:
            peer = self._peers.get(candidate.id)
            if peer is None:
                peer = self._peers[candidate.id] = KnownPeer(candidate.id, now_s, look_at_s=now_s)
            if candidate.holds and not peer.answered and not peer.failures:
                peer.has, peer.complete = self._everything, True
            peer.primary, peer.distance = candidate.primary, candidate.distance

    def _told(self, event: PeerHas, now_s: float) -> None:
        peer = self._peers.get(event.peer)
        if peer is None:
            return
        if event.chunks & self._missing & ~peer.has:
            self._news_s = now_s
        everything = self._everything
        before = peer.standing
        others = ((event.chunks ^ peer.has) | (event.coming ^ peer.coming)) & self._missing
        peer.told(event.chunks & everything, everything, event.pulling, event.coming, self._missing, now_s)
        self._changed = self._changed or bool(others) or peer.standing != before

    def _done(self, ask: int, chunk: int, now_s: float) -> None:
        bit = 1 << chunk
        self._missing &= ~bit
        self._news_s = now_s
        for other in self._open.values():
            if other.pending & bit:
                other.pending &= ~bit
                if other.ask.ask != ask:
                    self._overtaken(other, now_s)
        run = self._open.get(ask)
        peer = self._peers.get(run.ask.peer) if run is not None else None
        if run is not None and peer is not None:
            self._changed = self._changed or peer.failures > 0
            peer.failures = 0
            run.delivered_bytes += self._sizes[chunk]
            run.size_bytes = max(run.size_bytes, run.delivered_bytes)
            if not peer.complete:
                self._helped = 0

    def _overtaken(self, run: OpenRun, now_s: float) -> None:
        run.overtaken = self._overtaking = self._changed = True
        if not run.ask.hedge and run.ask.peer in self._peers:
            self._peers[run.ask.peer].was_slow(now_s)

    def _ended(self, event: RunDone | RunFailed | ChunkCorrupt, now_s: float) -> None:
        run = self._open.pop(event.ask, None)
        peer = self._peers.get(run.ask.peer) if run is not None else None
        if run is None or peer is None:
            return
        peer.open -= 1
        if run.delivered_bytes:
            peer.learn_rate(run.delivered_bytes, now_s - run.since_s)
        if isinstance(event, ChunkCorrupt):
            peer.lied = True
        elif isinstance(event, RunFailed):
            peer.broke_off(now_s, event.refused, event.busy_s)
