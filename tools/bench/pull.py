"""A large file to one replica, verified and fsynced, beside `cp` and `sync` of the same file; and memory meanwhile.

What is timed, and why it is fair: a new version of random bytes is put into the models directory while the replica is
stopped (SIGSTOP), so that ingest does not overlap. The clock starts when the replica is let go on: hearing the
announcement, reading the catalog, asking for the manifest, the transfer, the digest of every chunk and of the whole
file, all fsyncs and the switch count. It ends when `current` is switched. `cp FILE COPY && sync COPY` copies the same
source on the same disk, and verifies nothing. Both find their source in the page cache, and the memory that they fill
is warm (``warm``). Turns: modelsync, cp, modelsync, cp, …
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from arrivals import Witness
from report import Bar, Result, arguments, finish, ratio, table

from fleet import Daemon, Fleet, until
from warm import warm

MODEL = "large"
BLOCK = 4 << 20
TIMEOUT_S = 300.0
COLLECTED_S = 3.0
"""Garbage is collected a second after an activation; what it removes must not run beside the next turn."""
MIB = 1 << 20


def size(text: str) -> int:
    """``2GiB``, ``256MiB`` or a number of bytes."""
    match = re.fullmatch(r"(\d+)\s*(?:([KMGT])i?B?)?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    return int(match[1]) << (0, 10, 20, 30, 40)[" KMGT".index((match[2] or " ").upper())]


def write_random(path: Path, size_bytes: int) -> None:
    """A durable file that nothing can compress or recognise."""
    with path.open("wb", buffering=0) as file:
        for offset in range(0, size_bytes, BLOCK):
            file.write(os.urandom(min(BLOCK, size_bytes - offset)))
        os.fsync(file.fileno())


def pull(fleet: Fleet, witness: Witness, source: Path) -> float:
    """Publish one file; the seconds from letting the replica go on until its `current` is switched."""
    before = fleet.primary.current(MODEL)
    os.kill(fleet.replica.pid, signal.SIGSTOP)
    try:
        os.rename(source, fleet.primary.models / f"{MODEL}.bin")
        until(lambda: fleet.primary.current(MODEL) != before, "the primary to have the version", TIMEOUT_S)
        with warm((fleet.primary.models / f"{MODEL}.bin").stat().st_size):
            witness.forget()
            started_ns = time.monotonic_ns()
            os.kill(fleet.replica.pid, signal.SIGCONT)
            return (witness.heard_ns(0, "current", TIMEOUT_S) - started_ns) / 1e9
    finally:
        os.kill(fleet.replica.pid, signal.SIGCONT)


def copy(source: Path, target: Path) -> float:
    """`cp` and `sync` of the same file, in seconds."""
    with warm(source.stat().st_size):
        started_ns = time.monotonic_ns()
        subprocess.run(["cp", source, target], check=True)
        subprocess.run(["sync", target], check=True)
        took_s = (time.monotonic_ns() - started_ns) / 1e9
    target.unlink()
    return took_s


def settled_idle(daemon: Daemon) -> float:
    return daemon.memory_bytes("VmRSS") / MIB


def measure(size_bytes: int, runs: int, out: Path) -> Result:
    ours: list[float] = []
    cp: list[float] = []
    with Fleet("alpha", "beta", sections="keep = 1\n", root=out / "work") as fleet:
        idle = [settled_idle(daemon) for daemon in fleet.daemons]
        (fleet.replica.live / MODEL).mkdir(parents=True)
        with Witness(fleet.replica.live / MODEL) as witness:
            for daemon in fleet.daemons:
                daemon.forget_peak()
            for _ in range(runs):
                ready = fleet.root / "ready"
                write_random(ready, size_bytes)
                time.sleep(COLLECTED_S)
                ours.append(pull(fleet, witness, ready))
                time.sleep(COLLECTED_S)
                cp.append(copy(fleet.primary.models / f"{MODEL}.bin", fleet.root / "copy"))
        peak = [daemon.memory_bytes("VmHWM") / MIB for daemon in fleet.daemons]
        after = [settled_idle(daemon) for daemon in fleet.daemons]
    return _judged(size_bytes, ours, cp, {"idle before": idle, "peak while moving": peak, "idle after": after})


def _judged(size_bytes: int, ours: list[float], cp: list[float], memory: dict[str, list[float]]) -> Result:
    print(f"{size_bytes / 2**30:.3g} GiB to one replica, {len(ours)} runs in turns\n")
    rows = [
        (f"run {number + 1}", f"{mine:.2f}", f"{other:.2f}", f"{mine / other:.2f}")
        for number, (mine, other) in enumerate(zip(ours, cp, strict=True))
    ]
    middle = ("median", f"{median(ours):.2f}", f"{median(cp):.2f}", f"{ratio(ours, cp):.2f}")
    table(("", "modelsync s", "cp and sync s", "ratio"), [*rows, middle])
    print()
    columns = ((name, *(f"{mib:.0f}" for mib in both)) for name, both in memory.items())
    table(("resident MiB", "primary", "replica"), list(columns))
    bars = [
        Bar("pull, verified and fsynced, against cp and sync", ratio(ours, cp), 2.5, "times"),
        Bar("resident while moving, the larger daemon", max(memory["peak while moving"]), 150, "MiB"),
        Bar("resident while idle, the larger daemon, before", max(memory["idle before"]), 80, "MiB"),
        Bar("resident while idle, the larger daemon, after", max(memory["idle after"]), 80, "MiB"),
    ]
    return Result("pull", bars, {"size_bytes": size_bytes, "modelsync_s": ours, "cp_s": cp, "resident_mib": memory})


def main() -> int:
    parser = arguments("pull", __doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=size("2GiB"), metavar="BYTES", help="such as 2GiB")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    return 0 if finish(measure(options.size, options.runs, options.out), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
