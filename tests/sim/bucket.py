"""An object store whose listings and reads may be late, and threads that take turns at every request to it.

The real publisher's and collector's code runs on it; who goes on, for how long somebody is stopped, and what a listing
hides comes from a seed. A thread runs only while the others wait, so a seed replays exactly.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelsync.edges.objectstore.bucket import Held


class Over(BaseException):
    """The schedule has ended: every thread leaves where it is."""


@dataclass
class Turns:
    """One thread at a time goes on, from one request to the next."""

    dice: random.Random
    now_s: float = 0.0
    over: bool = False
    _asleep_until: dict[str, float] = field(default_factory=dict)
    _may_go: dict[str, threading.Semaphore] = field(default_factory=dict)
    _gone: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _threads: list[threading.Thread] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)

    def start(self, name: str, work: Callable[[], None]) -> None:
        self._may_go[name] = threading.Semaphore(0)
        self._asleep_until[name] = 0.0

        def run() -> None:
            try:
                self.wait()
                while True:
                    work()
            except Over:
                pass
            except BaseException as error:
                self.faults.append(error)
            finally:
                del self._may_go[name]
                self._gone.release()

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        self._gone.acquire()

    def wait(self) -> None:
        """Called by a thread before each request: somebody else may go first, for a long time."""
        mine = self._may_go[threading.current_thread().name]
        self._gone.release()
        mine.acquire()
        if self.over:
            raise Over

    def run(self, steps: int, freeze: float) -> None:
        """``freeze``: how often, in each step, somebody is stopped for up to ten minutes."""
        for _ in range(steps):
            self.now_s += self.dice.random() * 1.5
            awake = [name for name, until_s in self._asleep_until.items() if until_s <= self.now_s]
            if not awake:
                continue
            name = self.dice.choice(awake)
            if self.dice.random() < freeze:
                self._asleep_until[name] = self.now_s + self.dice.random() * 600.0
                continue
            if name not in self._may_go:
                break  # it ended with a fault
            self._may_go[name].release()
            self._gone.acquire()
        self.over = True
        for name in list(self._may_go):
            self._may_go[name].release()
        for thread in self._threads:
            thread.join(10)

    def boottime_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 0


@dataclass
class Late:
    """An object, and when a listing or another host's read begins and ceases to know of it."""

    data: bytes
    size_bytes: int
    modified_s: float
    shown_from_s: float
    by: str
    removed_s: float | None = None
    shown_until_s: float = 0.0


class World:
    """What truly lies in the store. ``lag_s``: how late listings are at most; ``late_reads``: a mount's caches too."""

    def __init__(self, turns: Turns, lag_s: float, *, late_reads: bool) -> None:
        self.turns = turns
        self.lag_s = lag_s
        self.late_reads = late_reads
        self.objects: dict[str, Late] = {}
        self.deleted: list[str] = []
        self.on_delete: Callable[[str], None] = lambda key: None

    def has(self, key: str) -> bool:
        return key in self.objects and self.objects[key].removed_s is None

    def put(self, key: str, data: bytes, by: str, size_bytes: int = 0) -> None:
        now_s = self.turns.now_s
        self.objects[key] = Late(
            data, size_bytes or len(data), now_s, now_s + self.turns.dice.random() * self.lag_s, by
        )

    def shown(self, key: str) -> bool:
        found, now_s = self.objects[key], self.turns.now_s
        return now_s >= found.shown_from_s and (found.removed_s is None or now_s < found.shown_until_s)


class SimBucket:
    """Looks like edges.objectstore.bucket.Bucket; one for each host."""

    trouble: str | None = None

    def __init__(self, world: World, host: str) -> None:
        self._world = world
        self._host = host

    def in_parallel(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(work, items)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _seen(self, key: str) -> Late | None:
        self._world.turns.wait()
        found = self._world.objects.get(key)
        if found is None or found.removed_s is not None:
            return None
        if self._world.late_reads and found.by != self._host and self._world.turns.now_s < found.shown_from_s:
            return None
        return found

    def size_bytes(self, key: str) -> int | None:
        found = self._seen(key)
        return found.size_bytes if found is not None else None

    def read(self, key: str, max_bytes: int) -> tuple[bytes, str] | None:
        found = self._seen(key)
        return (found.data, str(found.modified_s)) if found is not None else None

    def listed(self, prefix: str) -> Iterator[Held]:
        self._world.turns.wait()
        for key in sorted(self._world.objects):
            if key.startswith(prefix) and self._world.shown(key):
                found = self._world.objects[key]
                yield Held(key, found.size_bytes, str(found.modified_s), datetime.fromtimestamp(found.modified_s, UTC))

    def now(self) -> datetime:
        self._world.turns.wait()
        return datetime.fromtimestamp(self._world.turns.now_s, UTC)

    def create(self, key: str, data: bytes) -> bool:
        self._world.turns.wait()
        if self._world.has(key):
            return False
        self._world.put(key, data, self._host)
        return True

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        self._world.turns.wait()
        found = self._world.objects.get(key)
        if found is None or found.removed_s is not None or str(found.modified_s) != tag:
            return False
        self._world.put(key, data, self._host)
        return True

    def upload(self, key: str, path: Path, size_bytes: int) -> None:
        self._world.turns.wait()
        self._world.put(key, b"", self._host, size_bytes)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._world.turns.wait()
            if self._world.has(key):
                found = self._world.objects[key]
                found.removed_s = self._world.turns.now_s
                found.shown_until_s = self._world.turns.now_s + self._world.turns.dice.random() * self._world.lag_s
                self._world.deleted.append(key)
                self._world.on_delete(key)
