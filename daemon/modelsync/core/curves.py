"""Which curves the statistics of an inference server make: cold starts, hit rate, load times, latency, popularity.

This file alone decides that, from the document of ``/stats`` as anybody may have sent it. It draws nothing: ``panels``
are lists of numbers with names and units, for a file of pictures as for a page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from modelsync.core.errors import MalformedMessage

MAX_LINES = 6
"""More in one panel cannot be told apart."""
MAX_ROWS = 20
"""Of models by time, the most asked for."""
LOAD_PARTS = ("read_s", "verify_s", "deserialise_s", "warm_up_s")

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over time. ``x`` is seconds since ``since_s`` (unix), or what ``x_label`` says."""

    title: str
    unit: str
    lines: Mapping[str, Sequence[Point]]
    x_label: str = "seconds"
    logarithmic: bool = False
    marks: Sequence[tuple[float, str]] = ()
    """Moments to be marked, with a word each."""


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar for each label, stacked from parts."""

    title: str
    unit: str
    labels: Sequence[str]
    parts: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Heat:
    """How much of each row fell into each column."""

    title: str
    unit: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    x_label: str = "seconds"


Panel = Lines | Bars | Heat


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to one model within a step of time."""

    t_s: float
    requests: int
    hits: int
    misses: int
    loads: int
    load_s: float
    evictions: int
    latency_p50_s: float | None
    latency_p99_s: float | None


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One version of one model, over its whole life in the server."""

    model: str
    version: str
    requests: int
    hits: int
    loads: int
    evictions: int
    size_bytes: int
    load_parts_s: Mapping[str, float]
    """The sums over all loads."""
    latency_p50_s: float | None
    latency_p99_s: float | None

    @property
    def hit_rate(self) -> float | None:
        return self.hits / self.requests if self.requests else None

    @property
    def load_s(self) -> float | None:
        """Of one load, on average: what a cold start costs."""
        return sum(self.load_parts_s.values()) / self.loads if self.loads else None


@dataclass(frozen=True, slots=True)
class Stats:
    """A ``/stats`` document, checked."""

    models: tuple[ModelFigures, ...]
    series: Mapping[str, tuple[Step, ...]]

    def busiest(self, most: int) -> list[str]:
        """Names by requests over the time that the series cover, the most first."""
        total = {name: sum(step.requests for step in steps) for name, steps in self.series.items()}
        return sorted((name for name in total if total[name]), key=lambda name: (-total[name], name))[:most]

    @property
    def moments(self) -> list[float]:
        return sorted({step.t_s for steps in self.series.values() for step in steps})


# --- reading what a server said ---------------------------------------------------------------------------------------


def parse(document: Mapping[str, Any]) -> Stats:
    """Check a ``/stats`` document. Raises MalformedMessage."""
    try:
        models = tuple(
            _figures(str(name), str(number), figures)
            for name, versions in sorted(dict(document["models"]).items())
            for number, figures in sorted(dict(versions).items(), key=lambda item: (len(item[0]), item[0]))
        )
        series = {str(name): tuple(map(_step, steps)) for name, steps in dict(document["timeseries"]).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"not of the agreed form: {type(error).__name__} {str(error)[:100]}"
        raise MalformedMessage(what="/stats", reason=reason) from error
    return Stats(models, series)


def _figures(name: str, number: str, figures: Mapping[str, Any]) -> ModelFigures:
    load, latency = figures.get("load", {}), figures.get("latency_s", {})
    return ModelFigures(
        model=name,
        version=number,
        requests=int(figures["requests"]),
        hits=int(figures["hits"]),
        loads=int(figures["loads"]),
        evictions=int(figures.get("evictions", 0)),
        size_bytes=int(figures.get("size_bytes", 0)),
        load_parts_s={part: float(load.get(part, 0)) for part in LOAD_PARTS},
        latency_p50_s=_optional(latency.get("p50")),
        latency_p99_s=_optional(latency.get("p99")),
    )


def _step(step: Mapping[str, Any]) -> Step:
    return Step(
        t_s=float(step["t_s"]),
        requests=int(step["requests"]),
        hits=int(step["hits"]),
        misses=int(step["misses"]),
        loads=int(step["loads"]),
        load_s=float(step["load_s"]),
        evictions=int(step.get("evictions", 0)),
        latency_p50_s=_optional(step.get("latency_p50_s")),
        latency_p99_s=_optional(step.get("latency_p99_s")),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


# --- curves -----------------------------------------------------------------------------------------------------------


def panels(stats: Stats) -> list[Panel]:
    """The curves of a server, those without any value left out."""
    busiest = stats.busiest(MAX_LINES)
    start_s = min(stats.moments, default=0.0)
    summed = _by_moment(stats)
    drawn: list[Panel] = [
        Lines("Requests", "in a step", {name: _line(stats, name, start_s, "requests") for name in busiest}),
        Lines("Hit rate, all models", "%", {"hits": _hit_rate(summed, start_s)}),
        Lines("Latency, 99th percentile", "ms", {n: _milliseconds(stats, n, start_s, "p99") for n in busiest}, **_LOG),
        Lines("Latency, median", "ms", {name: _milliseconds(stats, name, start_s, "p50") for name in busiest}, **_LOG),
        Lines("Loads and evictions", "in a step", _counts(summed, start_s)),
        Lines("Time of a load", "ms", {"mean": _load_times(summed, start_s)}),
        _cold_starts(stats),
        _popularity(stats, start_s),
    ]
    return [_with_gaps(panel, _step_s(stats)) for panel in drawn if not _is_empty(panel)]


def _step_s(stats: Stats) -> float:
    moments = stats.moments
    return min((after - before for before, after in pairwise(moments)), default=0.0)


def _with_gaps(panel: Panel, step_s: float) -> Panel:
    """A line that ends where more than two steps are missing (value: not a number) and begins again behind them."""
    if not isinstance(panel, Lines):
        return panel
    return replace(panel, lines={name: _broken(points, step_s) for name, points in panel.lines.items()})


def _broken(points: Sequence[Point], step_s: float) -> list[Point]:
    found = list(points[:1])
    for (before, _), point in pairwise(points):
        if point[0] - before > 2 * step_s:
            found.append((before + step_s, math.nan))
        found.append(point)
    return found


def _by_moment(stats: Stats) -> dict[float, list[Step]]:
    """The steps of all models that began together, in order."""
    found: dict[float, list[Step]] = {}
    for steps in stats.series.values():
        for step in steps:
            found.setdefault(step.t_s, []).append(step)
    return dict(sorted(found.items()))


_LOG: dict[str, Any] = {"logarithmic": True}


def _line(stats: Stats, name: str, start_s: float, field: str) -> list[Point]:
    return [(step.t_s - start_s, float(getattr(step, field))) for step in stats.series[name]]


def _milliseconds(stats: Stats, name: str, start_s: float, which: str) -> list[Point]:
    values = [(step.t_s - start_s, getattr(step, f"latency_{which}_s")) for step in stats.series[name]]
    return [(at_s, 1000 * value) for at_s, value in values if value is not None]


def _hit_rate(summed: Mapping[float, Sequence[Step]], start_s: float) -> list[Point]:
    rates = []
    for moment, steps in summed.items():
        requests = sum(step.requests for step in steps)
        if requests:
            rates.append((moment - start_s, 100 * sum(step.hits for step in steps) / requests))
    return rates


def _counts(summed: Mapping[float, Sequence[Step]], start_s: float) -> dict[str, list[Point]]:
    return {
        field: [(at - start_s, float(sum(getattr(step, field) for step in steps))) for at, steps in summed.items()]
        for field in ("loads", "evictions")
    }


def _load_times(summed: Mapping[float, Sequence[Step]], start_s: float) -> list[Point]:
    points = []
    for moment, steps in summed.items():
        loads = sum(step.loads for step in steps)
        if loads:
            points.append((moment - start_s, 1000 * sum(step.load_s for step in steps) / loads))
    return points


def _cold_starts(stats: Stats) -> Bars:
    """What the first answer of a model waits for, on average over its loads."""
    loaded = sorted((figures for figures in stats.models if figures.loads), key=lambda figures: -(figures.load_s or 0))
    shown = loaded[:MAX_ROWS]
    return Bars(
        "Cold start: the time of a load, by its parts",
        "ms",
        [f"{figures.model} {figures.version}" for figures in shown],
        {
            part.removesuffix("_s").replace("_", "-"): [
                1000 * figures.load_parts_s[part] / figures.loads for figures in shown
            ]
            for part in LOAD_PARTS
        },
    )


def _popularity(stats: Stats, start_s: float) -> Heat:
    names = stats.busiest(MAX_ROWS)
    found = {name: {step.t_s: float(step.requests) for step in stats.series[name]} for name in names}
    return Heat(
        "Hot models by time",
        "requests",
        names,
        [f"{moment - start_s:g}" for moment in stats.moments],
        [[found[name].get(moment, 0.0) for moment in stats.moments] for name in names],
    )


def _is_empty(panel: Panel) -> bool:
    match panel:
        case Lines():
            return not any(panel.lines.values())
        case Bars():
            return not panel.labels
        case Heat():
            return not panel.rows or not panel.columns
