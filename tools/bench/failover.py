"""How long a fleet of three is without a primary: after a power cut, after a SIGKILL, and in a planned switchover."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from failover_fleets import Falling, hosts, in_step, namespaces, status
from failover_load import Publishing, Readers
from report import Bar, Result, arguments, finish, percentile, table

from fleet import until
from modelsync.edges.http.control import ControlClient

MAKERS: dict[str, Callable[[Path], AbstractContextManager[Falling]]] = {
    "power": namespaces,
    "sigkill": hosts,
    "switchover": namespaces,
}
WHAT = {
    "power": "power cut (no FIN) to the first publish that the new primary accepted",
    "sigkill": "SIGKILL beneath systemd to the first publish that the new primary accepted",
    "switchover": "gap between accepted publishes in a planned switchover",
}
PAUSE_S = 0.02
"""Between two publishes of one client: what is measured is the switchover, not how far replicas fall behind a flood."""
LIMITS_S = {"power": 4.5, "sigkill": 1.0, "switchover": 0.5}
RUNS = {"power": 100, "sigkill": 100, "switchover": 60}


def await_step(fleet: Falling) -> None:
    until(lambda: in_step(list(fleet.urls.values())), "the fleet to be in step", 60)


def first_version(fleet: Falling, scratch: Path) -> None:
    with Publishing([list(fleet.urls.values())], scratch) as publishing:
        publishing.first_above(0)
    await_step(fleet)


def fall_once(fleet: Falling, scratch: Path) -> float:
    """Lose the primary; the seconds until somebody else has accepted a publish."""
    seen = status(next(iter(fleet.urls.values())))
    survivors = [[url] for name, url in fleet.urls.items() if name != seen["primary"]]
    time.sleep(random.uniform(0, 0.5))  # anywhere between two heartbeats
    fell_s = fleet.fell(seen["primary"])
    with Publishing(survivors, scratch) as publishing:
        took_s = publishing.first_above(seen["epoch"]).at_s - fell_s
    fleet.back(seen["primary"])
    await_step(fleet)
    return took_s


def falls(fleet: Falling, scratch: Path, runs: int) -> list[float]:
    return [fall_once(fleet, scratch) for _ in range(runs)]


def switchovers(fleet: Falling, scratch: Path, runs: int) -> list[float]:
    """For each switchover the time between the old primary's last accepted publish and the new one's first."""
    urls = list(fleet.urls.values())
    with Publishing([urls], scratch, pause_s=PAUSE_S) as publishing:
        for _ in range(runs):
            time.sleep(random.uniform(0.5, 1.0))
            switch_over(urls)
            publishing.first_above(status(urls[0])["epoch"] - 1)
    await_step(fleet)
    pairs = itertools.pairwise(publishing.accepted)
    return [after.at_s - before.at_s for before, after in pairs if after.epoch > before.epoch]


def switch_over(urls: list[str]) -> None:
    """Ask for one and wait until it is done."""
    before = (status(urls[0]).get("switchover") or {}).get("since")
    asyncio.run(ask(urls[0], "switchover"))
    job: dict[str, Any] = {}

    def ended() -> bool:
        job.update(status(urls[0]).get("switchover") or {})
        return job.get("since") not in (None, before) and job["state"] != "handing over"

    until(ended, "the switchover to end")
    if job["state"] != "done":
        raise SystemExit(f"a switchover failed: {job}")


async def ask(url: str, command: str) -> None:
    async with ControlClient() as client:
        await client.command(url, command, by="tools/bench/failover")


def measure(kind: str, runs: int, out: Path) -> Result:
    (out / "work").mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="failover-", dir=out / "work"))
    try:
        with MAKERS[kind](scratch) as fleet:
            first_version(fleet, scratch / "upload")
            with Readers(fleet.live) as readers:
                measured = switchovers if kind == "switchover" else falls
                times_s = measured(fleet, scratch / "upload", runs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return judged(kind, times_s, readers)


def judged(kind: str, times_s: list[float], readers: Readers) -> Result:
    print(f"{WHAT[kind]}, {len(times_s)} runs, three nodes, heartbeat 250 ms, ttl 3 s\n")
    shares = (0.5, 0.9, 0.99, 1.0)
    table(
        ("", "p50 s", "p90 s", "p99 s", "max s"),
        [(kind, *(f"{percentile(times_s, share):.3f}" for share in shares))],
    )
    print(f"\nmeanwhile {readers.reads} reads of `current` on all hosts, {len(readers.failures)} failed")
    for failure in readers.failures[:5]:
        print(f"  {failure}")
    bars = [
        Bar(f"{WHAT[kind]}, p99", percentile(times_s, 0.99), LIMITS_S[kind], "s"),
        Bar("failed reads of `current`", len(readers.failures), 0, ""),
    ]
    return Result(f"failover-{kind}", bars, {"times_s": times_s, "reads": readers.reads})


def main() -> int:
    parser = arguments("failover", __doc__.splitlines()[0])
    parser.add_argument("--kind", choices=[*MAKERS, "all"], default="all")
    parser.add_argument("--runs", type=int, help=f"by default {', '.join(f'{k} {n}' for k, n in RUNS.items())}")
    options = parser.parse_args()
    passed = True
    for kind in MAKERS if options.kind == "all" else (options.kind,):
        result = measure(kind, options.runs or RUNS[kind], options.out)
        passed = finish(result, options.out) and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
