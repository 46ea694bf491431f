"""What a new version costs the wire and the clock where the one before is held: beside rsync's delta and casync.

modelsync: the replica is stopped (SIGSTOP) while the primary takes the version in; the clock runs from SIGCONT until
`current` is switched, everything verified and fsynced; wire bytes are the bodies that the replica's log counts. rsync:
a daemon on loopback, `--no-whole-file --fsync` onto a copy of the old file, with the bytes that it reports in both
directions; it verifies its own transfer. casync: `extract` with the old file as seed from a store that was made before,
and then `sync`; its wire bytes are the (compressed) chunks that the old version has not, and the index. Its `make` is
not counted, as our ingest is not. Contenders take turns; medians.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import sequences
from arrivals import Witness
from pull import size
from report import Bar, Result, arguments, finish, table

from fleet import Fleet, until

Figure = tuple[float, int]
"""(seconds, bytes on the wire)"""


class Ours:
    """A fleet of two; every step is published under the case's own name."""

    def __init__(self, fleet: Fleet, case: str) -> None:
        self._fleet, self._model = fleet, case
        (fleet.replica.live / case).mkdir(parents=True, exist_ok=True)

    def __call__(self, old: Path, new: Path) -> Figure:
        if not self._fleet.replica.current(self._model):
            self._publish(old)
            until(lambda: self._fleet.replica.current(self._model), "the first version", 300)
        return self._timed(new)

    def _publish(self, path: Path) -> None:
        before, ready = self._fleet.primary.current(self._model), self._fleet.root / "ready"
        shutil.copyfile(path, ready)
        os.rename(ready, self._fleet.primary.models / f"{self._model}.bin")
        until(lambda: self._fleet.primary.current(self._model) != before, "the primary to have it", 300)

    def _timed(self, new: Path) -> Figure:
        log_at = self._fleet.replica.log.stat().st_size
        with Witness(self._fleet.replica.live / self._model) as witness:
            os.kill(self._fleet.replica.pid, signal.SIGSTOP)
            try:
                self._publish(new)
                witness.forget()
                started_ns = time.monotonic_ns()
            finally:
                os.kill(self._fleet.replica.pid, signal.SIGCONT)
            took_s = (witness.heard_ns(0, "current", 300) - started_ns) / 1e9
        time.sleep(0.5)
        said = re.sub(r"\x1b\[[0-9;]*m", "", self._fleet.replica.log.read_text()[log_at:])
        return took_s, int(re.findall(r"wire_bytes\W+(\d+)", said)[-1])


