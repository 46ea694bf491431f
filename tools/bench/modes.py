"""The three storage modes: where models lie, what leaves an object store, what a dead host and reading through cost.

`--part placement` takes a second; `shared` needs moto (the tests' dependency) and runs beside `aws` and rclone where
they are installed (BENCH_AWS names another aws); `partitioned` kills a host under load; `through` reads models of
64 MiB and of `--size` through hosts that do not hold them.
"""

from __future__ import annotations

import sys

import modes_partitioned
import modes_shared
import modes_through
from payload import size
from report import Bar, Result, arguments, finish, table

from modelsync.cli.simulate import placement_lines

PARTS = ("placement", "shared", "partitioned", "through")


def placement(result: Result) -> None:
    """100 models on 8 nodes, 2 copies, of one size and of sizes that differ; a ninth joins."""
    rows = []
    for spread in (0.0, 0.5):
        lines = placement_lines(
            nodes=8, models=100, copies=2, size="1GiB", spread=spread, weights="1", zones=1, add=1, remove=1,
            rate="100MiB", seed=1,
        )  # fmt: skip
        placed, joined, left = lines
        rows.append(
            (f"spread {spread:g}", *(f"{each['busiest']:.3f}" for each in lines), f"{joined['moved_share']:.4f}")
        )
        result.bars.append(Bar(f"busiest over mean, spread {spread:g}", placed["busiest"], 1.25, ""))
        result.bars.append(Bar(f"moved for a ninth, spread {spread:g}", joined["moved_share"], 1.2 / 9, "of all bytes"))
        result.figures[f"placement {spread:g}"] = [placed, joined, left]
    table(("sizes", "8 nodes", "a ninth", "one left", "moved"), rows)


def main() -> int:
    parser = arguments("modes", __doc__ or "")
    parser.add_argument("--size", type=size, default=1 << 30, help="of the version in the object store")
    parser.add_argument("--runs", type=int, default=5, help="of each pair")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given more than once")
    options = parser.parse_args()
    result, parts = Result("modes"), options.part or PARTS
    if "placement" in parts:
        placement(result)
    if "shared" in parts:
        modes_shared.run(options.size, options.runs, result)
    if "partitioned" in parts:
        modes_partitioned.run(min(options.size, 8 << 20), result)
    if "through" in parts:
        for each in (min(options.size, 64 << 20), options.size):
            modes_through.run(each, options.runs, result)
    return 0 if finish(result, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
