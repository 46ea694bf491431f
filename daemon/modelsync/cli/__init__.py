"""The ``modelsync`` command: one file a command, errors as one line, exit codes that mean something.

A command's file is imported when the command is named, so that ``--help`` and a typing error answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from modelsync import __version__
from modelsync.cli.output import printable
from modelsync.core.errors import ModelsyncError

DEFAULT_CONFIG = "/etc/modelsync/modelsync.toml"


COMMANDS = {
    "up": ("up", "Publish what is put into MODELS_DIR: a primary on this machine, with a Valkey of its own."),
    "join": ("up", "Join the fleet whose Redis is at REDIS_URL, as a replica that can be promoted."),
    "status": ("status", "Show the fleet: nodes, models, what is wanted and what is wrong."),
    "publish": ("publish", "Publish PATH, a file or a directory, as the next version of the model NAME."),
    "history": ("history", "List the versions of NAME, newest first."),
    "show": (
        "history",
        "Show one version of NAME: its files, digests and metadata.",
    ),
    "diff": ("diff", "Compare version OLD of NAME with version NEW: files, changed bytes, metadata, parameters."),
    "update": ("wishes", "Run VERSION of NAME, or its newest; the next publish moves on from it."),
    "pin": ("wishes", "Hold NAME at VERSION (a number or an alias) on the whole fleet, until `unpin`."),
    "unpin": ("wishes", "Let NAME follow what is published again."),
    "rollback": ("wishes", "Run the version of NAME before the one wanted now, or an earlier VERSION."),
    "alias": ("wishes", "Let ALIAS mean VERSION of NAME."),
    "delete": ("wishes", "Forget VERSION of NAME; refused for what is wanted, pinned, aliased or the head."),
    "rollout": ("rollout", "Bring VERSION of NAME onto the fleet: each host by itself, together, or in waves."),
    "switchover": ("fleet", "Make NODE the primary, or the best candidate."),
    "pause": ("fleet", "Promote nobody until `resume`; a switchover that is asked for goes on."),
    "resume": ("fleet", "End a pause."),
    "forget": ("fleet", "Count NODE, which is gone for good, in no majority any more."),
    "primaries": ("fleet", "List who was primary, since when, and why."),
    "keys": ("keys", "Make and show the keys with which versions are signed."),
    "config": ("check", "Work with configuration files."),
    "simulate": ("simulate", "Try out a fleet on paper: nothing is asked or touched."),
    "stats": ("stats", "Show what an inference server did: requests, hit rate, loads, latency; as curves with --plot."),
    "find": ("find", "Find the versions whose metadata satisfy every condition."),
    "verify": ("verify", "Check every byte of every version that this host holds."),
    "scrub": ("care", "Read everything that this host holds again, and pull anew what is damaged."),
    "gc": ("care", "Remove the versions that this host need not keep."),
    "doctor": ("doctor", "Check this host, and say what to do about what is wrong."),
}
"""Name to the file in this package that has it, and its line in ``--help``; in the order in which they are shown."""


class _Commands(click.Group):
    """The commands of the table, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        file = importlib.import_module(f"modelsync.cli.{COMMANDS[cmd_name][0]}")
        found: click.Command = next(command for command in file.COMMANDS if command.name == cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config",
    "config_file",
    envvar="MODELSYNC_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    metavar="FILE",
    help="This host's configuration: says which fleet, and where to reach it.",
)
@click.option("--redis", metavar="URL", help="Reach the fleet through this Redis instead of a configuration file.")
@click.option("--fleet", default="default", show_default=True, metavar="NAME", help="The fleet's name, with --redis.")
@click.version_option(__version__, prog_name="modelsync")
@click.pass_context
def cli(context: click.Context, config_file: str, redis: str | None, fleet: str) -> None:
    """Keep machine-learning models in step across plain Linux hosts.

    Begin with `modelsync up DIR`, or with `modelsync status` where a daemon runs already.
    """
    from modelsync.access import Target  # noqa: PLC0415  no command runs without it, but --help does

    context.obj = Target(config_file=config_file, redis=redis, fleet=fleet)


def main() -> None:
    """Run a command; every error of ours is one line on stderr and its own exit code."""
    try:
        sys.exit(_run())
    except BrokenPipeError:
        _reader_left()
    except SystemExit:
        if not type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):  # click's own way to say the same, with 1
            raise
        _reader_left()
    except OSError as error:  # of the output: a full device; or of a path that was named
        _say_no_more()
        where = f"{printable(error.filename)}: " if error.filename else ""
        print(f"modelsync: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _run() -> int:
    try:
        code = cli.main(standalone_mode=False)
        if sys.stdout is not None:  # else it was closed by whoever started us
            sys.stdout.flush()
        return code if isinstance(code, int) else 0  # without standalone_mode click returns a command's own exit code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except ModelsyncError as error:
        print(f"modelsync: {printable(str(error))}", file=sys.stderr)
        return error.exit_code


def _reader_left() -> None:
    """The reader went away (`| head`): not an error, and Python must not complain about the flush at exit either."""
    _say_no_more()
    sys.exit(0)


def _say_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
