"""``modelsync config check FILE``: every fault of a configuration at once."""

from __future__ import annotations

from pathlib import Path

import click

from modelsync import config as configuration
from modelsync.cli.keys import sealing_fault


@click.group("config")
def config_group() -> None:
    """Work with configuration files."""


@config_group.command("check")
@click.argument("file", type=click.Path(path_type=Path))
def check_command(file: Path) -> None:
    """Check FILE and say everything that is wrong with it; exit code 3 if anything is."""
    config = configuration.load(file)
    fault = sealing_fault(config)
    click.echo(f"{file}: good: node {config.node.id} of fleet {config.fleet.name}")
    if fault:
        click.echo(f"note: {fault}")


COMMANDS = (config_group,)
