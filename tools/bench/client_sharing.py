"""512 MiB of arrays and a forest: how fast they load, warm and cold, and what several processes take together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import joblib
import numpy
from client_models import MIB, LiveDir, arrays, drop_caches, forest, pss_bytes, spawn
from report import Bar, ratio, table

from modelsync.client import Client

ARRAYS_BYTES, FOREST_BYTES = 512 * MIB, 220 * MIB
PAIRS = 5


def measure(root: Path) -> tuple[list[Bar], dict[str, object]]:
    directory = LiveDir(root)
    directory.publish("arrays", arrays(root / "arrays.joblib", ARRAYS_BYTES))
    (root / "arrays.joblib").unlink()
    directory.publish("forest", forest(root / "forest.joblib", FOREST_BYTES))
    (root / "forest.joblib").unlink()
    [file] = (directory.state / "store" / "arrays").rglob("*.joblib")
    times = _times(directory, file)
    rows = [
        (name, f"{median(ours) * 1e3:.1f}", f"{median(theirs) * 1e3:.1f}", f"{ratio(ours, theirs):.3f}")
        for name, (ours, theirs) in times.items()
    ]
    print(f"512 MiB of arrays, {PAIRS} pairs in turns, medians\n")
    table(("", "client ms", "joblib.load ms", "ratio"), rows)
    shared = _sum_of_pss(_LOADING, directory.live, "arrays") / ARRAYS_BYTES
    [forest_file] = (directory.state / "store" / "forest").rglob("*.joblib")
    preloaded = _sum_of_pss(_PRELOADING, directory.live, "forest") / forest_file.stat().st_size
    warm, cold = times["warm load"], times["cold load and first touch"]
    bars = [
        Bar("warm load of 512 MiB of arrays / joblib.load", ratio(*warm), 0.10, "x"),
        Bar("cold load and first touch / joblib.load and touch", ratio(*cold), 1.1, "x"),
        Bar("four processes with the arrays, sum of PSS / the model", shared, 1.3, "x"),
        Bar(
            "four forked processes and their parent with a preloaded forest, sum of PSS / its file", preloaded, 2.3, "x"
        ),
    ]
    return bars, {"times_s": times, "forest_bytes": forest_file.stat().st_size}


def _touch(model: dict[str, numpy.ndarray]) -> float:
    return float(sum(array.sum() for array in model.values()))


def _times(directory: LiveDir, file: Path) -> dict[str, tuple[list[float], list[float]]]:
    def ours(touch: bool) -> None:
        with Client(directory.live, trust_pickle="all", watch=False) as client, client.load("arrays").lease() as model:
            if touch:
                _touch(model)

    def theirs(touch: bool) -> None:
        model = joblib.load(file)
        if touch:
            _touch(model)

    found: dict[str, tuple[list[float], list[float]]] = {}
    cases = [
        ("warm load", False, False),
        ("warm load and touch", False, True),
        ("cold load and first touch", True, True),
    ]
    for name, cold, touch in cases:
        pair: tuple[list[float], list[float]] = ([], [])
        for _ in range(PAIRS):
            for times, load in zip(pair, (ours, theirs), strict=True):
                times.append(_timed(directory.state / "store" / "arrays", cold, load, touch))
        found[name] = pair
    return found


def _timed(tree: Path, cold: bool, load: Callable[[bool], None], touch: bool) -> float:
    warm = numpy.ones(ARRAYS_BYTES // 8)  # fault memory in, for both alike: the host takes back what lies idle
    del warm
    if cold:
        drop_caches(tree)
    started_s = time.perf_counter()
    load(touch)
    return time.perf_counter() - started_s


_LOADING = """
import os, sys, time
from modelsync.client import Client
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        client = Client(sys.argv[1], trust_pickle="all")
        with client.load(sys.argv[2]).lease() as model:
            sum(float(array.sum()) for array in model.values())
            os.write(1, b"%d " % os.getpid())
            time.sleep(600)
    children.append(pid)
sys.stdin.read()
for pid in children: os.kill(pid, 9)
"""
_PRELOADING = """
import os, sys, time
import numpy
from modelsync.client import preload
client = preload(sys.argv[1], [sys.argv[2]], trust_pickle="all")
handle = client.load(sys.argv[2])
rows = numpy.random.default_rng(1).normal(size=(500, 20))
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        for _ in range(5): handle.predict(rows)
        os.write(1, b"%d " % os.getpid())
        time.sleep(600)
    children.append(pid)
os.write(1, b"%d " % os.getpid())
sys.stdin.read()
for pid in children: os.kill(pid, 9)
"""


def _sum_of_pss(program: str, live: Path, name: str) -> float:
    process = spawn(program, live, name)
    wanted = 5 if program is _PRELOADING else 4
    try:
        assert process.stdout is not None and process.stdin is not None
        text = ""
        while len(text.split()) < wanted or not text.endswith(" "):
            part = os.read(process.stdout.fileno(), 4096).decode()
            if not part:
                raise RuntimeError("the processes ended before they were measured")
            text += part
        return float(sum(pss_bytes(int(pid)) for pid in text.split()))
    finally:
        process.stdin.close()
        process.wait(30)
