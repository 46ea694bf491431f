"""What people and scripts read: JSON, or tables whose cells can do nothing to a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click

JSON_HELP = "One JSON document, for scripts."
json_option = click.option("--json", "as_json", is_flag=True, help=JSON_HELP)


def printable(text: object) -> str:
    """Text from outside without control characters: a note may not move the cursor or rename the window."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their content; no colour, no boxes, so that it can be cut and grepped."""
    cells = [list(headings), *([printable("-" if item in (None, "") else item) for item in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def size(size_bytes: int) -> str:
    """A size as people say it."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
