"""``modelsync verify``: read this host's models again, byte for byte."""

from __future__ import annotations

import click

from modelsync.access import Target
from modelsync.cli.output import json_option, print_json, print_table
from modelsync.core.errors import DigestMismatch, IntegrityFault, LayoutCorrupt, NoSuchVersion
from modelsync.core.ids import Digest, model_name
from modelsync.core.manifest import Manifest
from modelsync.edges.disk.catalog_files import CatalogFiles
from modelsync.edges.disk.store import Store


@click.command("verify")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def verify_command(target: Target, name: str | None, as_json: bool) -> None:
    """Check every byte of every version that this host holds; exit code 4 if any differs.

    It only reads, and may run beside the daemon.
    """
    state_dir = target.config().node.state_dir
    if not (state_dir / "catalog").is_dir():  # nor is it made: whoever runs this need not be the daemon's user
        raise NoSuchVersion(reason=f"{state_dir} holds nothing yet: no daemon has run on it")
    store, lines, damaged = Store(state_dir), [], 0
    records = CatalogFiles(state_dir).load()
    if name is not None and model_name(name) not in records:
        raise NoSuchVersion(reason=f"this host knows no model {name}")
    for record in records.values():
        if name not in (None, record.name):
            continue
        for number, entry in sorted(record.versions.items()):
            manifest = store.manifest(entry.digest)
            if manifest is None or not store.tree_path(record.name, entry.digest).is_dir():
                continue
            fault = _fault(store, manifest, entry.digest)
            damaged += fault is not None
            lines.append({"model": record.name, "version": number, "fault": fault})
    if as_json:
        print_json(lines)
    else:
        print_table(("MODEL", "VERSION", "RESULT"), [(x["model"], x["version"], x["fault"] or "good") for x in lines])
    if damaged:
        raise click.exceptions.Exit(IntegrityFault.exit_code)


def _fault(store: Store, manifest: Manifest, digest: Digest) -> str | None:
    try:
        store.verify_tree(manifest, digest)
    except (DigestMismatch, LayoutCorrupt) as error:
        return str(error)
    return None


COMMANDS = (verify_command,)
