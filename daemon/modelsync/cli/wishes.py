"""``pin``, ``unpin``, ``alias``, ``rollback``, ``update``, ``delete``: what the fleet should run."""

from __future__ import annotations

import socket
from typing import Any

import click

from modelsync.access import Target, access, login_name, run
from modelsync.cli.output import JSON_HELP, print_json, printable
from modelsync.core import commands


def send(target: Target, words: tuple[object, ...], as_json: bool) -> None:
    """Check a command here, so that a typing error needs no daemon; then have the primary carry it out."""
    text = " ".join(str(word) for word in words if word is not None)
    commands.parse(text)

    async def ask() -> dict[str, Any]:
        async with access(target) as fleet:
            return await fleet.command(text, by=f"{login_name()}@{socket.gethostname()}")

    answer = run(ask())
    if as_json:
        print_json(answer)
    elif "rollout" in answer:
        rollout = answer["rollout"]
        click.echo(printable(f"{answer['model']}: rollout of version {rollout['version']}: {rollout['state']}"))
    elif "alias" in answer:
        click.echo(printable(f"{answer['model']}: {answer['alias']} means version {answer['version']}"))
    elif "deleted" in answer:
        click.echo(printable(f"{answer['model']}: version {answer['deleted']} is forgotten"))
    elif "why" in answer:
        click.echo(printable(f"{answer['model']}: wanted {answer['wanted']}: {answer['why']}"))
    else:
        click.echo(printable(", ".join(f"{key} {value}" for key, value in answer.items())))


def _wish(verb: str, text: str, *arguments: click.Argument) -> click.Command:
    @click.pass_obj
    def callback(target: Target, /, as_json: bool, **words: str | None) -> None:
        send(target, (verb, *words.values()), as_json)

    as_json = click.Option(["--json", "as_json"], is_flag=True, help=JSON_HELP)
    return click.Command(verb, callback=callback, params=[*arguments, as_json], help=text)


def _argument(name: str, *, required: bool = True) -> click.Argument:
    return click.Argument([name.lower()], required=required, metavar=name if required else f"[{name}]")


COMMANDS = (
    _wish("update", "Run VERSION of NAME, or its newest; the next publish moves on from it.",
          _argument("NAME"), _argument("VERSION", required=False)),
    _wish("pin", "Hold NAME at VERSION (a number or an alias) on the whole fleet, until `unpin`.",
          _argument("NAME"), _argument("VERSION")),
    _wish("unpin", "Let NAME follow what is published again.", _argument("NAME")),
    _wish("rollback", "Run the version of NAME before the one wanted now, or an earlier VERSION.",
          _argument("NAME"), _argument("VERSION", required=False)),
    _wish("alias", "Let ALIAS mean VERSION of NAME.", _argument("NAME"), _argument("ALIAS"), _argument("VERSION")),
    _wish("delete", "Forget VERSION of NAME; refused for what is wanted, pinned, aliased or the head.",
          _argument("NAME"), _argument("VERSION")),
)  # fmt: skip
