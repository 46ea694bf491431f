"""From rename into the watched directory to `current` switched on a replica, beside a shell loop and a bare path.

The contenders take turns, trial by trial: modelsync (a primary, a replica and a Valkey, all fsyncs on, every byte
verified); `inotifywait | rsync -aI --fsync` into a second directory, which keeps no version and knows no digest;
and the floor of bare_path.py. One witness, a process of its own, times them all by inotify.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chart
import joblib
from arrivals import Witness
from report import Bar, Result, arguments, finish, percentile, ratio, table
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import ExtraTreesClassifier

from fleet import Fleet

MODEL = "tumour"
FILE = f"{MODEL}.joblib"
SIZE_BYTES = 200 << 10
TRIAL_TIMEOUT_S = 15.0
OURS, SHELL, BARE = "modelsync", "inotifywait + rsync", "bare path"
SHELL_LOOP = (  # -I: without it rsync skips a new file of the same size and second
    "inotifywait -m -q -e moved_to --format %f {source} | "
    'while read -r name; do rsync -aI --fsync {source}/"$name" {target}/; done'
)


def trained() -> Any:
    """A forest on real data whose file is a little below the wanted size; ``save`` fills up the rest."""
    rows, labels = load_breast_cancer(return_X_y=True)
    return ExtraTreesClassifier(28, max_depth=8, random_state=7).fit(rows, labels)


def save(estimator: Any, path: Path, trial: int) -> None:
    """Write the model of one trial, durable, so that no contender pays for another's dirty pages."""
    estimator.trial_ = trial
    estimator.padding_ = b""
    joblib.dump(estimator, path)
    estimator.padding_ = os.urandom(max(0, SIZE_BYTES - path.stat().st_size - 16))
    joblib.dump(estimator, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Peers:
    """A context: the shell loop and the bare path, each with a watched directory and a directory of arrivals."""

    def __init__(self, root: Path) -> None:
        self.shell_source, self.shell_target = root / "shell" / "models", root / "shell" / "live"
        self.bare_source, self.bare_target = root / "bare" / "models", root / "bare" / "live"
        for directory in (self.shell_source, self.shell_target, self.bare_source, self.bare_target):
            directory.mkdir(parents=True)
        loop = SHELL_LOOP.format(source=shlex.quote(str(self.shell_source)), target=shlex.quote(str(self.shell_target)))
        bare = [sys.executable, str(Path(__file__).with_name("bare_path.py")), str(self.bare_source)]
        self._processes = [
            subprocess.Popen(["sh", "-c", loop], start_new_session=True),
            subprocess.Popen([*bare, str(self.bare_target.parent)], start_new_session=True),
        ]

    def __enter__(self) -> Peers:
        time.sleep(1.0)  # neither says when its watch is there
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def trial(estimator: Any, number: int, ready: Path, target: Path, arrived_ns: Callable[[], int]) -> float:
    """One rename, and the milliseconds until the arrival."""
    save(estimator, ready, number)
    time.sleep(random.uniform(0.05, 0.15))  # so that no contender falls into step with a timer of its own
    started_ns = time.monotonic_ns()
    os.rename(ready, target)
    return (arrived_ns() - started_ns) / 1e6


def measure(trials: int, out: Path) -> Result:
    estimator, times_ms = trained(), {OURS: [], SHELL: [], BARE: []}
    with Fleet("alpha", "beta", root=out / "work") as fleet, Peers(fleet.root) as peers:
        ready = fleet.root / FILE
        save(estimator, ready, -1)
        (fleet.replica.live / MODEL).mkdir(parents=True)
        with Witness(fleet.replica.live / MODEL, peers.shell_target, peers.bare_target) as witness:
            contenders = {
                OURS: (fleet.primary.models, lambda: witness.heard_ns(0, "current", TRIAL_TIMEOUT_S)),
                SHELL: (peers.shell_source, lambda: witness.heard_ns(1, FILE, TRIAL_TIMEOUT_S)),
                BARE: (peers.bare_source, lambda: witness.heard_ns(2, "current", TRIAL_TIMEOUT_S)),
            }
            for number in range(-3, trials):  # three rounds to warm up, not counted
                for name, (models, arrived_ns) in contenders.items():
                    took_ms = trial(estimator, number, ready, models / FILE, arrived_ns)
                    if number >= 0:
                        times_ms[name].append(took_ms)
        size_bytes = (fleet.primary.models / FILE).stat().st_size
    return _judged(times_ms, size_bytes, out)


def _judged(times_ms: dict[str, list[float]], size_bytes: int, out: Path) -> Result:
    ours = times_ms[OURS]
    print(f"rename to visible, {len(ours)} trials in turns, a scikit-learn model of {size_bytes / 1024:.0f} KiB\n")
    rows = [
        (name, *(f"{percentile(values, share):.1f}" for share in (0.5, 0.9, 0.99, 1.0)), f"{ratio(ours, values):.2f}")
        for name, values in times_ms.items()
    ]
    table(("", "p50 ms", "p90 ms", "p99 ms", "max ms", "modelsync / this"), rows)
    chart.shares(out / "latency.svg", "Rename to visible on the other side", times_ms)
    bars = [
        Bar("rename to `current` switched on a replica, p50", percentile(ours, 0.5), 20, "ms"),
        Bar("rename to `current` switched on a replica, p99", percentile(ours, 0.99), 100, "ms"),
    ]
    return Result("latency", bars, {"size_bytes": size_bytes, "times_ms": times_ms})


def main() -> int:
    parser = arguments("latency", __doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    return 0 if finish(measure(options.trials, options.out), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