class Rsync:
    def __init__(self, root: Path) -> None:
        self._root = root / "rsync"
        self._root.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        config = self._root / "rsyncd.conf"
        user = f"uid = {os.getuid()}\ngid = {os.getgid()}\n"
        config.write_text(f"use chroot = no\n{user}[m]\npath = {root}\nread only = yes\n")
        command = ["rsync", "--daemon", "--no-detach", "--config", config, "--port", str(self._port)]
        self._server = subprocess.Popen([*map(str, command), "--address", "127.0.0.1"])

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._port)) == 0

        until(listens, "rsync's daemon")

    def __call__(self, old: Path, new: Path) -> Figure:
        target = self._root / "copy"
        shutil.copyfile(old, target)
        subprocess.run(["sync", target], check=True)
        url = f"rsync://127.0.0.1:{self._port}/m/{new.name}"
        started_s = time.monotonic()
        # --ignore-times: the copy may have the size and second of the new file, which it would take for unchanged
        command = ["rsync", "--ignore-times", "--no-whole-file", "--fsync", "--stats", url, str(target)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        took_s = time.monotonic() - started_s
        assert target.stat().st_size == new.stat().st_size
        counted = re.findall(r"Total bytes (?:sent|received): ([\d,.]+)", said)
        return took_s, sum(int(re.sub(r"\D", "", text)) for text in counted)

    def stop(self) -> None:
        self._server.terminate()
        self._server.wait()


class Casync:
    def __init__(self, root: Path) -> None:
        self._root = root / "casync"
        self._root.mkdir()

    def __call__(self, old: Path, new: Path) -> Figure:
        work = self._root / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stores = [work / "old.castr", work / "new.castr"]
        for path, store in zip((old, new), stores, strict=True):
            self._run("make", f"--store={store}", work / f"{store.stem}.caibx", path)
        had = {path.name for path in stores[0].glob("*/*")}
        wire = sum(path.stat().st_size for path in stores[1].glob("*/*") if path.name not in had)
        started_s = time.monotonic()
        self._run("extract", f"--store={stores[1]}", f"--seed={old}", work / "new.caibx", work / "copy")
        subprocess.run(["sync", work / "copy"], check=True)
        return time.monotonic() - started_s, wire + (work / "new.caibx").stat().st_size

    @staticmethod
    def _run(*words: object) -> None:
        subprocess.run(["casync", *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cases(root: Path, size_bytes: int) -> dict[str, Callable[[], Iterator[Path]]]:
    return {
        "changed": lambda: sequences.synthetic(sequences.changed_blocks, root, size_bytes),
        "inserted": lambda: sequences.synthetic(sequences.inserted, root, size_bytes),
        "one-tensor": lambda: sequences.one_tensor(root, size_bytes // 4),
        "new-head": lambda: sequences.new_head(root, size_bytes // 4),
        "retrained-forest": lambda: sequences.retrained_forest(root),
        "grown-forest": lambda: sequences.grown_forest(root),
        "retrained-network": lambda: sequences.retrained_network(root),
    }


def measure(size_bytes: int, runs: int, only: list[str], out: Path) -> Result:
    rows, figures, bars = [], {}, []
    (out / "work").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modelsync-delta-", dir=out / "work") as name:
        root = Path(name)
        rsync = Rsync(root)
        try:
            for case, make in cases(root, size_bytes).items():
                if only and case not in only:
                    continue
                versions = list(make())
                found = _turns(root, case, versions, runs, rsync)
                figures[case] = found
                rows.append(_row(case, versions[-1].stat().st_size, found))
                print("  ".join(("done:", *rows[-1])), flush=True)  # so that a run that is cut short says something
                bars += _bars(case, versions[-1].stat().st_size, found)
                for path in versions:
                    path.unlink()
        finally:
            rsync.stop()
    print(f"medians of {runs} runs over each step of a sequence: share of the file on the wire, and seconds\n")
    table(("", "MiB", "modelsync", "s", "rsync delta", "s", "casync", "s"), rows)
    return Result("delta", bars, {"size_bytes": size_bytes, "cases": figures})


def _turns(root: Path, case: str, versions: list[Path], runs: int, rsync: Rsync) -> dict[str, list[Figure]]:
    found: dict[str, list[Figure]] = {"modelsync": [], "rsync": [], "casync": []}
    for run in range(runs):
        # A fleet of its own for each run: one that has seen these bytes under any name would pull nothing.
        with Fleet("alpha", "beta", sections="keep = 3\n", root=root) as fleet:
            runners: dict[str, Callable[[Path, Path], Figure]] = {"modelsync": Ours(fleet, case), "rsync": rsync}
            if shutil.which("casync"):
                runners["casync"] = Casync(_fresh(root / f"casync-of-{case}-{run}"))
            for old, new in itertools.pairwise(versions):
                for name, runner in runners.items():
                    found[name].append(runner(old, new))
    return found


def _fresh(path: Path) -> Path:
    path.mkdir()
    return path


def _row(case: str, size_bytes: int, found: dict[str, list[Figure]]) -> tuple[str, ...]:
    cells = [f"{size_bytes / 2**20:.1f}"]
    for each in found.values():
        cells += [f"{100 * _wire(each) / size_bytes:.2f} %", f"{_seconds(each):.2f}"] if each else ["-", "-"]
    return (case, *cells)


def _seconds(found: list[Figure]) -> float:
    return median(took_s for took_s, _ in found)


def _wire(found: list[Figure]) -> float:
    return median(wire for _, wire in found)


def _bars(case: str, size_bytes: int, found: dict[str, list[Figure]]) -> list[Bar]:
    if case not in ("changed", "inserted"):
        return []
    bars = [Bar(f"{case}: on the wire", 100 * _wire(found["modelsync"]) / size_bytes, 3, "%")]
    if case == "changed":
        pairs = zip(found["modelsync"], found["rsync"], strict=True)
        against = median(mine[0] / other[0] for mine, other in pairs)
        bars.append(Bar("changed: seconds against rsync's", against, 1 / 3, "times"))
    return bars


def main() -> int:
    parser = arguments("delta", __doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=size("2GiB"), metavar="BYTES", help="such as 2GiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", action="append", default=[], help="only this one; may be given several times")
    options = parser.parse_args()
    result = measure(options.size, options.runs, options.case, options.out)
    return 0 if finish(result, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
