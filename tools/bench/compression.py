"""Compression in transfer: seconds, bytes on the wire and processor time of `never`, `auto` and `always`.

A real daemon serves contents of several kinds from a network namespace of its own, whose link a token bucket limits in
both directions (as fleetlab's `rate` does) or nothing does. This process pulls each with a fetcher and a store that are
new each time, in memory where there is /dev/shm: no fsync hides what compressing costs. Every chunk's digest is
checked, and the whole file's. In turns, each mode first, second and last in its turn: who comes after a long pull finds
the processors' caches cold. The figure that counts is auto against the better of
the other two: compressing must pay where it is done and cost nothing where it is not. Needs root, iproute2, nftables.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import joblib
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from payload import MIB, size  # noqa: E402  the path is set above
from report import Bar, Result, arguments, finish, table  # noqa: E402
from swarm import RatedFleet  # noqa: E402
from tests import namespaces  # noqa: E402
from tests.integration.daemons import Daemon, until  # noqa: E402

from modelsync.core import manifest as manifests  # noqa: E402
from modelsync.core.manifest import FileEntry  # noqa: E402
from modelsync.edges.disk.store import Store  # noqa: E402
from modelsync.edges.pull.fetch import Fetcher  # noqa: E402
from modelsync.edges.pull.rate_limit import RateLimiter  # noqa: E402
from modelsync.ports import Peer, Progress  # noqa: E402

MODES = ("never", "auto", "always")
MOST = 1.05
"""Auto may take so many times what the better of the others takes."""
PAUSE_S = 0.05
"""Before each pull: the token bucket is full again, whoever came before."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SHM = Path("/dev/shm")
SOURCE = np.random.default_rng(8)


# --- contents ---------------------------------------------------------------------------------------------------------


