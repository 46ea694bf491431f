"""What a download through a host that does not hold the model costs beside that host's own pull of it.

Both end with the same bytes verified on that host; a download's end is looked at twice: when its client has everything,
and when the host's copy is durable as well, which is where a pull ends. Memory is warm for both, and who goes first
changes with each pair.
"""

from __future__ import annotations

import http.client
import mmap
import os
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

from blake3 import blake3
from payload import MIB, write_random
from report import Bar, Result, percentile
from warm import warm

from fleet import Daemon, Fleet, until

SECTIONS = '[storage]\nmode = "partitioned"\ncopies = 1\n'
SMALL, SMALL_BYTES = 60, 200_000
PAIRS_OF_A_FLEET = 5
HELD_BYTES = 6 << 30
"""The most that one fleet publishes: beyond it owners would read from their disks, and not from memory."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds."""

    pulled: float
    through: float
    through_durable: float
    plain: float


def run(size_bytes: int, runs: int, result: Result) -> None:
    """So many pairs of one size; the first bytes of small models are looked at in the first fleet."""
    pairs: list[Pair] = []
    while len(pairs) < runs:
        count = max(1, min(runs - len(pairs), PAIRS_OF_A_FLEET, HELD_BYTES // (2 * size_bytes)))
        with Fleet("node-1", "node-2", "node-3", sections=SECTIONS) as fleet:
            first_bytes(fleet, result, judged=not pairs)
            pairs += [_pair(fleet, number, size_bytes, len(pairs) + number) for number in range(count)]
    whole = median(pair.through / pair.pulled for pair in pairs)
    durable = median(pair.through_durable / pair.pulled for pair in pairs)
    size = f"{size_bytes // MIB} MiB"
    result.figures[f"through {size}"] = [(p.pulled, p.through, p.through_durable, p.plain) for p in pairs]
    result.bars.append(Bar(f"reading {size} through", whole, 1.3, "x a verified pull"))
    result.bars.append(Bar(f"reading {size} through, durable here too", durable, 1.3, "x a verified pull"))


def first_bytes(fleet: Fleet, result: Result, *, judged: bool) -> None:
    """Small models that lie elsewhere, one after another."""
    names = [f"small-{number}" for number in range(SMALL)]
    for name in names:
        (fleet.root / "source").write_bytes(os.urandom(SMALL_BYTES))
        (fleet.root / "source").rename(fleet.primary.models / f"{name}.bin")
    placed = _placed(fleet, SMALL)
    room = memoryview(bytearray(SMALL_BYTES))
    firsts = [1000 * download(stranger(fleet, placed[name]), name, room)[0] for name in names]
    if judged:
        print(f"first byte: p50 {median(firsts):.1f} ms, p99 {percentile(firsts, 0.99):.1f} ms", flush=True)
        result.figures["first_byte_ms"] = firsts
        result.bars.append(Bar("first byte of a read-through, p99", percentile(firsts, 0.99), 50, "ms"))


def _pair(fleet: Fleet, number: int, size_bytes: int, turn: int) -> Pair:
    pulled, through = f"pulled-{number}", f"through-{number}"
    digests = {name: _publish(fleet, name, size_bytes) for name in (pulled, through)}
    placed = _placed(fleet, SMALL + 2 * number + 2)
    room = _room(size_bytes)
    tasks: dict[str, Callable[[], tuple[float, ...]]] = {
        "pulled": lambda: pull(stranger(fleet, placed[pulled]), pulled),
        "through": lambda: _through(stranger(fleet, placed[through]), through, room, digests[through]),
    }
    took = {}
    for what in (("pulled", "through"), ("through", "pulled"))[turn % 2]:
        os.sync()  # who goes second does not wait for the disk of who went first
        time.sleep(1)
        with warm(size_bytes + (256 << 20)):
            took[what] = tasks[what]()
    assert blake3(room).hexdigest() == digests[through], "the bytes that were downloaded"
    _, plain_s = download(_owner(fleet, placed[through]), through, room)
    pair = Pair(*took["pulled"], *took["through"], plain_s)
    print(
        f"{size_bytes // MIB} MiB: pulled {pair.pulled:.3f} s; "
        f"through {pair.through:.3f} s ({pair.through / pair.pulled:.2f}), "
        f"durable {pair.through_durable:.3f} s ({pair.through_durable / pair.pulled:.2f}); "
        f"from its owner, unverified, {pair.plain:.3f} s",
        flush=True,
    )
    return pair


def _room(size_bytes: int) -> memoryview:
    """Warm memory for a client's bytes."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, size_bytes, mmap.PAGESIZE):
        memory[offset] = 1
    return memoryview(memory)


def _publish(fleet: Fleet, name: str, size_bytes: int) -> str:
    source = fleet.root / "source"
    write_random(source, size_bytes)
    digest = blake3(max_threads=2).update_mmap(source).hexdigest()
    source.rename(fleet.primary.models / f"{name}.bin")
    return digest


def _placed(fleet: Fleet, count: int) -> dict[str, list[str]]:
    """Owners by model, once all models lie on theirs."""

    def placed() -> dict[str, list[str]]:
        lines = fleet.primary.status().get("placement", {})
        return {name: line["owners"] for name, line in lines.items() if line.get("owners") and not line.get("trouble")}

    until(lambda: len(placed()) == count, "all models on their owners", 120)
    return placed()


def pull(node: Daemon, name: str) -> tuple[float]:
    """Seconds from the request until the version is active there: verified, durable, linked."""
    began_s = time.monotonic()
    request = urllib.request.Request(f"{node.url}/v1/models/{name}/load", method="POST")
    urllib.request.urlopen(request, timeout=10).close()
    while not node.current(name):
        time.sleep(0.001)
    return (time.monotonic() - began_s,)


def _through(node: Daemon, name: str, room: memoryview, digest: str) -> tuple[float, float]:
    """Seconds from the request until its client has everything, and until the object has its name there."""
    began_s = time.monotonic()
    _, whole_s = download(node, name, room)
    while not (node.root / "state" / "objects" / "b3" / digest[:2] / digest).exists():
        time.sleep(0.001)
    return whole_s, time.monotonic() - began_s


def download(node: Daemon, name: str, room: memoryview) -> tuple[float, float]:
    """Seconds until the first byte, and until ``room`` is full."""
    parts = urlsplit(node.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
    began_s = time.monotonic()
    try:
        connection.request("GET", f"/v1/models/{name}/versions/1/files/{name}.bin")
        answer = connection.getresponse()
        assert answer.status == 200, f"{answer.status} {answer.read(300)!r}"
        got = answer.readinto(room[:1])
        first_s = time.monotonic() - began_s
        while size := answer.readinto(room[got : got + MIB]):
            got += size
        assert got == len(room), f"{got} bytes of {len(room)}"
    finally:
        connection.close()
    return first_s, time.monotonic() - began_s


def _owner(fleet: Fleet, placed: list[str]) -> Daemon:
    return next(node for node in fleet.daemons if node.name in placed)


def stranger(fleet: Fleet, placed: list[str]) -> Daemon:
    """A host that neither owns it nor published it."""
    return next(node for node in reversed(fleet.daemons) if node.name not in placed and node is not fleet.primary)
