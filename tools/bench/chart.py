"""One chart, as SVG without a library: the share of trials done by each moment, on a logarithmic axis of time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 44, 48
COLOURS = ("#0b6bcb", "#c2410c", "#6b7280", "#15803d")


def shares(path: Path, title: str, series_ms: Mapping[str, Sequence[float]]) -> None:
    """Draw each series' cumulative shares."""
    low = 10 ** math.floor(math.log10(min(min(values) for values in series_ms.values())))
    high = 10 ** math.ceil(math.log10(max(max(values) for values in series_ms.values())))

    def x(value_ms: float) -> float:
        share = math.log(value_ms / low) / math.log(high / low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#111"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 0.99):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    for tick in _ticks(low, high):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g} ms</text>')
    for number, (name, values) in enumerate(series_ms.items()):
        ordered, colour = sorted(values), COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(value):.1f},{y((i + 1) / len(ordered)):.1f}" for i, value in enumerate(ordered))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 190 * number}" y="{HEIGHT - 8}" fill="{colour}">{escape(name)}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _ticks(low: float, high: float) -> list[float]:
    decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
    return [value for decade in decades for step in (1, 2, 5) if low <= (value := step * 10.0**decade) <= high]


def bars(path: Path, title: str, values: Mapping[str, float]) -> None:
    """Draw one bar for each value, from zero."""
    top, wide = max(values.values()) or 1.0, (WIDTH - LEFT - RIGHT) / len(values)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#111"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(values.items()):
        tall, x = (HEIGHT - TOP - BOTTOM) * value / top, LEFT + wide * number
        y = HEIGHT - BOTTOM - tall
        place = f'x="{x:.1f}" y="{y:.1f}" width="{0.7 * wide:.1f}" height="{tall:.1f}"'
        parts.append(f'<rect {place} fill="{COLOURS[0]}"/>')
        parts.append(f'<text x="{x + 0.35 * wide:.1f}" y="{y - 6:.1f}" text-anchor="middle">{value:.3g}</text>')
        parts.append(f'<text x="{x + 0.35 * wide:.1f}" y="{HEIGHT - 28}" text-anchor="middle">{escape(name)}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
