"""The part of `modelsync status` that says where models lie: what hosts own, who has what, what is to be copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from modelsync.cli.output import print_table, printable, size

MAX_MOVES = 20
"""Shown one by one; of more, the number and the bytes."""

MAX_NAMES = 5
"""Of models in one line."""

Row = tuple[object, ...]


def show(document: dict[str, Any]) -> None:
    """Print it, where not every host holds everything."""
    lines = document.get("placement", {})
    if not lines:
        return
    click.echo()
    if any(line["mode"] == "partitioned" for line in lines.values()):
        print_table(("HOST", "OWNS", "BYTES", "DISK", "NOTE"), _hosts(document))
        click.echo()
    rows = [row for name, line in sorted(lines.items()) for row in _model(name, line)]
    print_table(("MODEL", "KEPT", "SIZE", "OWNERS", "COPIES"), rows)
    _show_plan(document)


def troubles(document: dict[str, Any]) -> list[str]:
    """What is wrong with models by where they lie, one line for all of which the same is wrong."""
    names: dict[str, list[str]] = {}
    for name, line in sorted(document.get("placement", {}).items()):
        if line.get("trouble"):
            names.setdefault(line["trouble"], []).append(name)
    return [f"{_some(those)}: {trouble}" for trouble, those in names.items()]


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _hosts(document: dict[str, Any]) -> Iterator[Row]:
    """What each host owns of partitioned models; a host that left and still owns something, too."""
    owned: dict[str, list[int]] = {node["id"]: [] for node in document["nodes"]}
    for line in document["placement"].values():
        for share in _shares(line):
            for owner in share["owners"]:
                owned.setdefault(owner, []).append(share.get("size_bytes", 0))
    nodes = {node["id"]: node for node in document["nodes"]}
    for name, sizes in sorted(owned.items()):
        node = nodes.get(name, {})
        disk = size(node["capacity_bytes"]) if node.get("capacity_bytes") else "-"
        yield name, len(sizes), size(sum(sizes)), disk, _note(node, len(sizes))


def _note(node: dict[str, Any], owned: int) -> str:
    if not node or node["state"] == "lost":
        return "not there; others serve its models, and it is replaced after replace_after_s" if owned else "not there"
    if node.get("leaving"):
        return "leaving: is being emptied" if owned else "leaving: owns nothing any more, can be stopped"
    return "disk full: given no more" if node.get("disk_full") else ""


def _shares(line: dict[str, Any]) -> list[dict[str, Any]]:
    shares: list[dict[str, Any]] = line.get("parts") or [line] if line["mode"] == "partitioned" else []
    return shares


def _model(name: str, line: dict[str, Any]) -> Iterator[Row]:
    """One row a model; of one in parts, one more for each."""
    kept = line["mode"] if "parts" not in line else f"in {len(line['parts'])} parts"
    owners = "" if "parts" in line else ", ".join(line.get("owners", ()))
    whole = _copies(line, line) if "living" in line else ""
    yield name, kept, size(line.get("size_bytes", 0)), owners, whole
    for number, part in enumerate(line.get("parts", ()), 1):
        yield f"  part {number}", "", size(part["size_bytes"]), ", ".join(part["owners"]), _copies(part, line)


def _copies(share: dict[str, Any], line: dict[str, Any]) -> str:
    """Owners that have it, of the copies asked for; and hosts that have not let go of it yet, or not collected it."""
    besides = share["living"] - share["holding"]
    return f"{share['holding']} of {line['copies']}" + (f" (+{besides})" if besides else "")


def _show_plan(document: dict[str, Any]) -> None:
    moves: list[dict[str, Any]] = document.get("placement_plan", [])
    there = {node["id"] for node in document["nodes"] if node["state"] != "lost"}
    if not moves:
        return
    click.echo()
    total = size(sum(move["size_bytes"] for move in moves))
    click.echo(f"to copy: {len(moves)}{' or more' if len(moves) >= 100 else ''}, {total}; what is rarest goes first")
    for move in moves[:MAX_MOVES]:
        rest = f"{move['living']} living {'copy' if move['living'] == 1 else 'copies'}"
        waits = "" if move["to"] in there else "; waits for it to return, or to be replaced"
        click.echo(printable(f"  {move['model']} to {move['to']}, {size(move['size_bytes'])}, {rest}{waits}"))
    if len(moves) > MAX_MOVES:
        click.echo(f"  and {len(moves) - MAX_MOVES} more")
