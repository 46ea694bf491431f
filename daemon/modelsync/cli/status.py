"""``modelsync status``: who is primary, who runs what, what is wanted, and what is wrong."""

from __future__ import annotations

from typing import Any

import click

from modelsync.access import Target, access, run
from modelsync.cli import placement_table
from modelsync.cli.output import json_option, print_json, print_table, printable
from modelsync.cli.progress import moved
from modelsync.cli.rollout import sentence

MOST_NAMED = 5


@click.command("status")
@json_option
@click.pass_obj
def status_command(target: Target, as_json: bool) -> None:
    """Show the fleet: nodes, models, what is wanted and what is wrong."""

    async def read() -> dict[str, Any]:
        async with access(target) as fleet:
            return await fleet.status()

    document = run(read())
    if as_json:
        print_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    primary = document["primary"] or "none (electing, or Redis does not know)"
    click.echo(
        printable(
            f"fleet {document['fleet']}   epoch {document['epoch']}   primary {primary}   redis {document['redis']}"
        )
    )
    click.echo()
    rows = [(n["id"], n["role"], n["state"], f"{n['last_seen_s']} s ago", n["url"]) for n in document["nodes"]]
    print_table(("NODE", "ROLE", "STATE", "SEEN", "URL"), rows)
    click.echo()
    print_table(
        ("MODEL", "HEAD", "WANTED", "PINNED", *(n["id"] for n in document["nodes"])),
        map(_row(document), document["models"]),
    )
    _show_moving(document)
    _show_rollouts(document)
    placement_table.show(document)
    _show_troubles(document)


def _show_moving(document: dict[str, Any]) -> None:
    """What is pulled, uploaded or read again just now, host by host."""
    rows = []
    for node in document["nodes"]:
        for what, key in (("pulls", "transfers"), ("receives", "uploads")):
            rows += [(node["id"], what, name, moved(line)) for name, line in sorted(node.get(key, {}).items())]
        if node.get("scrub"):
            rows.append((node["id"], "reads again", "", moved(node["scrub"])))
    if rows:
        click.echo()
        print_table(("NODE", "DOES", "MODEL", "DONE"), rows)


def _row(document: dict[str, Any]) -> Any:
    def row(model: dict[str, Any]) -> list[object]:
        lines = [node["models"].get(model["name"]) for node in document["nodes"]]
        return [model["name"], model["head"], model["wanted"], model["pinned"], *map(_cell, lines)]

    return row


def _cell(line: dict[str, Any] | None) -> str:
    if line is None or (line["active"] is None and line["state"] == "elsewhere"):
        return "-"
    if line["active"] is None and line["state"] == "part":
        return "part"
    active = line["active"] if line["active"] is not None else "none"
    if line["state"] == "active" and line["active"] == line["wanted"]:
        return str(active)
    wants = f", wants {line['wanted']}" if line["wanted"] is not None else ""
    return f"{active} ({line['state']}{wants})"


def _show_rollouts(document: dict[str, Any]) -> None:
    """Those that are under way, and those that did not get their version onto the fleet."""
    shown = [model for model in document["models"] if model.get("rollout", {}).get("state", "done") != "done"]
    if shown:
        click.echo()
    for model in shown:
        click.echo(printable(f"rollout {sentence(model['name'], model['rollout'])}"))


def _show_troubles(document: dict[str, Any]) -> None:
    troubles = placement_table.troubles(document)
    for node in document["nodes"]:
        if node.get("error"):
            troubles.append(f"{node['id']}: {node['error']}")
        troubles += [f"{node['id']}: {node[what]}" for what in ("storage_error", "placement_error") if node.get(what)]
        troubles += [f"{node['id']}: ALARM {sentence}" for sentence in node.get("alarms", ())]
        troubles += [
            f"{node['id']}: not published: {path}: {reason}" for path, reason in node.get("refusals", {}).items()
        ]
        odd: dict[str, list[tuple[str, str]]] = {}
        for name, line in node["models"].items():
            if line.get("error"):
                odd.setdefault(line["error"].partition(" [")[0], []).append((name, line["error"]))
            elif _is_odd(line, under_way=name in node.get("transfers", {})):
                odd.setdefault(f"{name}: {line.get('why', '')}", []).append((name, line.get("why", "")))
        troubles += [f"{node['id']}: {_named(models)}: {models[0][1]}" for models in odd.values()]
    if troubles:
        click.echo()
        for trouble in troubles:
            click.echo(f"! {printable(trouble)}")


def _named(models: list[tuple[str, str]]) -> str:
    """One fault of a host (its disk is full) is one line, whatever number of models it is about."""
    names = [name for name, _ in models]
    return (
        ", ".join(names)
        if len(names) <= MOST_NAMED
        else f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"
    )


def _is_odd(line: dict[str, Any], *, under_way: bool) -> bool:
    """Whether a host that reports no error is to be explained all the same. What is pulled is no trouble."""
    return "config pins" in line.get("why", "") or (line["active"] != line["wanted"] and not under_way)


COMMANDS = (status_command,)
