"""Files that an application cannot open, or that are of two versions, while a daemon switches `current` 1,000 times.

Two readers resolve `current` once a round and open every file beneath it. The daemon switches between versions that it
holds, by commands, each with its intent, links and fsyncs; nothing is transferred.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from report import Bar, Result, arguments, finish, percentile, table

from fleet import Fleet, until

MODEL = "swapped"
VERSIONS = 4
FILES = 8


def read_on(live: Path, stop: Any, told: Any) -> None:
    """One reader: rounds, failed rounds, rounds with files of two versions."""
    rounds, failed, mixed = 0, 0, 0
    while not stop.is_set():
        try:
            tree = os.path.realpath(live / MODEL / "current")
            found = {(Path(tree) / str(part)).read_bytes() for part in range(FILES)}
        except OSError:
            failed += 1
            continue
        rounds += 1
        mixed += len(found) != 1
    told.put((rounds, failed, mixed))


def publish(fleet: Fleet, number: int) -> None:
    beside = fleet.root / "beside"
    beside.mkdir()
    for part in range(FILES):
        (beside / str(part)).write_bytes(b"%d" % number * 4096)
    before = fleet.primary.current(MODEL)
    (fleet.primary.models / MODEL).mkdir(exist_ok=True)
    beside.rename(fleet.primary.models / MODEL / str(number))
    until(lambda: fleet.primary.current(MODEL) != before, f"version {number}")


def command(fleet: Fleet, text: str) -> None:
    body = f'{{"command": "{text}"}}'.encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{fleet.primary.url}/v1/command", body, headers), timeout=10).close()


def measure(swaps: int, out: Path) -> Result:
    with Fleet("alpha", root=out / "work") as fleet:
        for number in range(1, VERSIONS + 1):
            publish(fleet, number)
        context = multiprocessing.get_context("spawn")
        stop, told = context.Event(), context.Queue()
        readers = [context.Process(target=read_on, args=(fleet.primary.live, stop, told)) for _ in range(2)]
        for reader in readers:
            reader.start()
        times_ms = [swap(fleet, at % VERSIONS + 1) for at in range(swaps)]
        stop.set()
        found = [told.get(timeout=60) for _ in readers]
        for reader in readers:
            reader.join()
    rounds, failed, mixed = (sum(column) for column in zip(*found, strict=True))
    headings = ("", "swaps", "rounds", "failed", "mixed", "command to current p50 ms", "p99 ms")
    figures = (percentile(times_ms, 0.5), percentile(times_ms, 0.99))
    table(headings, [("modelsync", *map(str, (swaps, rounds, failed, mixed)), *(f"{value:.1f}" for value in figures))])
    bars = [
        Bar(f"failed reads over {swaps} swaps", float(failed), 0, ""),
        Bar(f"mixed reads over {swaps} swaps", float(mixed), 0, ""),
        Bar("command to a held version to current, p99", figures[1], 100, "ms"),
    ]
    return Result("swaps", bars, {"rounds": rounds, "failed": failed, "mixed": mixed, "times_ms": times_ms})


def swap(fleet: Fleet, number: int) -> float:
    """One switch to a version that is held; milliseconds from the command to the link."""
    before, started_s = fleet.primary.current(MODEL), time.monotonic()
    command(fleet, f"update {MODEL} {number}")
    until(lambda: fleet.primary.current(MODEL) != before, f"version {number}")
    return 1000 * (time.monotonic() - started_s)


def main() -> int:
    parser = arguments("swaps", __doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=1000)
    options = parser.parse_args()
    return 0 if finish(measure(options.swaps, options.out), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
