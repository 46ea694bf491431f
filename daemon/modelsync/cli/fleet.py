"""``switchover``: hand the primary's work to another node."""

from __future__ import annotations

import click

from modelsync.cli.access import Target
from modelsync.cli.wishes import send


@click.command("switchover")
@click.argument("node", required=False)
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def switchover_command(target: Target, node: str | None, as_json: bool) -> None:
    """Make NODE the primary, or whichever candidate is next."""
    send(target, ("switchover", node), as_json)


COMMANDS = (switchover_command,)
