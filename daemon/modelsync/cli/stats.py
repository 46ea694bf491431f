"""``modelsync stats``: what an inference server did, as a table, as JSON, and as curves in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modelsync.access import run
from modelsync.cli.output import json_option, print_json, print_table, size
from modelsync.core import curves
from modelsync.core.curves import ModelFigures

DEFAULT_URL = "http://127.0.0.1:8462"
"""Where modelsync-serve listens when nothing else is said."""


@click.command("stats")
@click.option("--url", default=DEFAULT_URL, show_default=True, metavar="URL", help="An inference server.")
@click.option("--step", "step_s", default=10, show_default=True, metavar="S", help="Of the curves; a multiple of 10.")
@click.option("--plot", "plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curves: .png or .svg.")
@json_option
def stats_command(url: str, step_s: int, plot: Path | None, as_json: bool) -> None:
    """Show what an inference server did: requests, hit rate, loads, latency; as curves with --plot."""
    if step_s < 10 or step_s % 10:
        raise click.BadParameter("a multiple of 10", param_hint="--step")
    if plot is not None:
        from modelsync.edges.host.plots import require_drawable  # noqa: PLC0415  the table needs no matplotlib

        require_drawable(plot)
    document = run(_fetch(url, step_s))
    found = curves.parse(document)
    if plot is not None:
        from modelsync.edges.host.plots import draw  # noqa: PLC0415

        draw(curves.panels(found), plot, f"modelsync-serve at {url}")
    if as_json:
        print_json(document)
        return
    print_table(_HEADINGS, [_row(figures) for figures in found.models])
    if plot is not None:
        click.echo(f"curves in {plot}")


async def _fetch(url: str, step_s: int) -> dict[str, Any]:
    from modelsync.edges.http.control import ControlClient  # noqa: PLC0415  imports aiohttp

    async with ControlClient(timeout_s=10.0) as control:
        return await control.server_stats(url, step_s)


_HEADINGS = ("MODEL", "VERSION", "REQUESTS", "HIT RATE", "LOADS", "A LOAD", "P50", "P99", "EVICTED", "IN MEMORY")


def _row(figures: ModelFigures) -> tuple[object, ...]:
    return (
        figures.model,
        figures.version,
        figures.requests,
        f"{100 * figures.hit_rate:.1f} %" if figures.hit_rate is not None else None,
        figures.loads,
        _duration(figures.load_s),
        _duration(figures.latency_p50_s),
        _duration(figures.latency_p99_s),
        figures.evictions,
        size(figures.size_bytes) if figures.size_bytes else None,
    )


def _duration(value_s: float | None) -> str | None:
    if value_s is None:
        return None
    return (
        f"{value_s:.2f} s"
        if value_s >= 1
        else f"{1000 * value_s:.1f} ms"
        if value_s >= 1e-3
        else f"{1e6 * value_s:.0f} µs"
    )


COMMANDS = (stats_command,)
