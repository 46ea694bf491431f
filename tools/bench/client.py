"""The client library: the hit path, shared memory, eviction, loads beside requests, swaps. Each by itself, or all."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import client_hit
import client_sharing
import client_swaps
import client_zipf
from report import Bar, Result, arguments, finish


def main() -> int:
    parser = arguments("client", __doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=["hit", "sharing", "zipf", "cold", "swaps", []], help="all, if none")
    parser.add_argument("--swaps", type=int, default=1000)
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], tuple[list[Bar], dict[str, object]]]] = {
        "hit": client_hit.measure,
        "zipf": client_zipf.measure,
        "swaps": lambda root: client_swaps.measure_swaps(root, options.swaps),
        "cold": client_swaps.measure_cold,
        "sharing": client_sharing.measure,
    }
    result = Result("client")
    for name in options.part or parts:
        print(f"\n--- {name}", flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.out, prefix="client-") as root:  # /tmp may be in memory
            bars, figures = parts[name](Path(root))
        result.bars += bars
        result.figures[name] = figures
    return 0 if finish(result, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
