"""Curves as a PNG or SVG file, by matplotlib: an extra, imported when something is drawn."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelsync.core.curves import Bars, Heat, Lines, Panel
from modelsync.core.errors import BadName, LibraryMissing
from modelsync.edges.disk.durable import local_faults

SUFFIXES = (".png", ".svg")
COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490", "#be123c", "#4d7c0f")
PANEL_INCHES = (7.0, 3.0)
_LONGER = 5
"""A bar that is so many times the next one is cut off, and its value written into it."""


def require_drawable(path: Path) -> None:
    """Say before any work is done that this file could not be drawn. Raises BadName, LibraryMissing."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadName(kind="file of curves", value=str(path), rule="its name ends in .png or .svg")
    _pyplot()


def draw(panels: Sequence[Panel], path: Path, title: str, columns: int = 2) -> None:
    """Draw panels into one file, two side by side.

    Raises: BadName, LibraryMissing, DiskFull, DiskFailed.
    """
    require_drawable(path)
    pyplot = _pyplot()
    across = min(columns, max(1, len(panels)))
    down = max(1, math.ceil(len(panels) / across))
    size = (PANEL_INCHES[0] * across, PANEL_INCHES[1] * down + 0.5)
    figure, grid = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    try:
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=13)
        places = [axes for row in grid for axes in row]
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(places, panels, strict=False):
            _draw_panel(figure, axes, panel)
        with local_faults(path, "draw"):
            figure.savefig(path, dpi=110, format=path.suffix.lower()[1:])
    finally:
        pyplot.close(figure)


def _pyplot() -> Any:
    os.environ.setdefault("MPLBACKEND", "Agg")  # there is no screen
    try:
        from matplotlib import pyplot  # noqa: PLC0415  an extra, and half a second
    except ImportError as error:
        raise LibraryMissing(library="matplotlib", extra="plots") from error
    return pyplot


def _draw_panel(figure: Any, axes: Any, panel: Panel) -> None:
    axes.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title, loc="left", fontsize=10)
    axes.tick_params(labelsize=8, which="both")
    match panel:
        case Lines():
            _draw_lines(axes, panel)
        case Bars():
            _draw_bars(axes, panel)
        case Heat():
            _draw_heat(figure, axes, panel)


def _draw_lines(axes: Any, panel: Lines) -> None:
    for number, (name, points) in enumerate(panel.lines.items()):
        if points:
            xs, ys = zip(*points, strict=True)
            marker = "o" if len(points) < 40 else None
            axes.plot(
                xs, ys, label=name, color=COLOURS[number % len(COLOURS)], linewidth=1.4, marker=marker, markersize=2.5
            )
    values = [y for points in panel.lines.values() for _, y in points if not math.isnan(y)]
    if panel.logarithmic and values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if max(values) < 10 * min(values) else "")
    else:
        axes.set_ylim(0, 1.05 * max(values, default=0) or 1)
    for at, word in panel.marks:
        axes.axvline(at, color="#6b7280", linewidth=0.8, linestyle="--")
        axes.annotate(
            word, (at, 0.03), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="bottom", ha="right",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        )  # fmt: skip
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.grid(color="#e5e7eb")
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.lines) > 1:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _draw_bars(axes: Any, panel: Bars) -> None:
    below = [0.0] * len(panel.labels)
    for number, (name, values) in enumerate(panel.parts.items()):
        axes.barh(panel.labels, values, left=below, label=name, color=COLOURS[number % len(COLOURS)], height=0.7)
        below = [low + value for low, value in zip(below, values, strict=True)]
    end = end_of_bars(below)
    axes.set_xlim(0, end)
    for label, total in zip(panel.labels, below, strict=True):
        if total > end:
            axes.annotate(
                f"{total:,.0f}  ", (end, label), fontsize=7, va="center", ha="right", color="white", weight="bold"
            )
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=6)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def end_of_bars(totals: Sequence[float]) -> float:
    """Where bars are cut off: a few that are many times longer than all others would leave nothing of these to see.

    The first load of a process is such a one: it imports the model's libraries.
    """
    ordered = sorted(totals, reverse=True)
    for longer, shorter in itertools.pairwise(ordered[: 1 + len(ordered) // 4]):
        if shorter > 0 and longer > _LONGER * shorter:
            return 1.3 * shorter
    return 1.05 * max(ordered, default=0.0) or 1.0


def _draw_heat(figure: Any, axes: Any, panel: Heat) -> None:
    image = axes.imshow(panel.values, aspect="auto", cmap="YlOrRd", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize=6)
    every = max(1, len(panel.columns) // 12)
    axes.set_xticks(range(0, len(panel.columns), every), panel.columns[::every], fontsize=7)
    axes.set_xlabel(panel.x_label, fontsize=8)
    figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=7)