def float32(size_bytes: int) -> bytes:
    """Weights as a trained layer has them: normal, small, of several scales."""
    scales = np.repeat(SOURCE.uniform(0.005, 0.08, 64), -(-size_bytes // 256))
    return (SOURCE.standard_normal(len(scales)) * scales).astype(np.float32).tobytes()[:size_bytes]


def bfloat16(size_bytes: int) -> bytes:
    return (np.frombuffer(float32(2 * size_bytes), np.uint32) >> 16).astype(np.uint16).tobytes()


def int8(size_bytes: int) -> bytes:
    """Weights quantised by row: scaled so that the largest of 512 is 127."""
    rows = np.frombuffer(float32(4 * size_bytes), np.float32).reshape(-1, 512)
    return np.round(rows / np.abs(rows).max(axis=1, keepdims=True) * 127).astype(np.int8).tobytes()


def forest(size_bytes: int) -> bytes:
    X, y = make_classification(20_000, 20, n_informative=12, random_state=3)
    trees = max(2, size_bytes // (550 << 10))
    file = io.BytesIO()
    joblib.dump(RandomForestClassifier(trees, n_jobs=2, random_state=0).fit(X, y), file)
    return _repeated(file.getvalue(), size_bytes)


def tokenizer(size_bytes: int) -> bytes:
    letters = SOURCE.integers(97, 123, (60_000, 9)).astype(np.uint8)
    words = [bytes(row[: 2 + n % 8]).decode() for n, row in enumerate(letters)]
    model = {
        "vocab": {f"Ġ{word}": n for n, word in enumerate(words)},
        "merges": list(pairwise(words)),
    }
    return _repeated(json.dumps(model, indent=1).encode(), size_bytes)


def sparse(size_bytes: int) -> bytes:
    """A dense array of which nine tenths are zero, as pruning leaves it."""
    array = np.frombuffer(float32(size_bytes), np.float32).copy()
    array[SOURCE.random(len(array)) < 0.9] = 0
    return array.tobytes()


def compressed(size_bytes: int) -> bytes:
    return zlib.compress(float32(size_bytes), 1)[: size_bytes * 9 // 10]


def _repeated(data: bytes, size_bytes: int) -> bytes:
    """Chunks are packed one by one, so what repeats beyond a chunk helps nobody."""
    return (data * -(-size_bytes // len(data)))[:size_bytes]


CONTENTS: dict[str, Callable[[int], bytes]] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "int8": int8,
    "forest": forest,
    "tokenizer": tokenizer,
    "sparse": sparse,
    "compressed": compressed,
}


# --- pulling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """One pull. Processor time is that of both ends, in user and kernel mode."""

    seconds: float
    wire_bytes: int
    cpu_s: float


class Server:
    """A daemon that holds every content, and what the pulls need to know of it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.peer = Peer("server", daemon.url, primary=True)

    def publish(self, name: str, data: bytes) -> FileEntry:
        self._daemon.put(f"{name}.bin", data)
        until(lambda: self._daemon.active(name) == 1, f"{name} to be published", 60)
        with urllib.request.urlopen(f"{self._daemon.url}/v1/models/{name}/versions/1") as answer:
            return manifests.decode(answer.read()).files[0]

    def cpu_s(self) -> float:
        assert self._daemon.process is not None
        fields = Path(f"/proc/{self._daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def pull(self, entry: FileEntry, mode: str, limit: int) -> Taken:
        root = Path(f"{SHM if SHM.is_dir() else self._daemon.root}/modelsync-pull-{os.getpid()}")
        store = Store(root)
        store.open()
        fetcher = Fetcher(store, RateLimiter(limit), me="me", compression=lambda: mode)  # type: ignore[return-value,arg-type]
        try:
            progress = Progress()
            chunks = self._chunks(fetcher, entry, store)
            before_s, started_s = self.cpu_s() + _own_cpu_s(), time.monotonic()
            fetcher.file(entry, chunks, [self.peer], progress)
            took_s = time.monotonic() - started_s
            assert not progress.blamed, progress.blamed
            return Taken(took_s, progress.wire_bytes, self.cpu_s() + _own_cpu_s() - before_s)
        finally:
            fetcher.close()
            store.close()
            shutil.rmtree(root)

    def _chunks(self, fetcher: Fetcher, entry: FileEntry, store: Store):  # type: ignore[no-untyped-def]
        if entry.chunk_list is not None:
            fetcher.document(entry.chunk_list, [self.peer], 1 << 20, Progress())
        return store.chunk_digests(entry)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True, slots=True)
class Link:
    """One kind of way between the two. ``limit``: the puller's own, in bytes a second."""

    name: str
    size_bytes: int
    mbit: int = 0
    limit: int = 0


def links_of(options) -> list[Link]:  # type: ignore[no-untyped-def]
    known = [
        Link("unlimited", options.size),
        Link("1 Gbit/s", options.size, mbit=1000),
        Link("100 Mbit/s", max(MIB, options.size // 8), mbit=100),
        Link("own limit 125 MB/s", options.size, limit=125_000_000),
    ]
    return [link for link in known if not options.links or any(link.name.startswith(text) for text in options.links)]


def measure(links: list[Link], contents: list[str], runs: int) -> Result:
    found: dict[str, dict[str, dict[str, list[Taken]]]] = {}
    with TemporaryDirectory(prefix="modelsync-compression-") as scratch, RatedFleet(Path(scratch), "server") as fleet:
        server = Server(fleet.daemons["server"])
        held: dict[tuple[str, int], FileEntry] = {}
        for size_bytes in {link.size_bytes for link in links}:
            for name in contents:
                entry = server.publish(f"{name}-{size_bytes}", CONTENTS[name](size_bytes))
                held[name, size_bytes] = entry
        for link in links:
            if link.mbit:
                fleet.limit(link.mbit)
            else:
                _free(fleet)
            for name in contents:
                took: dict[str, list[Taken]] = {mode: [] for mode in MODES}
                server.pull(held[name, link.size_bytes], "never", 0 if not link.limit else link.limit)
                for turn in range(runs):
                    for mode in MODES[turn % 3 :] + MODES[: turn % 3]:
                        time.sleep(PAUSE_S)
                        took[mode].append(server.pull(held[name, link.size_bytes], mode, link.limit))
                found.setdefault(link.name, {})[name] = took
    return _judged(links, found)


def _free(fleet: RatedFleet) -> None:
    for name in fleet.daemons:
        for space, device in ((fleet.net.space(), f"to-{name}"), (fleet.net.space(name), "eth0")):
            subprocess.run(["tc", "-n", space, "qdisc", "del", "dev", device, "root"], capture_output=True, check=False)


def _judged(links: list[Link], found: dict[str, dict[str, dict[str, list[Taken]]]]) -> Result:
    bars, figures = [], {}
    for link in links:
        print(f"\n{link.name}, {link.size_bytes / MIB:.0f} MiB of each")
        rows, worst = [], {}
        for name, took in found[link.name].items():
            middle = {mode: median(each.seconds for each in took[mode]) for mode in MODES}
            worst[name] = median(
                auto.seconds / min(never.seconds, always.seconds)
                if link.mbit or link.limit
                else auto.seconds / never.seconds
                for never, auto, always in zip(*(took[mode] for mode in MODES), strict=True)
            )
            seconds = [f"{middle[mode]:.3f}" for mode in MODES]
            wire = [f"{median(each.wire_bytes for each in took[mode]) / link.size_bytes:.3f}" for mode in MODES]
            cpu = [f"{median(each.cpu_s for each in took[mode]):.2f}" for mode in MODES]
            rows.append((name, *seconds, f"{worst[name]:.2f}", *wire, *cpu))
        headings = ("", *(f"{mode} s" for mode in MODES), "auto/best")
        table((*headings, *(f"{mode} wire" for mode in MODES), *(f"{mode} cpu" for mode in MODES)), rows)
        name = max(worst, key=lambda each: worst[each])
        bars.append(
            Bar(f"{link.name}: auto against the better of the others, worst ({name})", worst[name], MOST, "times")
        )
        figures[link.name] = {
            name: {mode: [(each.seconds, each.wire_bytes, each.cpu_s) for each in took[mode]] for mode in MODES}
            for name, took in found[link.name].items()
        }
    return Result("compression", bars, figures)


def main() -> int:
    parser = arguments("compression", __doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=size, default=size("64MiB"), metavar="BYTES", help="of each content; an eighth at 100 Mbit/s"
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument(
        "--links", nargs="+", default=[], metavar="NAME", help="how their names begin, such as 100 unlimited"
    )
    parser.add_argument("--contents", nargs="+", default=list(CONTENTS), choices=CONTENTS)
    options = parser.parse_args()
    if why := namespaces.why_not():
        print(f"skipped: {why}")
        return 0
    result = measure(links_of(options), options.contents, options.runs)
    return 0 if finish(result, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
