"""Partitioned mode: a host that is killed under load, redundancy afterwards, and what reading through costs."""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.request
from statistics import median
from urllib.parse import urlsplit

from pull import write_random
from report import Bar, Result, percentile

from fleet import Daemon, Fleet, until

NODES = ("one", "two", "three", "four")
MODELS = 24
SMALL = 4 << 20
REPLACE_S = 11.0
RATE_BYTES_PER_S = 8 << 20
REPORTED_S = 2.0
"""A host tells at least so often what it holds."""


def run(size_bytes: int, runs: int, result: Result) -> None:
    sections = (
        f'[storage]\nmode = "partitioned"\ncopies = 2\nreplace_after_s = {REPLACE_S}\nmoves = 32\n'
        f"[transfer]\nrate_limit_bytes_per_s = {RATE_BYTES_PER_S}\n"
    )
    with Fleet(*NODES, sections=sections) as fleet:
        kill(fleet, result)
    plain = '[storage]\nmode = "partitioned"\ncopies = 1\n'
    with Fleet(*NODES[:3], sections=plain) as fleet:
        read_through(fleet, size_bytes, runs, result)


def names(count: int) -> list[str]:
    return [f"model-{number}" for number in range(count)]


def owners(daemon: Daemon, *, whole: bool = True) -> dict[str, list[str]]:
    """Owners by model; ``whole``: only of models that all their owners hold."""
    lines = daemon.status().get("placement", {})
    return {name: line.get("owners", []) for name, line in lines.items() if not (whole and line.get("trouble"))}


def kill(fleet: Fleet, result: Result) -> None:
    """One host dies, and its share is copied again; then another, while all models are asked of all who live."""
    for name in names(MODELS):
        beside = fleet.root / name
        beside.write_bytes(os.urandom(SMALL))
        beside.rename(fleet.primary.models / f"{name}.bin")
    until(lambda: len(owners(fleet.primary)) == MODELS, "all models on two hosts each", 180)
    recover(fleet, result)
    under_load(fleet, result)


def recover(fleet: Fleet, result: Result) -> None:
    """Nobody asks for anything meanwhile: what is read through would be there already when its turn comes."""
    dead, living = fleet.daemons[3], fleet.daemons[:3]
    before = owners(fleet.primary)
    dead.process.kill()
    killed_s = time.monotonic()
    until(lambda: _replaced(fleet.primary, before, dead.name), "the dead host to be replaced", 180)
    replaced_s = time.monotonic()
    until(lambda: _redundant(fleet.primary, dead.name), "two living copies of everything", 180)
    copied_s = time.monotonic() - replaced_s
    after = owners(fleet.primary)
    # The primary has what it published; of the others the one that was given most takes longest.
    given = [sum(node.name in set(after[name]) - set(before[name]) for name in after) for node in living[1:]]
    least_s = max(given) * SMALL / RATE_BYTES_PER_S
    lost = sum(dead.name in placed for placed in before.values())
    print(
        f"{lost} of {2 * MODELS} copies died; replaced after {replaced_s - killed_s:.1f} s, then two copies again in "
        f"{copied_s:.1f} s ({least_s:.1f} s at the rate limit)",
        flush=True,
    )
    result.figures |= {"copied_s": copied_s, "at_the_limit_s": least_s}
    limit_s = 1.5 * least_s + REPORTED_S
    result.bars.append(Bar("redundancy back", copied_s, limit_s, "s (1.5 x the rate's limit, and a report)"))


def under_load(fleet: Fleet, result: Result) -> None:
    dead, living = fleet.daemons[2], fleet.daemons[:2]
    asked, failed, over = [0], [0], threading.Event()
    threads = [threading.Thread(target=_ask, args=(node, asked, failed, over)) for node in living]
    for thread in threads:
        thread.start()
    time.sleep(2)
    dead.process.kill()
    until(lambda: _redundant(fleet.primary, dead.name), "two living copies of everything", 180)
    over.set()
    for thread in threads:
        thread.join()
    print(f"another one died under load: {asked[0]} downloads, {failed[0]} failed", flush=True)
    result.figures |= {"downloads": asked[0], "failed": failed[0]}
    result.bars.append(Bar("failed downloads of models with a living copy", failed[0], 0, "downloads"))


