"""``modelsync publish``: upload a file or directory to the primary and wait until other hosts hold it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import click

from modelsync.access import Target, access, login_name, run
from modelsync.cli.output import json_option, print_json
from modelsync.cli.progress import Bar, moved
from modelsync.core.errors import BadName
from modelsync.core.ids import model_name, version
from modelsync.publishing.upload import Waiting, await_copies, upload


@click.command("publish")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--version", "number", metavar="N", help="Give the version this number; it must be above the head.")
@click.option("--note", default="", help="What changed, for the history.")
@click.option("--author", default=None, help="Who publishes; the login name if not given.")
@click.option("--meta", type=click.Path(exists=True, path_type=Path), help="A JSON object of metadata.")
@click.option(
    "--wait",
    "copies",
    type=click.IntRange(0),
    metavar="COPIES",
    help="Return when that many nodes hold it; by default two if there are two, fewer where it lies on fewer.",
)
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, metavar="S", help="For --wait.")
@json_option
@click.pass_obj
def publish_command(
    target: Target,
    name: str,
    path: Path,
    number: str | None,
    note: str,
    author: str | None,
    meta: Path | None,
    copies: int | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Publish PATH, a file or a directory, as the next version of the model NAME."""
    model, wanted = model_name(name), version(number) if number else None
    metadata = _metadata(meta)

    async def work() -> dict[str, Any]:
        async with access(target, timeout_s=max(10.0, timeout_s)) as fleet:
            published = await upload(
                fleet, model, path, version=wanted, note=note, author=author or login_name(), metadata=metadata,
                progress=functools.partial(bar.show, "sending"), on_read=functools.partial(bar.show, "reading"),
                say=bar.say,
            )  # fmt: skip
            return await await_copies(
                fleet, published, copies, timeout_s, waiting=lambda line: bar.note(_waiting(line))
            )

    bar = Bar(quiet=as_json)
    try:
        result = run(work())
    finally:
        bar.end()
    if as_json:
        print_json(result)
        return
    what = "is unchanged: these bytes are already" if result["unchanged"] else "published as"
    click.echo(
        f"{model} {what} version {result['version']} ({result['digest'][:19]}…), held by {result['copies']} node(s)"
    )


def _metadata(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadName(kind="metadata file", value=str(path), rule=f"a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise BadName(kind="metadata file", value=str(path), rule="a JSON object")
    return value


def _waiting(line: Waiting) -> str:
    pulling = (f"{node}: {moved(transfer)}" for node, transfer in sorted(line.transfers.items()))
    return "; ".join([f"held by {line.held} of {line.wanted} hosts", *pulling])


COMMANDS = (publish_command,)
