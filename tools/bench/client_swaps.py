"""Loads and swaps under load: what others feel of a big load, and how soon and how safely a new version answers."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import numpy
from client_models import MIB, LiveDir, constant, forest, rss_bytes
from report import Bar, percentile, table

from modelsync.client import Client

BIG_BYTES = 220 * MIB
ASKERS = 2
PACE_S = 0.002
LOADS = 12
"""Turn by turn with half a second in which nothing is loaded: what else the machine does falls on both."""
ROWS = numpy.zeros((1, 3))


def measure_cold(root: Path) -> tuple[list[Bar], dict[str, object]]:
    directory = LiveDir(root)
    directory.publish("big", forest(root / "big.joblib", BIG_BYTES))
    directory.publish("small", constant(root / "small.joblib", 1))
    (root / "big.joblib").unlink()
    with Client(directory.live, trust_pickle="all") as client:
        small, big = client.load("small"), client.load("big")
        quiet_ms: list[float] = []
        busy_ms: list[float] = []
        for _ in range(LOADS):
            client.unload("big")
            quiet_ms += _pings(small, 0.5, None)
            loading = threading.Thread(target=lambda: client.load("big"))
            loading.start()
            busy_ms += _pings(small, 60.0, loading)
        before = client.stats()["models"]["big"]["1"]["loads"]
        client.unload("big")
        rows = numpy.zeros((1, 20))
        threads = [threading.Thread(target=lambda: big.predict(rows)) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        begun = client.stats()["models"]["big"]["1"]["loads"] - before
    print(f"a small model, asked every {PACE_S * 1e3:.0f} ms, while a forest of 220 MB is loaded\n")
    shown = {"quiet": quiet_ms, "beside a load": busy_ms}
    rows_shown = [
        (name, *(f"{percentile(ms, share):.3f}" for share in (0.5, 0.9, 0.99, 1.0))) for name, ms in shown.items()
    ]
    table(("", "p50 ms", "p90 ms", "p99 ms", "max ms"), rows_shown)
    slower = percentile(busy_ms, 0.99) / percentile(quiet_ms, 0.99)
    bars = [
        Bar("loads begun by 200 concurrent cold requests", float(begun), 1, "loads"),
        Bar("p99 of another model while 220 MB load / without", slower, 2, "x"),
    ]
    return bars, {"quiet_ms": quiet_ms, "busy_ms": busy_ms}


def _pings(handle: object, duration_s: float, until: threading.Thread | None) -> list[float]:
    """Requests at a steady pace; each is timed from when it was due, so that a stall counts for all it delays."""
    times_ms, due_s = [], time.perf_counter()
    end_s = due_s + duration_s
    while due_s < end_s and (until is None or until.is_alive()):
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        started_s = max(due_s, time.perf_counter() if wait_s > 0 else due_s)
        handle.predict(ROWS)  # type: ignore[attr-defined]
        times_ms.append((time.perf_counter() - started_s) * 1e3)
        due_s += PACE_S
    return times_ms


class _Asker(threading.Thread):
    """Asks for answers and, in leases, whether they are all of one version."""

    def __init__(self, handle: object) -> None:
        super().__init__(daemon=True)
        self.handle, self.ended = handle, False
        self.answers = self.failed = self.mixed = 0
        self.newest, self.newest_s = 0, 0.0
        self.first_s: dict[int, float] = {}

    def run(self) -> None:
        while not self.ended:
            try:
                self._ask()
            except Exception:
                self.failed += 1
            time.sleep(PACE_S)

    def _ask(self) -> None:
        answer = round(float(self.handle.predict(ROWS)[0]))  # type: ignore[attr-defined]
        self.first_s.setdefault(answer, time.monotonic())
        with self.handle.lease() as model:  # type: ignore[attr-defined]
            seen = {round(float(model.predict(ROWS)[0])) for _ in range(3)}
        self.answers += 4
        self.mixed += len(seen) != 1


def measure_swaps(root: Path, swaps: int) -> tuple[list[Bar], dict[str, object]]:
    directory = LiveDir(root)
    directory.publish("m", constant(root / "m.joblib", 0))
    with Client(directory.live, trust_pickle="all", poll_s=60) as client:
        handle = client.load("m")
        askers = [_Asker(handle) for _ in range(ASKERS)]
        for asker in askers:
            asker.start()
        switched_s, sizes = {}, []
        for number in range(1, swaps + 1):
            digest = directory.publish("m", constant(root / "m.joblib", number), activate=False)
            directory.activate("m", digest)
            switched_s[number] = time.monotonic()
            deadline_s = switched_s[number] + 5
            while not any(number in asker.first_s for asker in askers) and time.monotonic() < deadline_s:
                time.sleep(0.001)
            if number in (swaps // 10, swaps):
                gc.collect()
                sizes.append(rss_bytes(os.getpid()))
        for asker in askers:
            asker.ended = True
            asker.join()
        stats = client.stats()["state"]["m"]
    late_ms = [
        (min(asker.first_s.get(number, 1e9) for asker in askers) - at_s) * 1e3 for number, at_s in switched_s.items()
    ]
    answers = sum(asker.answers for asker in askers)
    print(f"{swaps} swaps under {ASKERS} threads' load, {answers:,} answers; {stats['swaps']} swaps counted\n")
    shown = [("switched to first answer", *(f"{percentile(late_ms, share):.1f}" for share in (0.5, 0.9, 0.99, 1.0)))]
    table(("", "p50 ms", "p90 ms", "p99 ms", "max ms"), shown)
    bars = [
        Bar("`current` switched to first answer by the new version, p99", percentile(late_ms, 0.99), 50, "ms"),
        Bar("failed requests", float(sum(asker.failed for asker in askers)), 0, "requests"),
        Bar("leases that mixed versions", float(sum(asker.mixed for asker in askers)), 0, "leases"),
        Bar("growth of memory after the first tenth of the swaps", (sizes[-1] - sizes[0]) / MIB, 16, "MiB"),
    ]
    return bars, {"late_ms": late_ms, "answers": answers, "rss_bytes": sizes}
