"""One object from several peers at once: carries out what ``core.swarm.plan`` plans, in threads.

The thread that called orders; a thread for each request receives, and one more for each map that is read. Everything
that happens comes back over one queue, so the plan is only ever touched by one thread. This file must not know who
ought to be asked for what, nor how an answer is read.
"""

from __future__ import annotations

import contextlib
import queue
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modelsync.core.errors import DigestMismatch, ModelsyncError, PeerRefused, PeerUnavailable
from modelsync.core.swarm import neighbours
from modelsync.core.swarm.messages import (
    AbandonRun,
    Arrived,
    AskRun,
    Candidate,
    ChunkCorrupt,
    ChunkDone,
    Effect,
    Event,
    Limits,
    PeerHas,
    PeerSilent,
    ReadMap,
    RunDone,
    RunFailed,
)
from modelsync.core.swarm.plan import Swarm
from modelsync.core.swarm.suspects import Suspects
from modelsync.core.transfer.chunk_map import bits_within
from modelsync.core.transfer.ranges import Run
from modelsync.edges.pull.attempt import Attempt, Overtaken
from modelsync.edges.pull.chunk_stream import FilePull, receive
from modelsync.edges.pull.connections import Connections, require_going_on, without_frames
from modelsync.edges.pull.peer_maps import read_map
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Peer

TURN_S = 0.1
"""The longest between two looks at how far requests are, and at whether the pull was cancelled."""
WHO_S = 1.0
"""Between two looks at who is there: a new primary is asked within this."""
LIMITS = Limits()
_BUSY = 503
_BUSY_S = 1.0
_MAPS_AT_ONCE = neighbours.NEAR + neighbours.FAR

Look = Callable[[], Sequence[Peer]]
"""Who may be asked now."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What all pulls of a node share."""

    me: str
    connections: Connections
    limiter: RateLimiter
    suspects: Suspects


