"""The ``modelsync`` command: one file a command, errors as one line, exit codes that mean something."""

from __future__ import annotations

import os
import sys

import click

from modelsync import __version__
from modelsync.cli import check, diff, fleet, history, publish, status, up, verify, wishes
from modelsync.cli.access import Target
from modelsync.cli.output import printable
from modelsync.core.errors import ModelsyncError

DEFAULT_CONFIG = "/etc/modelsync/modelsync.toml"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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
    context.obj = Target(config_file=config_file, redis=redis, fleet=fleet)


for _command in (
    *up.COMMANDS,
    *status.COMMANDS,
    *publish.COMMANDS,
    *history.COMMANDS,
    *diff.COMMANDS,
    *wishes.COMMANDS,
    *fleet.COMMANDS,
    *check.COMMANDS,
    *verify.COMMANDS,
):
    cli.add_command(_command)


def main() -> None:
    """Run a command; every error of ours is one line on stderr and its own exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (`| head`): not an error, and Python must not complain about the flush at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ModelsyncError as error:
        print(f"modelsync: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
