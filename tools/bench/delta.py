"""What a new version costs wire and clock where the one before is held: sequences of versions as people make them.

Beside rsync's delta and casync, in turns, each as in ``peers``: wire bytes are what the kernel counts, in both
directions; of casync, which reads its store from the disk, the (compressed) chunks that the old version has not, and
the index. Its `make` is not counted, as our ingest is not. The bytes are those of all steps of a sequence, by the
medians of the runs; seconds and ratios are medians over steps and runs.

Releases of models are fetched with pip, once; without a way to them they are skipped. Loopback is too
quick for modelsync to compress more than the first chunks, before it knows the link; casync's chunks are compressed.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import releases
import sequences
from host import Host
from payload import bytes_below, size
from peers import CONTENDERS, RSYNC, present, turn
from peers_report import OURS
from report import Result, arguments, finish, ratio, table


def cases(root: Path, kept: Path, size_bytes: int) -> dict[str, Callable[[], Iterator[Path]]]:
    made = {
        "changed": lambda: sequences.edited(root, size_bytes, sequences.changed_blocks),
        "inserted": lambda: sequences.edited(root, size_bytes, sequences.inserted),
        "one-tensor": lambda: sequences.one_tensor(root, size_bytes),
        "new-head": lambda: sequences.new_head(root, size_bytes),
        "retrained-forest": lambda: sequences.retrained_forest(root),
        "grown-forest": lambda: sequences.grown_forest(root),
        "retrained-network": lambda: sequences.retrained_network(root),
    }
    return made | {name: lambda name=name: releases.releases(name, root, kept) for name in releases.PACKAGES}


def measure(size_bytes: int, runs: int, only: list[str], out: Path) -> Result:
    rows: list[dict[str, Any]] = []
    kept = out / "releases"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modelsync-delta-", dir=out) as name:
        root = Path(name)
        names = present([OURS, RSYNC, "casync"])
        hosts = {each: Host(each, lambda each=each: CONTENDERS[each](root / each)) for each in names}  # type: ignore[misc]
        try:
            for case, make in cases(root, kept, size_bytes).items():
                if not only or case in only:
                    rows += _sequence(case, make, runs, hosts)
        finally:
            for host in hosts.values():
                host.stop()
    _print(rows)
    return Result("delta", [], {"runs": rows})


def _sequence(
    case: str, make: Callable[[], Iterator[Path]], runs: int, hosts: dict[str, Host]
) -> Iterator[dict[str, Any]]:
    try:
        versions = list(make())
    except LookupError as error:
        print(f"skipped: {case}: {error.args[0]}", flush=True)
        return
    for _, (step, (old, new)) in itertools.product(range(runs), enumerate(itertools.pairwise(versions))):
        for each, host in hosts.items():
            yield turn(case, each, host, new, old, bytes_below(new)) | {"step": step}
    for path in versions:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _print(rows: list[dict[str, Any]]) -> None:
    """One line for each sequence and contender."""
    lines = []
    for case, name in dict.fromkeys((row["workload"], row["contender"]) for row in rows):
        mine = [row for row in rows if (row["workload"], row["contender"]) == (case, name)]
        ours = [row["took_s"] for row in rows if (row["workload"], row["contender"]) == (case, OURS)]
        took = [row["took_s"] for row in mine]
        steps = sorted({row["step"] for row in mine})
        wire = sum(median([row["wire_bytes"] for row in mine if row["step"] == step]) for step in steps)
        moved = sum(next(row["size_bytes"] for row in mine if row["step"] == step) for step in steps)
        cells = (f"{moved / 2**20:.1f}", f"{wire:,.0f}", f"{100 * wire / moved:.3f}", f"{median(took):.3f}")
        lines.append((f"{case}, {name}", str(len(steps)), *cells, f"{ratio(ours, took):.2f}"))
    print()
    table(("sequence", "steps", "new MiB", "wire bytes", "% of new", "seconds", "ours by it"), lines)


def main() -> int:
    parser = arguments("delta", __doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=size("512MiB"), metavar="BYTES", help="of what is made up")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", action="append", default=[], help="only this one; may be given several times")
    options = parser.parse_args()
    result = measure(options.size, options.runs, options.case, options.out.resolve())
    return 0 if finish(result, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
