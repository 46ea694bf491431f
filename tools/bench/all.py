"""Every benchmark, one after another, and what came of each bar."""

from __future__ import annotations

import sys
from collections.abc import Callable

import idle
import latency
import peers
from report import Result, arguments, finish


def main() -> int:
    parser = arguments("all", __doc__)
    parser.add_argument("--quick", action="store_true", help="fewer trials: to see that it runs, not for figures")
    options = parser.parse_args()
    trials, size_bytes, runs, seconds = (20, 256 << 20, 2, 10.0) if options.quick else (200, 2 << 30, 5, 60.0)
    benchmarks: dict[str, Callable[[], Result]] = {
        "latency": lambda: latency.measure(trials, options.out),
        "peers": lambda: peers.measure(["fresh"], size_bytes, runs, options.out, only=[peers.FLOOR, peers.RSYNC]),
        "idle": lambda: idle.measure(seconds, options.out),
    }
    results = []
    for name, measure in benchmarks.items():
        print(f"\n== {name}\n", flush=True)
        results.append(measure())
        finish(results[-1], options.out)
    print("\n== summary\n")
    for result in results:
        for bar in result.bars:
            print(bar)
    return 0 if all(bar.passed for result in results for bar in result.bars) else 1


if __name__ == "__main__":
    sys.exit(main())
