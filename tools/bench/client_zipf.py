"""Fifty models at five times the budget, by Zipf's law: memory, hit rate beside exact LRU, nothing freed in use."""

from __future__ import annotations

import gc
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy
from client_models import MIB, LiveDir, rss_bytes
from report import Bar, table

from modelsync.client import Client, LoadContext

MODELS, MODEL_BYTES, REQUESTS, EXPONENT = 50, 8 * MIB, 20_000, 1.0
HELD = MODELS // 5


class Checked:
    """An array in private memory that knows what its sum is, and whether it was let go of."""

    def __init__(self, array: numpy.ndarray) -> None:
        self.array, self.inside, self.expected = array, 0, float(array[0]) * array.size

    def predict(self, X: object) -> bool:
        self.inside += 1
        whole = float(self.array[::4096].sum()) == float(self.array[0]) * self.array[::4096].size
        self.inside -= 1
        return whole

    def __del__(self) -> None:
        if self.inside:
            Freed.in_use += 1


class Freed:
    in_use = 0


class CheckedLoader:
    name, maps, runs_code = "checked", False, False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(".npy") is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(context.files.values())

    def load(self, path: Path, context: LoadContext) -> Checked:
        return Checked(numpy.load(path / (context.only_file(".npy") or "")))


def _trace(seed: int, count: int) -> list[str]:
    random = numpy.random.default_rng(seed)
    weights = 1 / numpy.arange(1, MODELS + 1) ** EXPONENT
    return [f"m{number}" for number in random.choice(MODELS, size=count, p=weights / weights.sum())]


def _exact_lru(trace: list[str]) -> float:
    held: OrderedDict[str, None] = OrderedDict()
    hits = 0
    for name in trace:
        if name in held:
            hits += 1
            held.move_to_end(name)
        else:
            held[name] = None
            if len(held) > HELD:
                held.popitem(last=False)
    return hits / len(trace)


def measure(root: Path) -> tuple[list[Bar], dict[str, object]]:
    directory = LiveDir(root)
    for number in range(MODELS):
        numpy.save(root / "m.npy", numpy.full(MODEL_BYTES // 8 - 16, float(number + 1)))
        directory.publish(f"m{number}", root / "m.npy")
    budget_bytes = HELD * MODEL_BYTES
    gc.collect()
    before_bytes = rss_bytes(os.getpid())
    rate, expected = _hit_rate(directory, budget_bytes)
    peak_bytes, wrong = _by_threads(directory, budget_bytes, before_bytes)
    rows = [("client", f"{100 * rate:.2f}"), ("exact LRU", f"{100 * expected:.2f}")]
    print(f"{MODELS} models of {MODEL_BYTES // MIB} MiB, budget for {HELD}, {REQUESTS:,} requests, Zipf {EXPONENT}\n")
    table(("", "hit rate %"), rows)
    over_mib = (peak_bytes - before_bytes - budget_bytes - MODEL_BYTES) / MIB
    bars = [
        Bar("hit rate below exact LRU", 100 * (expected - rate), 2, "points"),
        Bar("resident beyond budget and one model, four threads", over_mib, 64, "MiB"),
        Bar("models freed in use, and wrong answers", float(Freed.in_use + wrong), 0, "models"),
    ]
    return bars, {"hit_rate": rate, "exact_lru": expected, "peak_bytes": peak_bytes}


def _hit_rate(directory: LiveDir, budget_bytes: int) -> tuple[float, float]:
    trace = _trace(1, REQUESTS)
    with Client(directory.live, budget_bytes=budget_bytes, loaders=[CheckedLoader()], watch=False) as client:
        handles = {f"m{number}": client.load(f"m{number}") for number in range(MODELS)}
        before = _misses(client)
        for name in trace:
            handles[name].predict(None)
        return 1 - (_misses(client) - before) / len(trace), _exact_lru([*handles, *trace]) * (
            MODELS + len(trace)
        ) / len(trace)


def _misses(client: Client) -> int:
    return sum(counts["misses"] for versions in client.stats()["models"].values() for counts in versions.values())


def _by_threads(directory: LiveDir, budget_bytes: int, before_bytes: int) -> tuple[int, int]:
    """Four threads at once, with the peak of resident memory seen by a fifth, and the number of wrong answers."""
    wrong, peak_bytes, ended = [0], [0], threading.Event()

    def ask(seed: int, client: Client) -> None:
        for name in _trace(seed, REQUESTS // 4):
            if not client.load(name).predict(None):
                wrong[0] += 1

    def look() -> None:
        while not ended.wait(0.01):
            peak_bytes[0] = max(peak_bytes[0], rss_bytes(os.getpid()))

    with Client(directory.live, budget_bytes=budget_bytes, loaders=[CheckedLoader()]) as client:
        threads = [threading.Thread(target=ask, args=(seed, client)) for seed in range(4)]
        looking = threading.Thread(target=look)
        looking.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        looking.join()
    return peak_bytes[0], wrong[0]
