"""What runs while primaries fall: clients that publish again and again, and readers of `current` on every host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelsync.core.errors import ModelsyncError
from modelsync.core.ids import EntryId, ModelName
from modelsync.edges.http.control import ControlClient

MODEL = ModelName("failover")
FILE = f"{MODEL}.bin"
BODY_BYTES = 4096
RETRY_S = 0.01
TIMEOUT_S = 0.2
"""For a connection and for each silence: a client that is redirected to a host without power must not wait for long."""


def body() -> bytes:
    """New bytes that prove themselves: a SHA-256, and what it is of."""
    rest = os.urandom(BODY_BYTES)
    return hashlib.sha256(rest).digest() + rest


def is_whole(data: bytes) -> bool:
    return len(data) == 32 + BODY_BYTES and hashlib.sha256(data[32:]).digest() == data[:32]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A publish that was answered with a version, at CLOCK_MONOTONIC ``at_s``."""

    at_s: float
    epoch: int
    version: int
    digest: str


@dataclass
class Publishing:
    """A context: one client a list of URLs; it goes on to its next URL when one refuses.

    Runs in a thread of its own, which sees the network that its starter sees.
    """

    clients: Sequence[Sequence[str]]
    scratch: Path
    pause_s: float = 0.0
    accepted: list[Accepted] = field(default_factory=list)
    refused: int = 0

    def __enter__(self) -> Publishing:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="publishing")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number, urls in enumerate(self.clients):
                group.create_task(self._client(self.scratch / str(number) / FILE, urls))

    async def _client(self, path: Path, urls: Sequence[str]) -> None:
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        at = 0
        async with ControlClient(timeout_s=TIMEOUT_S) as client:
            while not self._stop.is_set():
                await asyncio.to_thread(path.write_bytes, body())
                try:
                    answer = await client.publish(urls[at % len(urls)], MODEL, path)
                except ModelsyncError:
                    self.refused += 1
                    at += 1
                    await asyncio.sleep(RETRY_S)
                else:
                    epoch = EntryId.parse(answer["id"]).epoch
                    now_s = time.monotonic()
                    self.accepted.append(Accepted(now_s, epoch, int(answer["version"]), str(answer["digest"])))
                    await asyncio.sleep(self.pause_s)

    def first_above(self, epoch: int, timeout_s: float = 60.0) -> Accepted:
        """The first publish that a later primary accepted. Raises SystemExit: there was none in that time."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            for one in list(self.accepted):
                if one.epoch > epoch:
                    return one
            time.sleep(0.002)
        raise SystemExit(f"no publish was accepted within {timeout_s:g} s after the primary of epoch {epoch} died")


class Readers:
    """A context: reads `current` on every host in turn, and counts what cannot be read or is not whole."""

    def __init__(self, live: Mapping[str, Path]) -> None:
        self._live = live
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readers")
        self.reads = 0
        self.failures: list[str] = []

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for host, live in self._live.items():
                self._read(host, live / MODEL / "current" / FILE)
            time.sleep(0.005)

    def _read(self, host: str, path: Path) -> None:
        self.reads += 1
        try:
            if not is_whole(path.read_bytes()):
                self.failures.append(f"{host}: bytes that were never published")
        except OSError as error:
            self.failures.append(f"{host}: {error}")
