"""``modelsync simulate``: what a fleet that one describes would do, before it is built. Nothing is asked or touched."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import click

from modelsync.cli.output import json_option, print_json, print_table
from modelsync.cli.output import size as printed_size
from modelsync.core.storage import moves, placement
from modelsync.core.storage.parts import MAX_PARTS
from modelsync.core.storage.placement import Item, Place

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def size_bytes(text: str) -> int:
    """``4GiB`` as bytes. Raises click.BadParameter."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text[:40]!r} is not a size, such as 512MiB")
    return int(match[1]) * _UNITS[match[2].lower()]


def _weights(text: str, count: int) -> list[float]:
    """``4,4,8`` as weights of the first nodes; the last is repeated."""
    try:
        given = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text[:40]!r} is not a list of numbers, such as 1,1,2") from error
    if not given or not all(0 < weight < 1e18 for weight in given):
        raise click.BadParameter("weights are numbers above 0")
    return [given[min(n, len(given) - 1)] for n in range(count)]


@click.group("simulate")
def simulate_command() -> None:
    """Try out a fleet on paper: nothing is asked or touched."""


@simulate_command.command("placement")
@click.option("--nodes", default=8, show_default=True, type=click.IntRange(1, 2000), help="Nodes at the beginning.")
@click.option("--models", default=100, show_default=True, type=click.IntRange(1, 20_000), help="Models.")
@click.option("--copies", default=2, show_default=True, type=click.IntRange(1, 16), help="Copies of each model.")
@click.option("--size", default="1GiB", show_default=True, help="Size of a model.")
@click.option("--spread", default=0.0, show_default=True, type=click.FloatRange(0, 3), help="Sizes differ: log-normal.")
@click.option("--split", default="0", show_default=True, help="As storage.split_bytes: larger models lie in parts.")
@click.option("--weights", default="1", show_default=True, help="Shares of the nodes (disk sizes); the last repeats.")
@click.option("--zones", default=1, show_default=True, type=click.IntRange(1, 100), help="Zones, nodes in turn.")
@click.option("--add", default=1, show_default=True, type=click.IntRange(0, 100), help="Nodes that join then.")
@click.option("--remove", default=1, show_default=True, type=click.IntRange(0, 100), help="Nodes that leave last.")
@click.option("--rate", default="100MiB", show_default=True, help="Bytes a second that each node may receive.")
@click.option("--seed", default=1, show_default=True, help="Of the sizes.")
@json_option
def placement_command(as_json: bool, **options: Any) -> None:
    """Show how evenly models lie on nodes, and what moves as nodes join and leave.

    BUSIEST and IDLEST are bytes over a node's fair share by weight, MOST the bytes on one node, OF ALL what moved of
    all bytes, AT LEAST what has to move whatever the method, AT THE RATE how long whoever receives most takes.
    """
    lines = placement_lines(**options)
    if as_json:
        print_json(lines)
        return
    rows = [
        (
            line["step"],
            line["nodes"],
            f"{line['busiest']:.3f}",
            f"{line['idlest']:.3f}",
            printed_size(line["most_bytes"]),
            f"{line['moved_bytes'] / (1 << 30):.1f} GiB",
            f"{line['moved_share']:.4f}",
            f"{line['least_share']:.4f}",
            f"{line['moving_s']:.0f} s",
        )
        for line in lines
    ]
    heads = ("STEP", "NODES", "BUSIEST/FAIR", "IDLEST/FAIR", "MOST", "MOVED", "OF ALL", "AT LEAST", "AT THE RATE")
    print_table(heads, rows)
    for line in lines:
        if line["lacking_copies"]:
            click.echo(
                f"! {line['step']}: {line['lacking_copies']} copies lie nowhere: there are fewer nodes than copies"
            )


def placement_lines(
    *, nodes: int, models: int, copies: int, size: str, spread: float, weights: str, zones: int, add: int, remove: int,
    rate: str, seed: int, split: str = "0",
) -> list[dict[str, Any]]:  # fmt: skip
    """One line for the beginning, one for each node that joins, one for each that leaves."""
    items = [each for item in _items(models, copies, size_bytes(size), spread, seed)
             for each in _pieces(item, size_bytes(split))]  # fmt: skip
    shares = _weights(weights, nodes + add)
    places = [Place(f"node-{n + 1}", shares[n], f"zone-{n % zones + 1}") for n in range(nodes + add)]
    rate_bytes_per_s = max(1, size_bytes(rate))
    steps = [("placed", places[:nodes])]
    steps += [(f"{places[n - 1].id} joins", places[:n]) for n in range(nodes + 1, nodes + add + 1)]
    left = min(remove, len(places) - 1)
    steps += [(f"{places[n].id} leaves", places[n + 1 :]) for n in range(left)]
    lines: list[dict[str, Any]] = []
    before: placement.Owners = {}
    was = places[:nodes]
    for step, here in steps:
        after = placement.arranged(items, here, before)
        lines.append(_line(step, items, here, was, before, after, rate_bytes_per_s))
        before, was = after, here
    return lines


def _items(models: int, copies: int, mean_bytes: int, spread: float, seed: int) -> list[Item]:
    dice = random.Random(seed)
    factors = [dice.lognormvariate(-spread * spread / 2, spread) if spread else 1.0 for _ in range(models)]
    return [Item(f"model-{n + 1}", int(mean_bytes * factor), copies) for n, factor in enumerate(factors)]


def _pieces(item: Item, split_bytes: int) -> list[Item]:
    """A model as it is placed: in one piece, or in parts of even size, as if its files were small."""
    count = min(-(-item.size_bytes // split_bytes), MAX_PARTS) if split_bytes else 1
    return [Item(f"{item.key}#{part}", item.size_bytes // count, item.copies) for part in range(max(count, 1))]


def _line(
    step: str,
    items: Sequence[Item],
    here: Sequence[Place],
    was: Sequence[Place],
    before: placement.Owners,
    after: placement.Owners,
    rate_bytes_per_s: int,
) -> dict[str, Any]:
    even = placement.balance(items, here, after)
    moved = moves.moved_bytes(items, before, after) if before else 0
    received = {place.id: 0 for place in here}
    for item in items if before else ():
        for node in set(after[item.key]) - set(before[item.key]):
            received[node] += item.size_bytes
    return {
        "step": step,
        "nodes": len(here),
        "busiest": even.busiest,
        "idlest": even.idlest,
        "most_bytes": even.most_bytes,
        "moved_bytes": moved,
        "moved_share": moved / even.total_bytes if even.total_bytes else 0.0,
        "least_share": _least_share(here, was),
        "lacking_copies": sum(item.copies - len(after[item.key]) for item in items),
        "moving_s": max(received.values()) / rate_bytes_per_s,
    }


def _least_share(here: Sequence[Place], was: Sequence[Place]) -> float:
    """The share of all bytes that has to move whatever the method: what joins takes, or what left had."""
    ids, old = {place.id for place in here}, {place.id for place in was}
    new = sum(place.weight for place in here if place.id not in old) / sum(place.weight for place in here)
    gone = sum(place.weight for place in was if place.id not in ids) / sum(place.weight for place in was)
    return max(new, gone)


COMMANDS = (simulate_command,)
