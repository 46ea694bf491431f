"""What every benchmark prints and keeps: a table, PASS or FAIL against a bar, JSON, a chart."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

DEFAULT_OUT = Path(__file__).resolve().parents[2] / ".cache" / "bench"


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure and the most it may be."""

    what: str
    value: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        return f"{verdict}  {self.what}: {self.value:.3g} {self.unit} (at most {self.limit:g})"


@dataclass(slots=True)
class Result:
    """What one benchmark found."""

    name: str
    bars: list[Bar] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def arguments(name: str, about: str) -> argparse.ArgumentParser:
    """The interface that all benchmarks share. A benchmark that is ended by SIGTERM ends what it started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parser = argparse.ArgumentParser(prog=f"tools/bench/{name}", description=about)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="for JSON and charts")
    return parser


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column is words, the others figures."""
    cells = [headings, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        figures = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join([row[0].ljust(widths[0]), *figures]).rstrip(), flush=True)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios pair by pair: what drifts over a run drifts for both of a pair."""
    return median(mine / other for mine, other in zip(ours, theirs, strict=True))


def finish(result: Result, out: Path) -> bool:
    """Print the bars, keep everything as JSON. Returns whether all of them passed."""
    out.mkdir(parents=True, exist_ok=True)
    print()
    for bar in result.bars:
        print(bar, flush=True)
    machine = {"kernel": platform.release(), "cores": os.cpu_count(), "load": os.getloadavg()}
    document = {
        "name": result.name,
        "machine": machine,
        "bars": [{**asdict(bar), "passed": bar.passed} for bar in result.bars],
        "figures": result.figures,
    }
    path = out / f"{result.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"kept in {path}", flush=True)
    return all(bar.passed for bar in result.bars)
