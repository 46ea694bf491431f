"""``modelsync history`` and ``show``: who published what, when, why, and what has become of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from modelsync.access import Access, Target, access, run
from modelsync.cli.output import json_option, print_json, print_table, printable, size
from modelsync.core import manifest as manifests
from modelsync.core.errors import BadName, NoSuchVersion
from modelsync.core.ids import ModelName, Version, model_name, version
from modelsync.core.manifest import Manifest
from modelsync.core.status import iso_time


@click.command("history")
@click.argument("name")
@click.option("--asked", is_flag=True, help="List who asked for what instead: pins, rollbacks, updates.")
@json_option
@click.pass_obj
def history_command(target: Target, name: str, asked: bool, as_json: bool) -> None:
    """List the versions of NAME, newest first, and what became of each on every host."""

    async def read() -> dict[str, Any]:
        async with access(target) as fleet:
            return await fleet.model(model_name(name))

    model = run(read())
    versions = model["changes" if asked else "history"]
    if as_json:
        print_json(versions)
        return
    if asked:
        lines = [(c["at"], c["by"], c["command"], c["wanted"], c["note"]) for c in versions]
        print_table(("AT", "BY", "ASKED", "WANTED THEN", "NOTE"), lines)
        return
    rows = [
        (v["version"], v["state"], v["created"], v["author"], size(v["size_bytes"]), v["digest"][:15], v["note"],
         _hosts(v.get("hosts", {})))
        for v in versions
    ]  # fmt: skip
    print_table(("VERSION", "STATE", "CREATED", "AUTHOR", "SIZE", "DIGEST", "NOTE", "HOSTS"), rows)


def _hosts(outcomes: dict[str, str]) -> str:
    """Hosts by what became of the version there; a rejection with its reason."""
    by_outcome: dict[str, list[str]] = {}
    for node, outcome in sorted(outcomes.items()):
        by_outcome.setdefault(outcome[:100], []).append(node)
    return "; ".join(f"{outcome} on {', '.join(nodes)}" for outcome, nodes in sorted(by_outcome.items()))


@click.command("show")
@click.argument("name")
@click.argument("number", metavar="[VERSION]", required=False)
@json_option
@click.pass_obj
def show_command(target: Target, name: str, number: str | None, as_json: bool) -> None:
    """Show one version of NAME: its files, digests and metadata, and why each host runs what it runs.

    Without VERSION the one that is wanted; a path such as LIVE/fraud/current instead of both says which lies there.
    """
    path = Path(name).resolve() if "/" in name else None

    async def read() -> dict[str, Any]:
        async with access(target) as fleet:
            model, wanted = await _meant(fleet, name, number, path)
            value = _document(manifests.decode(await fleet.manifest(model, wanted)))
            nodes = (await fleet.status())["nodes"]
            why = {node["id"]: node["models"].get(model, {}).get("why", "") for node in nodes}
            return {**value, "why": why}

    value = run(read())
    if as_json:
        print_json(value)
        return
    for key in ("model", "version", "id", "created", "author", "note", "parent"):
        click.echo(f"{key:12}{printable(value[key] or '-')}")
    click.echo(f"{'size':12}{size(value['size_bytes'])}")
    for key, told in sorted(value["metadata"].items()):
        click.echo(f"{'':2}{printable(key):18} {printable(told if isinstance(told, str) else json.dumps(told))}")
    print_table(("FILE", "SIZE", "DIGEST"), [(f["path"], size(f["size_bytes"]), f["digest"]) for f in value["files"]])
    for node, reason in value["why"].items():
        click.echo(f"{node}: {printable(reason)}")


async def _meant(fleet: Access, name: str, number: str | None, path: Path | None) -> tuple[ModelName, Version]:
    if number:
        return model_name(name), version(number)
    if path is not None:
        return await _of_path(fleet, path)
    wanted = (await fleet.model(model_name(name)))["wanted"]
    if wanted is None:
        raise NoSuchVersion(reason=f"no version of {name} is wanted")
    return model_name(name), version(wanted)


async def _of_path(fleet: Access, path: Path) -> tuple[ModelName, Version]:
    """The version whose tree a resolved path lies in, by the digest in the tree's name."""
    for place in (path, *path.parents):
        if len(place.name) == 64 and place.parent.parent.name == "store":
            model = model_name(place.parent.name)
            for entry in (await fleet.model(model))["history"]:
                # The catalog lists manifests by digest, and a tree is named by its manifest's digest.
                if entry["digest"] == f"b3:{place.name}":
                    return model, version(entry["version"])
            raise NoSuchVersion(reason=f"{path}: the fleet does not list this tree's version any more")
    raise BadName(kind="version", value=str(path), rule="NAME VERSION, or a path below a live directory")


def _document(manifest: Manifest) -> dict[str, Any]:
    return {
        "model": manifest.model,
        "version": manifest.version,
        "id": str(manifest.id),
        "created": iso_time(manifest.created_ms),
        "author": manifest.author,
        "note": manifest.note,
        "parent": str(manifest.parent) if manifest.parent else None,
        "content": str(manifest.content),
        "size_bytes": manifest.size_bytes,
        "metadata": dict(manifest.metadata),
        "files": [
            {"path": f.path, "size_bytes": f.size_bytes, "mode": f"{f.mode:04o}", "digest": str(f.digest)}
            for f in manifest.files
        ],
    }


COMMANDS = (history_command, show_command)
