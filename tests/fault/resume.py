"""Either side of a pull dies after one byte or another: what is fetched twice, and how it ends.

Three real daemons, each behind a proxy that knows who asked for which bytes. A new version is pulled by two replicas,
and at a byte drawn from a seed one process is killed: the primary, back at once; the primary, back only when another
has taken over, while the replicas go on from each other; a replica as it serves; a replica as it pulls. What a replica
said it had verified (``/v1/have``) a moment before a request must not be in that request, also after its own death.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3
from tests.fault.counted_link import CountedLink, Request
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.terms import QUICK_LEASE, in_step, primary_of, seen_by

MIB = 1 << 20
NAMES = ("alpha", "beta", "gamma")
MODEL = "large"
KINDS = ("primary, back at once", "primary, succeeded", "replica that serves", "replica that pulls")
SIZES = (20 * MIB + 4321, 9 * MIB + 1)
"""From all peers at once, and from one after another (``SWARM_FROM_BYTES``)."""
MOMENT_S = 0.5
"""A request was decided on some time before it is seen: what was verified within it does not count."""
LOOK_S = 0.02
ENDS_WITHIN_S = 60.0

Ranges = list[tuple[int, int]]


@dataclass
class Tally:
    """What became of the pulls."""

    trials: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    """By kind: how many came to their byte."""
    succeeded: int = 0
    """Pulls that ended under another epoch than they began in."""
    requests: int = 0
    unknown: int = 0
    """Requests whose asker had gone before it could be looked up."""
    verified_bytes: int = 0
    """What was verified, somewhere, when a process died."""
    asked_bytes: int = 0
    moved_bytes: int = 0
    """What all requests asked for, and what there was to pull."""
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Watch:
    """A context: what each replica has verified of an object, as it says itself, from look to look."""

    def __init__(self, daemons: list[Daemon], digest: str, size_bytes: int) -> None:
        self._daemons, self._digest, self._size = daemons, digest, size_bytes
        self.seen: list[tuple[float, str, Ranges]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._look, args=(each,), daemon=True) for each in daemons]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _look(self, daemon: Daemon) -> None:
        while not self._over.wait(LOOK_S):
            with contextlib.suppress(OSError, ValueError):
                with urllib.request.urlopen(f"{daemon.url}/v1/have/{self._digest}", timeout=2) as response:
                    told = json.load(response)
                held = [(0, self._size)] if told["held"] else [(start, end) for start, end in told.get("ranges", ())]
                self.seen.append((time.monotonic(), daemon.name, held))

    def verified_bytes(self) -> int:
        last = {name: held for _, name, held in self.seen}
        return sum(end - start for held in last.values() for start, end in held)

    def twice(self, request: Request) -> Ranges:
        """What of a request its asker had verified a moment before."""
        known: Ranges = []
        for at_s, name, held in self.seen:
            if name == request.who and at_s < request.at_s - MOMENT_S:
                known = held
        found = [(max(start, request.start), min(end, request.end)) for start, end in known]
        return [(start, end) for start, end in found if start < end]


class Trials(Fleet):
    """The fleet whose members die."""

    def __init__(self, root: Path, seed: int) -> None:
        super().__init__(root)
        self._draw = random.Random(seed)
        self.links: dict[str, CountedLink] = {}
        for name in NAMES:
            self.links[name] = link = CountedLink(self._pids)
            daemon = self.add(name, QUICK_LEASE, wait=False, advertise=link.url)
            link.target = daemon.url
            if name == NAMES[0]:
                until(daemon.alive, "the first daemon")
                until(lambda d=daemon: seen_by(d).get("primary"), "a primary")
        self._mend()

    def close(self) -> None:
        super().close()
        for link in self.links.values():
            link.close()

    def _pids(self) -> dict[str, int]:
        return {daemon.name: daemon.process.pid for daemon in self.daemons if daemon.process is not None}

    def _mend(self) -> None:
        for daemon in self.daemons:
            self.links[daemon.name].disarm()
            if daemon.process is None or daemon.process.poll() is not None:
                daemon.start()
        until(lambda: in_step(self.daemons), "a fleet in step", 40)

    def trial(self, kind: str, size_bytes: int, tally: Tally) -> None:
        """One version, one death, and what came of it."""
        primary = primary_of(self.daemons)
        epoch = seen_by(primary)["epoch"]
        replicas = [daemon for daemon in self.daemons if daemon is not primary]
        data = self._draw.randbytes(size_bytes)
        digest = f"b3:{blake3(data).hexdigest()}"
        victim = primary if kind.startswith("primary") else replicas[self._draw.randrange(2)]
        at_byte = self._draw.randrange(size_bytes // 4 if kind == "replica that serves" else size_bytes)
        died = threading.Event()
        watch = Watch(replicas, digest, size_bytes)

        def die() -> None:
            tally.verified_bytes += watch.verified_bytes()
            victim.kill()
            died.set()

        for link in self.links.values():
            link.arm(digest, -1, die)
        source = victim if kind != "replica that pulls" else primary
        only = victim.name if kind == "replica that pulls" else ""
        self.links[source.name].arm(digest, at_byte, die, only)
        head = primary.head(MODEL)
        with watch:
            primary.put(f"{MODEL}.bin", data)
            until(lambda: died.is_set() or self._ended(head + 1), "the death, or the end", ENDS_WITHIN_S)
            if died.is_set():
                tally.reached[kind] += 1
                self._return(kind, victim, epoch)
            what = f"{kind}, {size_bytes} bytes, at {at_byte}"
            self._await_end(head + 1, digest, what, tally)
        tally.trials += 1
        tally.succeeded += primary_of(self.daemons) is not primary
        self._judge(watch, digest, 2 * size_bytes, what, tally)
        self._mend()

    def _return(self, kind: str, victim: Daemon, epoch: int) -> None:
        if kind == "primary, succeeded":
            primary_of([daemon for daemon in self.daemons if daemon is not victim], above=epoch)
        victim.start()

    def _ended(self, version: int) -> bool:
        return all(_active(daemon) == version for daemon in self.daemons)

    def _await_end(self, version: int, digest: str, what: str, tally: Tally) -> None:
        try:
            until(lambda: self._ended(version), "the version everywhere", ENDS_WITHIN_S)
        except AssertionError as error:
            tally.wrong.append(f"{what}: {error}: {[_active(daemon) for daemon in self.daemons]}")
            return
        for daemon in self.daemons:
            tree = daemon.tree(MODEL)
            held = tree and blake3((tree / f"{MODEL}.bin").read_bytes()).hexdigest()
            if held != digest.removeprefix("b3:"):
                tally.wrong.append(f"{what}: {daemon.name} runs {held}")

    def _judge(self, watch: Watch, digest: str, moved_bytes: int, what: str, tally: Tally) -> None:
        tally.moved_bytes += moved_bytes
        for link in self.links.values():
            for request in (request for request in link.requests if request.digest == digest):
                tally.asked_bytes += request.end - request.start
                tally.requests += 1
                tally.unknown += not request.who
                if found := watch.twice(request):
                    tally.twice.append(f"{what}: {request.who} asked again for {found[:3]}")


def _active(daemon: Daemon) -> int | None:
    nodes = seen_by(daemon).get("nodes", ())
    return next((node["models"].get(MODEL, {}).get("active") for node in nodes if node["id"] == daemon.name), None)


def plan(count: int) -> Iterator[tuple[str, int]]:
    """Every kind and size in turn; a replica serves nobody of what comes from one peer after another."""
    every = [(kind, size) for size in SIZES for kind in KINDS if (kind, size) != (KINDS[2], SIZES[1])]
    return (every[number % len(every)] for number in range(count))


def run(count: int, seed: int, root: Path, say: Callable[[str], None] = lambda line: None) -> Tally:
    """So many pulls, each with one death."""
    tally, trials = Tally(), Trials(root, seed)
    try:
        for kind, size_bytes in plan(count):
            wrong, twice = len(tally.wrong), len(tally.twice)
            trials.trial(kind, size_bytes, tally)
            for line in (*tally.wrong[wrong:], *tally.twice[twice:]):
                say(line)
    finally:
        trials.close()
    return tally
