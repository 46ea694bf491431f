"""``switchover``, ``pause``, ``resume``, ``forget``, ``primaries``: who is primary, and who shall be."""

from __future__ import annotations

from typing import Any

import click

from modelsync.access import Target, access, run
from modelsync.cli.output import json_option, print_json, print_table
from modelsync.cli.wishes import send


@click.command("switchover")
@click.argument("node", required=False)
@json_option
@click.pass_obj
def switchover_command(target: Target, node: str | None, as_json: bool) -> None:
    """Make NODE the primary, or the best candidate; `modelsync status` says what came of it."""
    send(target, ("switchover", node), as_json)


@click.command("pause")
@json_option
@click.pass_obj
def pause_command(target: Target, as_json: bool) -> None:
    """Promote nobody until `resume`; a switchover that is asked for goes on."""
    send(target, ("pause",), as_json)


@click.command("resume")
@json_option
@click.pass_obj
def resume_command(target: Target, as_json: bool) -> None:
    """End a pause. Without a primary, the node that is asked may become it."""
    send(target, ("resume",), as_json)


@click.command("primaries")
@json_option
@click.pass_obj
def primaries_command(target: Target, as_json: bool) -> None:
    """List who was primary, since when, and why."""

    async def read() -> dict[str, Any]:
        async with access(target) as fleet:
            return await fleet.status()

    terms = run(read()).get("terms", [])
    if as_json:
        print_json(terms)
    else:
        rows = [(term["epoch"], term["node"], term["since"], term["why"]) for term in terms]
        print_table(("EPOCH", "PRIMARY", "SINCE", "WHY"), rows)


@click.command("forget")
@click.argument("node")
@json_option
@click.pass_obj
def forget_command(target: Target, node: str, as_json: bool) -> None:
    """Count NODE, which is gone for good, in no majority any more. If it comes back, it counts again."""
    send(target, ("forget", node), as_json)


COMMANDS = (forget_command, switchover_command, pause_command, resume_command, primaries_command)
