"""``modelsync diff NAME V1 V2``: which files and metadata changed between two versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from modelsync.access import Access, Target, access, run
from modelsync.cli.output import json_option, print_json, print_table, printable, size
from modelsync.core import manifest as manifests
from modelsync.core.ids import Digest, model_name, version
from modelsync.core.manifest import FileEntry, Manifest


@click.command("diff")
@click.argument("name")
@click.argument("old")
@click.argument("new")
@json_option
@click.pass_obj
def diff_command(target: Target, name: str, old: str, new: str, as_json: bool) -> None:
    """Compare version OLD of NAME with version NEW: files, changed bytes, metadata, parameters."""

    async def read() -> tuple[Manifest, Manifest, dict[str, int]]:
        async with access(target) as fleet:
            model = model_name(name)
            before, after = [manifests.decode(await fleet.manifest(model, version(n))) for n in (old, new)]
            known = {chunk for entry in before.files for chunk, _ in await _chunks(fleet, entry)}
            known |= {entry.digest for entry in before.files}
            fresh = {entry.path: _fresh(known, entry, await _chunks(fleet, entry)) for entry in after.files}
            return before, after, fresh

    before, after, fresh = run(read())
    files, metadata = _files(before, after), _metadata(before, after)
    files = [{**line, "changed_bytes": fresh.get(line["path"], 0)} for line in files]
    if as_json:
        print_json({"files": files, "metadata": metadata, "changed_bytes": sum(fresh.values())})
        return
    rows = [
        (f["change"], f["path"], size(f["old_bytes"]), size(f["new_bytes"]), size(f["changed_bytes"])) for f in files
    ]
    print_table(("CHANGE", "FILE", "OLD", "NEW", "NEW BYTES"), rows)
    for key, (was, now) in metadata.items():
        click.echo(printable(f"metadata {key}: {was!r} -> {now!r}"))


async def _chunks(fleet: Access, entry: FileEntry) -> Sequence[tuple[Digest, int]]:
    """Digest and size of each chunk; a long list is an object of its own."""
    digests = entry.chunks
    if entry.chunk_list is not None:
        name, most = entry.chunk_list, 32 * entry.chunk_count
        data = await fleet.ask(lambda control, url: control.get_object(url, name, most))
        digests = manifests.decode_chunk_list(data, entry)
    return [(digest, entry.chunk_range(at)[1]) for at, digest in enumerate(digests)]


def _fresh(known: set[Digest], entry: FileEntry, chunks: Sequence[tuple[Digest, int]]) -> int:
    """Bytes in chunks that no file of the other version has: at most what a host that holds it has to receive."""
    return 0 if entry.digest in known else sum(size_bytes for digest, size_bytes in chunks if digest not in known)


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
    old, new = _flat(before.metadata), _flat(after.metadata)
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(metadata: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, so that one changed parameter among fifty is one line."""
    flat: dict[str, Any] = {}
    for key, value in metadata.items():
        nested = isinstance(value, Mapping) and value
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


COMMANDS = (diff_command,)
