"""The table of commands against the commands themselves, and what `modelsync --help` must not pay for."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import click
import pytest

from modelsync import cli
from modelsync.cli import COMMANDS

HEAVY = ("aiohttp", "redis", "rich", "structlog", "asyncio")


def _defined() -> set[str]:
    files = [importlib.import_module(f"modelsync.cli.{info.name}") for info in _files()]
    return {command.name for file in files for command in getattr(file, "COMMANDS", ())}


def _files() -> list[pkgutil.ModuleInfo]:
    return [info for info in pkgutil.iter_modules(cli.__path__) if info.name != "__main__"]


def test_every_command_that_a_file_has_is_in_the_table() -> None:
    assert _defined() == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_help_begins_as_the_command_s_own_does(name: str) -> None:
    context = click.Context(cli.cli)
    command = cli.cli.get_command(context, name)
    assert command is not None and command.help is not None
    line = COMMANDS[name][1].rstrip(".")  # the command may say more
    first = " ".join(command.help.split("\n\n")[0].split())
    assert first.startswith(line), (first, line)


def test_an_unknown_command_is_none() -> None:
    assert cli.cli.get_command(click.Context(cli.cli), "frobnicate") is None


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nsys.argv = ['modelsync', '--help']\nfrom modelsync.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    *text, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert any(line.split()[:1] == ["publish"] for line in text)
