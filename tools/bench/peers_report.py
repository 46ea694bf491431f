"""The table, the chart and the verdicts of ``peers``, from the rows of all its runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

from report import Bar, Result, ratio

OURS = "modelsync"
Rows = list[dict[str, Any]]
GIB = 1 << 30


def judged(rows: Rows) -> Result:
    """The bars that these rows can answer."""
    bars: list[Bar] = []

    def against(workload: str, other: str, limit: float, field: str = "took_s", what: str = "seconds") -> None:
        mine, theirs = _of(rows, workload, OURS, field), _of(rows, workload, other, field)
        if mine and len(mine) == len(theirs):
            bars.append(Bar(f"{workload}: {what} against {other}", ratio(mine, theirs), limit, "times"))

    against("fresh", "cp and sync", 1.4)
    against("fresh", "rsync", 1 / 1.3)
    against("fresh", "rsync, then SHA-256", 1 / 2)
    for other in ("nginx, curl, SHA-256", "nginx, aria2c", "nginx, rclone, SHA-256", "syncthing"):
        against("fresh", other, 1.0)
    against("fresh", "rsync", 1.0, "cpu_s", "processor seconds")
    against("small", "cp and sync", 3.0)
    against("small", "rsync", 1.0)
    against("changed", "rsync", 1 / 3)
    for workload in ("changed", "inserted"):
        if wire := _of(rows, workload, OURS, "wire_bytes"):
            moved = _of(rows, workload, OURS, "size_bytes")[0]
            bars.append(Bar(f"{workload}: on the wire", 100 * median(wire) / moved, 3, "%"))
    for row in (row for row in rows if row["workload"] in ("memory", "crowd")):
        what = f"{row['size_bytes'] / GIB:.3g} GiB" if row["workload"] == "memory" else row["contender"]
        bars.append(Bar(f"resident, larger daemon, {what}", max(row["peaks_bytes"]) / (1 << 20), 200, "MiB"))
    return Result("peers", bars, {"runs": rows})


def _of(rows: Rows, workload: str, contender: str, field: str) -> list[Any]:
    return [row[field] for row in rows if (row["workload"], row["contender"]) == (workload, contender)]


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.3g} GiB" if size_bytes >= GIB else f"{size_bytes / (1 << 20):.4g} MiB"


def _workloads(rows: Rows) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        names = found.setdefault(row["workload"], [])
        if row["contender"] not in names and "took_s" in row:
            names.append(row["contender"])
    return {workload: names for workload, names in found.items() if names}


def keep(rows: Rows, out: Path, name: str = "peers") -> None:
    """Write and print the table; draw the chart where matplotlib is installed."""
    lines = [f"{os.cpu_count()} cores, Linux {platform.release()}; medians (least to most); ratio: modelsync by it.\n"]
    for workload, names in _workloads(rows).items():
        moved = _of(rows, workload, names[0], "size_bytes")[0]
        lines += [f"### {workload}, {_amount(moved)}", "", _row("contender", *_HEADINGS), _row(*["---"] * 9)]
        lines += [_line(rows, workload, name) for name in names] + [""]
    text = "\n".join(lines)
    (out / f"{name}.md").write_text(text)
    print(f"\n{text}\n{out / f'{name}.md'}", flush=True)
    try:
        _chart(rows, out / f"{name}.png")
    except ImportError:
        print("no chart: matplotlib is not installed")


_HEADINGS = ("runs", "seconds", "ratio", "CPU s a GiB", "on the wire", "verified", "durable", "resident MiB")


def _line(rows: Rows, workload: str, name: str) -> str:
    took = _of(rows, workload, name, "took_s")
    ours, moved = _of(rows, workload, OURS, "took_s"), _of(rows, workload, name, "size_bytes")[0]
    first = next(row for row in rows if (row["workload"], row["contender"]) == (workload, name))
    peaks = [max(row["peaks_bytes"]) for row in rows if row["contender"] == name and "peaks_bytes" in row]
    cells = (
        str(len(took)),
        f"{median(took):.2f} ({min(took):.2f} to {max(took):.2f})",
        f"{ratio(ours, took):.2f}" if len(ours) == len(took) else "-",
        f"{median(_of(rows, workload, name, 'cpu_s')) / moved * GIB:.2f}",
        f"{100 * median(_of(rows, workload, name, 'wire_bytes')) / moved:.2f} %",
        first["verified"],
        first["durable"],
        f"{max(peaks) / (1 << 20):.0f}" if peaks else "",
    )
    return _row(name, *cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _chart(rows: Rows, path: Path) -> None:
    import matplotlib  # noqa: PLC0415  only here

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    workloads = _workloads(rows)
    heights = [1 + len(names) for names in workloads.values()]
    figure, axes = pyplot.subplots(
        len(workloads), 1, figsize=(8, 0.4 * sum(heights) + 1), height_ratios=heights, squeeze=False
    )
    for axis, (workload, names) in zip(axes[:, 0], workloads.items(), strict=True):
        values = [median(_of(rows, workload, name, "took_s")) for name in names]
        bars = axis.barh(names, values, color=["#0b6bcb" if name == OURS else "#9ca3af" for name in names])
        axis.bar_label(bars, fmt="%.2f s", padding=3)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.15 * max(values))
        axis.set_title(f"{workload}: {_amount(_of(rows, workload, names[0], 'size_bytes')[0])}", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
