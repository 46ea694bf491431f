"""``modelsync find``: versions by what their publishers wrote down about them."""

from __future__ import annotations

import json
from typing import Any

import click

from modelsync.access import Target, access, run
from modelsync.cli.output import json_option, print_json, print_table
from modelsync.core import find


@click.command("find")
@click.argument("conditions", nargs=-1, required=True, metavar="KEY=VALUE…")
@json_option
@click.pass_obj
def find_command(target: Target, conditions: tuple[str, ...], as_json: bool) -> None:
    """Find the versions whose metadata satisfy every condition.

    For instance `auc>=0.9 params.depth=8 model=fraud`.

    KEY is a key of the metadata (dots lead into nested ones), or model, author or note.
    """
    for text in conditions:
        find.parse(text)

    async def ask() -> list[dict[str, Any]]:
        async with access(target) as fleet:
            return await fleet.ask(lambda control, url: control.find(url, conditions))

    found = run(ask())
    if as_json:
        print_json(found)
        return
    rows = [(v["model"], v["version"], v["created"], v["author"], v["note"], _short(v["metadata"])) for v in found]
    print_table(("MODEL", "VERSION", "CREATED", "AUTHOR", "NOTE", "METADATA"), rows)


def _short(metadata: dict[str, Any]) -> str:
    text = json.dumps(metadata, ensure_ascii=False)
    return text if len(text) <= 100 else text[:99] + "…"


COMMANDS = (find_command,)