def _replaced(primary: Daemon, before: dict[str, list[str]], dead: str) -> bool:
    """Whether another owner was written for anything that the dead one had."""
    now = owners(primary, whole=False)
    return any(dead in before[name] and dead not in placed for name, placed in now.items())


def _redundant(primary: Daemon, dead: str) -> bool:
    placed = owners(primary)
    return len(placed) == MODELS and all(dead not in each for each in placed.values())


def _ask(node: Daemon, asked: list[int], failed: list[int], over: threading.Event) -> None:
    while not over.is_set():
        for name in names(MODELS):
            if over.wait(0.02):
                return
            asked[0] += 1
            data, _ = download(node, name)
            failed[0] += len(data) != SMALL


def download(node: Daemon, name: str) -> tuple[bytes | bytearray, float]:
    """The whole file, and the seconds until its first byte; empty where it failed."""
    parts = urlsplit(node.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=30)
    began_s = time.monotonic()
    try:
        connection.request("GET", f"/v1/models/{name}/versions/1/files/{name}.bin")
        answer = connection.getresponse()
        if answer.status != 200:
            return b"", 0.0
        data = bytearray(answer.read(1))
        first_s = time.monotonic() - began_s
        while piece := answer.read(1 << 20):
            data += piece
    except (OSError, http.client.HTTPException):
        return b"", 0.0
    finally:
        connection.close()
    return data, first_s


def read_through(fleet: Fleet, size_bytes: int, runs: int, result: Result) -> None:
    """Of two models that lie elsewhere a host pulls one, verified and fsynced, and one is downloaded through it."""
    count, small = 2 * runs, 60
    for number in range(count):
        write_random(fleet.root / "source", size_bytes)
        (fleet.root / "source").rename(fleet.primary.models / f"model-{number}.bin")
    for number in range(count, count + small):
        (fleet.root / "source").write_bytes(os.urandom(200_000))
        (fleet.root / "source").rename(fleet.primary.models / f"model-{number}.bin")
    until(lambda: len(owners(fleet.primary)) == count + small, "all models on their owners", 300)
    placed = owners(fleet.primary)
    time.sleep(3)
    timed = [_pair(fleet, placed, 2 * number, size_bytes) for number in range(runs)]
    firsts = [download(_stranger(fleet, placed[name]), name)[1] for name in names(count + small)[count:]]
    for pulled_s, through_s, plain_s in timed:
        print(
            f"pulled {pulled_s:.2f} s, through {through_s:.2f} s, from its owner unverified {plain_s:.2f} s", flush=True
        )
    print(f"first byte: p50 {1000 * median(firsts):.1f} ms, p99 {1000 * percentile(firsts, 0.99):.1f} ms", flush=True)
    result.figures |= {"read_through_s": timed, "first_byte_s": firsts}
    cost = median(through_s / pulled_s for pulled_s, through_s, _ in timed)
    result.bars.append(Bar("reading through", cost, 1.3, "x a verified pull"))
    result.bars.append(Bar("first byte of a read-through, p99", 1000 * percentile(firsts, 0.99), 50, "ms"))


def _pair(fleet: Fleet, placed: dict[str, list[str]], first: int, size_bytes: int) -> tuple[float, float, float]:
    """(a host's own pull, a download through a host, a download from an owner that nobody verifies), in seconds."""
    pulled, through = f"model-{first}", f"model-{first + 1}"
    began_s = time.monotonic()
    stranger = _stranger(fleet, placed[pulled])
    request = urllib.request.Request(f"{stranger.url}/v1/models/{pulled}/load", method="POST")
    urllib.request.urlopen(request, timeout=10).close()
    until(lambda: stranger.current(pulled), "it to be pulled", 60)
    pulled_s = time.monotonic() - began_s
    taken = []
    for node in (_stranger(fleet, placed[through]), _owner(fleet, placed[through])):
        began_s = time.monotonic()
        data, _ = download(node, through)
        taken.append(time.monotonic() - began_s)
        assert len(data) == size_bytes, f"{through} from {node.name}: {len(data)} bytes"
    return pulled_s, taken[0], taken[1]


def _owner(fleet: Fleet, placed: list[str]) -> Daemon:
    return next(node for node in fleet.daemons if node.name in placed)


def _stranger(fleet: Fleet, placed: list[str]) -> Daemon:
    """A host that neither owns it nor published it."""
    return next(node for node in reversed(fleet.daemons) if node.name not in placed and node is not fleet.primary)
