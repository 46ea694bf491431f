"""What a new version costs wire and clock where the one before is held: sequences of versions as people make them.

Beside rsync's delta and casync, in turns, each as in ``peers`` (which has the synthetic edits of a large file): wire
bytes are what the kernel counts, in both directions; of casync, which reads its store from the disk, the (compressed)
chunks that the old version has not, and the index. Its `make` is not counted, as our ingest is not. Medians over the
steps of a sequence and the runs.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import sequences
from host import Host
from payload import size
from peers import CONTENDERS, RSYNC, present, turn
from peers_report import OURS, keep
from report import Result, arguments, finish


def cases(root: Path, size_bytes: int) -> dict[str, Callable[[], Iterator[Path]]]:
    return {
        "one-tensor": lambda: sequences.one_tensor(root, size_bytes),
        "new-head": lambda: sequences.new_head(root, size_bytes),
        "retrained-forest": lambda: sequences.retrained_forest(root),
        "grown-forest": lambda: sequences.grown_forest(root),
        "retrained-network": lambda: sequences.retrained_network(root),
    }


def measure(size_bytes: int, runs: int, only: list[str], out: Path) -> Result:
    rows: list[dict[str, object]] = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modelsync-delta-", dir=out) as name:
        root = Path(name)
        names = present([OURS, RSYNC, "casync"])
        hosts = {each: Host(each, lambda each=each: CONTENDERS[each](root / each)) for each in names}  # type: ignore[misc]
        try:
            for case, make in cases(root, size_bytes).items():
                if only and case not in only:
                    continue
                versions = list(make())
                for _, (old, new) in itertools.product(range(runs), itertools.pairwise(versions)):
                    rows += [turn(case, each, host, new, old, new.stat().st_size) for each, host in hosts.items()]
                for path in versions:
                    path.unlink()
        finally:
            for host in hosts.values():
                host.stop()
    keep(rows, out, "delta")
    return Result("delta", [], {"runs": rows})


def main() -> int:
    parser = arguments("delta", __doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=size("512MiB"), metavar="BYTES", help="of the tensors' files")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", action="append", default=[], help="only this one; may be given several times")
    options = parser.parse_args()
    result = measure(options.size, options.runs, options.case, options.out)
    return 0 if finish(result, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
