"""``modelsync diff NAME V1 V2``: which files and metadata changed between two versions."""

from __future__ import annotations

from typing import Any

import click

from modelsync.access import Target, access, run
from modelsync.cli.output import print_json, print_table, printable, size
from modelsync.core import manifest as manifests
from modelsync.core.ids import model_name, version
from modelsync.core.manifest import Manifest


@click.command("diff")
@click.argument("name")
@click.argument("old")
@click.argument("new")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def diff_command(target: Target, name: str, old: str, new: str, as_json: bool) -> None:
    """Compare version OLD of NAME with version NEW: files, sizes, metadata."""

    async def read() -> tuple[Manifest, Manifest]:
        async with access(target) as fleet:
            model = model_name(name)
            pair = [manifests.decode(await fleet.manifest(model, version(number))) for number in (old, new)]
            return pair[0], pair[1]

    before, after = run(read())
    files, metadata = _files(before, after), _metadata(before, after)
    if as_json:
        print_json({"files": files, "metadata": metadata})
        return
    rows = [(f["change"], f["path"], size(f["old_bytes"]), size(f["new_bytes"])) for f in files]
    print_table(("CHANGE", "FILE", "OLD", "NEW"), rows)
    for key, (was, now) in metadata.items():
        click.echo(printable(f"metadata {key}: {was!r} -> {now!r}"))


def _files(before: Manifest, after: Manifest) -> list[dict[str, Any]]:
    old = {entry.path: entry for entry in before.files}
    new = {entry.path: entry for entry in after.files}
    lines = []
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path), new.get(path)
        if was and now and was.digest == now.digest:
            continue
        lines.append(
            {
                "path": path,
                "change": "changed" if was and now else "added" if now else "removed",
                "old_bytes": was.size_bytes if was else 0,
                "new_bytes": now.size_bytes if now else 0,
            }
        )
    return lines


def _metadata(before: Manifest, after: Manifest) -> dict[str, tuple[Any, Any]]:
    keys = before.metadata.keys() | after.metadata.keys()
    pairs = {key: (before.metadata.get(key), after.metadata.get(key)) for key in sorted(keys)}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


COMMANDS = (diff_command,)
