"""``modelsyncd --config FILE``: the daemon that systemd runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from modelsync import __version__, config
from modelsync.core.errors import ModelsyncError


def main(argv: list[str] | None = None) -> int:
    """Run until stopped. Exit codes as in INTERFACE: 3 configuration, 75 the state directory is in use."""
    parser = argparse.ArgumentParser(
        prog="modelsyncd", description="Keep the models of this host in step with its fleet."
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/modelsync/modelsync.toml"), metavar="FILE")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    parser.add_argument("--version", action="version", version=f"modelsync {__version__}")
    parser.add_argument(
        "--release",
        action="store_true",
        help="give back the lease that a dead daemon of this host still holds, and exit (systemd's ExecStopPost)",
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.release:
            _release(arguments)
        else:
            _serve(arguments)
    except ModelsyncError as error:
        sys.stderr.write(f"modelsyncd: {error}\n")
        return error.exit_code
    return 0


# Imported late: a fault in the configuration is told, and a lease given back, without loading everything.


def _release(arguments: argparse.Namespace) -> None:
    settings = config.load(arguments.config)
    from modelsync.release import release_dead  # noqa: PLC0415

    release_dead(settings)


def _serve(arguments: argparse.Namespace) -> None:
    import asyncio  # noqa: PLC0415

    from modelsync.edges.host.config_watch import ConfigWatch  # noqa: PLC0415

    watch = ConfigWatch(arguments.config)  # before the file is read: no edit falls between the two
    settings = config.load(arguments.config)
    from modelsync import logs  # noqa: PLC0415
    from modelsync.app import App  # noqa: PLC0415

    logs.set_up(level=arguments.log_level)
    asyncio.run(App(settings, watch).run())


if __name__ == "__main__":
    sys.exit(main())