class SwarmPull:
    """One object's pull; ``run`` once. Chunks that are ``spared`` are not asked for: they will come another way."""

    def __init__(self, pull: FilePull, tools: Tools, look: Look, spared: Collection[int] = ()) -> None:
        self._pull = pull
        self._tools = tools
        self._look = look
        self._starts = pull.starts
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._attempts: dict[int, Attempt] = {}
        self._peers: dict[str, Peer] = {}
        self._fault: ModelsyncError = PeerUnavailable(
            peer="any", reason="nobody that is known holds all that is missing"
        )
        self._threads = ThreadPoolExecutor(LIMITS.in_all + LIMITS.hedges + _MAPS_AT_ONCE, "pull")
        self._plan = Swarm(
            me=tools.me,
            salt=pull.entry.digest.raw,
            sizes_bytes=pull.sizes,
            held=pull.verified.bits() | sum(1 << index for index in set(spared)),
            draw=random.randrange,
            now_s=time.monotonic(),
            limits=LIMITS,
        )

    def run(self) -> None:
        """Until every chunk is verified.

        Raises:
            PeerUnavailable, PeerRefused, DigestMismatch: nobody has, or will soon have, what is missing.
            DiskFull, DiskFailed: the file must be discarded.
            TimedOut: cancelled.
        """
        try:
            who_s = 0.0
            while not self._plan.done:
                require_going_on(self._pull.progress)
                if time.monotonic() >= who_s:
                    who_s = time.monotonic() + WHO_S
                    self._see()
                self._turn()
        finally:
            self._end()

    def _turn(self) -> None:
        self._plan.rate_limit_bytes_per_s = self._tools.limiter.rate_bytes_per_s
        now_s = time.monotonic()
        for effect in self._plan.next_effects(now_s):
            self._do(effect)
        self._pull.verified.coming = self._plan.coming
        if self._plan.stuck(now_s):
            raise self._fault
        for event in self._happened(min(TURN_S, self._plan.wake_s(now_s) - now_s)):
            self._note_delivered()
            self._plan.step(event, time.monotonic())
        self._note_delivered()

    def _happened(self, wait_s: float) -> Iterator[Event]:
        """What has come in, after waiting for the first of it."""
        with contextlib.suppress(queue.Empty):
            found = self._events.get(timeout=max(0.001, wait_s))
            while True:
                if isinstance(found, BaseException):
                    raise found
                yield found
                found = self._events.get_nowait()

    def _note_delivered(self) -> None:
        """Tell the plan which chunks have come: they are only listed by the threads, which have better to do."""
        now_s = time.monotonic()
        for ask, attempt in self._attempts.items():
            self._plan.step(Arrived(ask, attempt.arrived_bytes), now_s)
            new = attempt.delivered[attempt.seen :]
            attempt.seen += len(new)
            for chunk in new:
                self._plan.step(ChunkDone(ask, chunk), now_s)

    def _see(self) -> None:
        """Take in who is there; who lately gave wrong bytes is left out while there is anybody else."""
        found = {peer.id: peer for peer in self._look() if peer.id != self._tools.me}
        trusted = self._tools.suspects.without(found, time.monotonic())
        self._peers = {name: found[name] for name in trusted}
        fleet = [Candidate(p.id, p.distance, p.primary, p.holds) for p in self._peers.values()]
        useless = self._plan.useless
        self._plan.step(neighbours.seen(self._tools.me, fleet, self._pull.entry.digest.raw, useless), time.monotonic())

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, AbandonRun):
            self._attempts[effect.ask].end()
        elif isinstance(effect, ReadMap):
            self._threads.submit(self._read_map, self._peers.get(effect.peer), effect.peer)
        else:
            self._attempts[effect.ask] = attempt = Attempt()
            self._threads.submit(self._receive, effect, self._peers.get(effect.peer), attempt)

    def _end(self) -> None:
        """Leave nobody behind who could still write to the file."""
        self._pull.verified.coming = 0
        for attempt in self._attempts.values():
            attempt.end()
        for attempt in self._attempts.values():
            attempt.wait_unused()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- in threads of their own --------------------------------------------------------------------------------------

    def _read_map(self, peer: Peer | None, name: str) -> None:
        event: Event = PeerSilent(name)
        if peer is not None:
            with contextlib.suppress(PeerUnavailable, PeerRefused):
                size_bytes = self._pull.entry.size_bytes
                told = read_map(self._tools.connections, peer, self._pull.entry.digest, size_bytes)
                has, coming = (bits_within(each, self._starts, size_bytes) for each in (told.ranges, told.coming))
                event = PeerHas(name, has, told.pulling, coming)
        self._events.put(event)

    def _receive(self, ask: AskRun, peer: Peer | None, attempt: Attempt) -> None:
        try:
            self._events.put(self._outcome(ask, peer, attempt))
        except BaseException as error:  # a fault of this host, or a cancellation: it ends the pull
            self._events.put(error)

    def _outcome(self, ask: AskRun, peer: Peer | None, attempt: Attempt) -> Event:
        run = Run(ask.first, ask.last)
        if peer is None:
            return RunFailed(ask.ask)
        try:
            attempt.require_wanted()
            entry = self._pull.entry
            opened = self._tools.connections.chunks(
                peer, entry.digest, run.byte_range(entry), entry.chunk_bytes, attempt
            )
            with opened as response, attempt.receiving():
                receive(response, peer, self._pull, run, self._tools.limiter, attempt)
            return RunDone(ask.ask)
        except Overtaken:
            return RunDone(ask.ask)
        except (PeerUnavailable, PeerRefused, DigestMismatch) as error:
            return RunDone(ask.ask) if attempt.over else self._blamed(ask, error)

    def _blamed(self, ask: AskRun, error: PeerUnavailable | PeerRefused | DigestMismatch) -> Event:
        if isinstance(error, PeerRefused) and error.status == _BUSY:
            return RunFailed(ask.ask, busy_s=random.uniform(0.5, 1.5) * _BUSY_S)
        self._fault = without_frames(error)
        self._pull.progress.blamed.append(self._fault)
        if isinstance(error, DigestMismatch):
            self._tools.suspects.accuse(ask.peer, time.monotonic())
            return ChunkCorrupt(ask.ask)
        return RunFailed(ask.ask, refused=isinstance(error, PeerRefused))
