"""``modelsync verify``: read models again, byte for byte; this host's from disk, or a whole fleet's by its daemons."""

from __future__ import annotations

from typing import Any

import click

from modelsync.access import Target, access, run
from modelsync.cli.care import LONG_S
from modelsync.cli.output import json_option, print_json, print_table
from modelsync.core.errors import DigestMismatch, IntegrityFault, LayoutCorrupt, ModelsyncError, NoSuchVersion
from modelsync.core.ids import Digest, ModelName, model_name
from modelsync.core.manifest import Manifest
from modelsync.edges.disk.catalog_files import CatalogFiles
from modelsync.edges.disk.store import Store


@click.command("verify")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def verify_command(target: Target, name: str | None, as_json: bool) -> None:
    """Check every byte of every version that this host holds; exit code 4 if any differs.

    It only reads, and may run beside the daemon. With --redis URL --fleet NAME each living host of that fleet reads its
    own; exit code 5 if one could not be asked.
    """
    chosen = None if name is None else model_name(name)
    if target.redis is None:
        lines, fault = _on_disk(target, chosen), None
    else:
        lines, fault = run(_by_daemons(target, chosen))
    if as_json:
        print_json(lines)
    else:
        print_table(("NODE", "MODEL", "VERSION", "RESULT"), [_row(line) for line in lines])
    if any(line["version"] is not None and line["fault"] for line in lines):
        raise click.exceptions.Exit(IntegrityFault.exit_code)
    if fault is not None:
        raise click.exceptions.Exit(fault.exit_code)


def _row(line: dict[str, Any]) -> tuple[object, ...]:
    return line["node"], line["model"], line["version"], line["fault"] or "good"


def _on_disk(target: Target, name: ModelName | None) -> list[dict[str, Any]]:
    node = target.config().node
    if not (node.state_dir / "catalog").is_dir():  # nor is it made: whoever runs this need not be the daemon's user
        raise NoSuchVersion(reason=f"{node.state_dir} holds nothing yet: no daemon has run on it")
    store, lines = Store(node.state_dir), []
    records = CatalogFiles(node.state_dir).load()
    if name is not None and name not in records:
        raise NoSuchVersion(reason=f"this host knows no model {name}")
    for record in records.values():
        if name not in (None, record.name):
            continue
        for number, entry in sorted(record.versions.items()):
            manifest = store.manifest(entry.digest)
            if manifest is None or not store.tree_path(record.name, entry.digest).is_dir():
                continue
            fault = _fault(store, manifest, entry.digest)
            lines.append({"node": node.id, "model": record.name, "version": number, "fault": fault})
    return lines


def _fault(store: Store, manifest: Manifest, digest: Digest) -> str | None:
    try:
        store.verify_tree(manifest, digest)
    except (DigestMismatch, LayoutCorrupt) as error:
        return str(error)
    return None


async def _by_daemons(target: Target, name: ModelName | None) -> tuple[list[dict[str, Any]], ModelsyncError | None]:
    """A line for each version of each host, and one without a version for each host that could not be asked."""
    async with access(target, LONG_S) as fleet:
        answers = await fleet.ask_all(lambda control, url: control.verify(url, name))
    faults = [answer for answer in answers.values() if isinstance(answer, ModelsyncError)]
    if faults and len(faults) == len(answers):
        raise faults[0]
    lines = []
    for node, answer in answers.items():
        if isinstance(answer, ModelsyncError):
            lines.append({"node": node, "model": name, "version": None, "fault": f"not checked: {answer}"})
        else:
            lines += [{"node": node, **line} for line in answer]
    return lines, faults[0] if faults else None


COMMANDS = (verify_command,)
