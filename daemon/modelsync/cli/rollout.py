"""``modelsync rollout``: bring a version onto the fleet by a plan, watch it, stop it."""

from __future__ import annotations

from typing import Any

import click

from modelsync.access import Target, access, run
from modelsync.cli.output import json_option, print_json, print_table, printable
from modelsync.cli.wishes import send
from modelsync.core import commands
from modelsync.core.errors import NoSuchVersion
from modelsync.core.ids import ModelName, model_name
from modelsync.core.rollout.record import STRATEGIES


@click.command("rollout")
@click.argument("name", metavar="NAME|status|abort")
@click.argument("target", metavar="VERSION|NAME")
@click.option("--strategy", type=click.Choice(STRATEGIES), help="Default: as [model.NAME] of the primary says.")
@json_option
@click.pass_obj
def rollout_command(fleet: Target, name: str, target: str, strategy: str | None, as_json: bool) -> None:
    """Bring VERSION of NAME onto the fleet: each host by itself, together, or in waves.

    `modelsync rollout status NAME` says how far it is; `modelsync rollout abort NAME` stops it: hosts that a wave had
    reached return. Once a rollout together has given its signal it is `modelsync rollback NAME` that takes it back.
    """
    if name == commands.STATUS:
        _show(fleet, model_name(target), as_json)
    else:
        send(fleet, ("rollout", name, target, strategy), as_json)


def _show(target: Target, name: ModelName, as_json: bool) -> None:
    async def read() -> dict[str, Any]:
        async with access(target) as fleet:
            return await fleet.status()

    document = run(read())
    model: dict[str, Any] = next((line for line in document["models"] if line["name"] == name), {})
    if "rollout" not in model:
        raise NoSuchVersion(reason=f"no rollout of {name} was ever asked for")
    found = model["rollout"]
    hosts = {node["id"]: _standing(found, node, name) for node in document["nodes"]}
    if as_json:
        print_json({**found, "hosts": hosts})
        return
    click.echo(printable(sentence(name, found)))
    print_table(("HOST", "STANDING"), list(hosts.items()))


def sentence(name: str, found: dict[str, Any]) -> str:
    """One line about a rollout: ``fraud: version 13 together: staging (by alice, since …)``."""
    wave = f", wave {found['wave']} of {len(found['waves'])}" if "wave" in found else ""
    reason = f": {found['reason']}" if found["reason"] else ""
    state = found["state"].replace("_", " ")
    return (
        f"{name}: version {found['version']} {found['strategy']}: {state}{wave}{reason} "
        f"(by {found['by'] or 'unknown'}, since {found['since']})"
    )


def _standing(found: dict[str, Any], node: dict[str, Any], name: str) -> str:
    line = node["models"].get(name, {})
    ack = line.get("rollout", {})
    if node["state"] == "lost":
        return "lost"
    if line.get("apart"):
        return "takes no part: it has a pin of its own, or need not hold the model"
    if line.get("active") == found["version"]:
        return "active"
    if ack.get("id") == found["id"]:
        return f"refused: {ack['refused']}" if ack.get("refused") else "staged"
    return f"runs {line.get('active') or 'none'}" + (f", {line['state']}" if line.get("state") == "pulling" else "")


COMMANDS = (rollout_command,)
