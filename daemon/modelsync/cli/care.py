"""``modelsync gc`` and ``scrub``: what this host's daemon does with what it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import click

from modelsync.access import Target, access, run
from modelsync.cli.output import json_option, print_json, printable, size
from modelsync.cli.progress import Bar
from modelsync.core.errors import IntegrityFault, ModelsyncError

if TYPE_CHECKING:
    from modelsync.edges.http.control import ControlClient

LOOK_S = 0.5
LONG_S = 86_400.0
"""Everything that a host holds is read at a bounded rate."""


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@json_option
@click.pass_obj
def gc_command(target: Target, dry_run: bool, as_json: bool) -> None:
    """Remove the versions that this host need not keep.

    The daemon does so by itself, a little later. Kept are what is active, was active before, is wanted, pinned, aliased
    or in a rollout, and the newest `keep`. Asked of the primary, the object store's part is done as well.
    """

    async def ask() -> dict[str, Any]:
        async with access(target, LONG_S) as fleet:
            return await fleet.ask(lambda control, url: control.collect(url, dry_run=dry_run), about_host=True)

    found = run(ask())
    if as_json:
        print_json(found)
        return
    verb = "would remove" if dry_run else "removed"
    for name, numbers in found["versions"].items():
        click.echo(printable(f"{name}: {verb} {', '.join(map(str, numbers))}"))
    counts = f"{found['trees']} trees, {found['objects']} objects, {found['documents']} documents"
    click.echo(f"{verb} {counts}, {size(found['size_bytes'])}")
    if "object_store" in found:
        _show_store(found["object_store"], verb)


def _show_store(found: dict[str, Any], verb: str) -> None:
    for name, numbers in found["versions"].items():
        click.echo(printable(f"object store: {name}: {verb} {', '.join(map(str, numbers))}"))
    click.echo(f"object store: {verb} {found['deleted']} objects, {size(found['deleted_bytes'])}")
    later = f"{found['condemned']} condemned now, {found['waiting']} waiting, {size(found['garbage_bytes'])}"
    click.echo(f"object store: to go after storage.grace_s: {later}")


@click.command("scrub")
@json_option
@click.pass_obj
def scrub_command(target: Target, as_json: bool) -> None:
    """Read everything that this host holds again, and pull anew what is damaged.

    What is damaged is set aside, for a person to look at. Exit code 4 if something could not be repaired.
    """

    bar = Bar(quiet=as_json)

    async def ask() -> dict[str, Any]:
        async with access(target, LONG_S) as fleet:
            return await fleet.ask(functools.partial(_scrubbed, bar), about_host=True)

    try:
        found = run(ask())
    finally:
        bar.end()
    if as_json:
        print_json(found)
    else:
        for item in found["damaged"]:
            outcome = "repaired" if item["repaired"] else "NOT repaired: no peer has it, the next scrub tries again"
            click.echo(printable(f"{item['model']} {item['version']}: damaged {', '.join(item['paths'])}: {outcome}"))
        click.echo(f"{found['versions']} versions read, {len(found['damaged'])} damaged")
    if not all(item["repaired"] for item in found["damaged"]):
        raise click.exceptions.Exit(IntegrityFault.exit_code)


async def _scrubbed(bar: Bar, control: ControlClient, url: str) -> dict[str, Any]:
    scrub = asyncio.ensure_future(control.scrub(url))
    try:
        while not (await asyncio.wait({scrub}, timeout=LOOK_S))[0]:
            with contextlib.suppress(ModelsyncError):
                line = await control.scrubbing(url)
                if line:
                    bar.show("reading", int(line["done_bytes"]), int(line["total_bytes"]))
        return scrub.result()
    finally:
        scrub.cancel()


COMMANDS = (gc_command, scrub_command)
