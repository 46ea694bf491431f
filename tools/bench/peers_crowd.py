"""What is resident in both daemons while one replica pulls 64 models at once and 64 others pull from one server."""

from __future__ import annotations

import os
import signal
import threading
import urllib.request
from pathlib import Path

from payload import MIB, write_random

from fleet import Fleet, until

COUNT = 64
EACH = 32 * MIB


def crowd(root: Path) -> list[dict[str, object]]:
    """Two rows: 64 models that one replica pulls, and one object that 64 receivers take from the primary."""
    with Fleet("alpha", "beta", root=root) as fleet:
        os.kill(fleet.replica.pid, signal.SIGSTOP)
        names = [f"model-{number:02}" for number in range(COUNT)]
        for name in names:
            write_random(fleet.root / "ready", EACH)
            (fleet.root / "ready").rename(fleet.primary.models / f"{name}.bin")
        until(lambda: all(fleet.primary.current(name) for name in names), "the primary to have them", 300)
        for daemon in fleet.daemons:
            daemon.forget_peak()
        os.kill(fleet.replica.pid, signal.SIGCONT)
        until(lambda: all(fleet.replica.current(name) for name in names), "the replica to have them", 300)
        first = _row(f"{COUNT} models to one replica", COUNT * EACH, fleet)
        for daemon in fleet.daemons:
            daemon.forget_peak()
        objects = [path.name for path in (fleet.primary.root / "state/objects/b3").glob("*/*")]
        _taken([f"{fleet.primary.url}/v1/objects/b3:{name}" for name in objects][:COUNT])
        return [first, _row(f"{COUNT} receivers of the primary", COUNT * EACH, fleet)]


def _taken(urls: list[str]) -> None:
    threads = [threading.Thread(target=_take, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _take(url: str) -> None:
    with urllib.request.urlopen(url, timeout=60) as response:
        while response.read(256 << 10):
            pass


def _row(what: str, moved: int, fleet: Fleet) -> dict[str, object]:
    peaks = [daemon.memory_bytes("VmHWM") for daemon in fleet.daemons]
    print(f"crowd     {what}: {' and '.join(f'{peak / MIB:.0f}' for peak in peaks)} MiB resident", flush=True)
    return {"workload": "crowd", "contender": what, "size_bytes": moved, "peaks_bytes": peaks}
