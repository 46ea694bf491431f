"""``modelsync up DIR`` and ``modelsync join URL``: a node in the foreground, without a configuration file."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from modelsync import config as configuration
from modelsync import logs
from modelsync.config import Config
from modelsync.core.errors import BadName

DEFAULT_PORT = 8461


def _options(command: Any) -> Any:
    for option in (
        click.option("--listen", metavar="HOST:PORT", help="Where this node listens."),
        click.option("--state", type=click.Path(path_type=Path), metavar="DIR", help="What this node keeps."),
        click.option("--live", type=click.Path(path_type=Path), metavar="DIR", help="Where NAME/current appears."),
        click.option("--fleet", default="default", show_default=True, metavar="NAME"),
        click.option("--id", "node", metavar="ID", help="This node's name; the host's name if not given."),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
    ):
        command = option(command)
    return command


@click.command("up")
@click.argument("models_dir", type=click.Path(file_okay=False, path_type=Path))
@_options
@click.option("--redis", metavar="URL", help="Use this Redis instead of an embedded Valkey.")
def up_command(
    models_dir: Path, listen: str | None, state: Path | None, live: Path | None, fleet: str, node: str | None,
    verbose: bool, redis: str | None,
) -> None:  # fmt: skip
    """Publish what is put into MODELS_DIR: a primary on this machine, with a Valkey of its own.

    Ctrl-C stops it cleanly. The command that joins another node is printed.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    base = models_dir.resolve().with_name(models_dir.resolve().name + ".modelsync")
    address = listen or f"127.0.0.1:{DEFAULT_PORT}"
    tree = {
        "fleet": {"name": fleet, "redis": redis or "embedded"},
        "node": _node(node or socket.gethostname(), address, state or base / "state", live or base / "live"),
        "models": {"watch": str(models_dir.resolve())},
    }
    _run(configuration.build(tree, "modelsync up"), verbose)


@click.command("join")
@click.argument("redis_url")
@_options
def join_command(
    redis_url: str, listen: str | None, state: Path | None, live: Path | None, fleet: str, node: str | None,
    verbose: bool,
) -> None:  # fmt: skip
    """Join the fleet whose Redis is at REDIS_URL, as a replica that can be promoted. Ctrl-C stops it cleanly."""
    address = listen or _free_address(redis_url)
    name = node or f"{socket.gethostname()}-{address.rpartition(':')[2]}"
    base = Path.cwd() / f"{name}.modelsync"
    tree = {
        "fleet": {"name": fleet, "redis": redis_url},
        "node": _node(name, address, state or base / "state", live or base / "live"),
    }
    _run(configuration.build(tree, "modelsync join"), verbose)


def _node(name: str, address: str, state: Path, live: Path) -> dict[str, Any]:
    return {"id": name, "listen": address, "state_dir": str(state.resolve()), "live_dir": str(live.resolve())}


def _free_address(redis_url: str) -> str:
    """The address of this host that faces Redis, and a free port on it."""
    try:
        parts = urlsplit(redis_url)
        host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    except ValueError as error:
        raise BadName(kind="Redis URL", value=repr(redis_url), rule="redis://HOST:PORT") from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing: the kernel only picks the route
            own = probe.getsockname()[0]
    except OSError:
        own = "127.0.0.1"
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((own, 0))
        free = listener.getsockname()[1]
    return f"[{own}]:{free}" if ":" in own else f"{own}:{free}"


def _run(config: Config, verbose: bool) -> None:
    from modelsync.app import App  # noqa: PLC0415  other commands start faster without it

    logs.set_up(level="debug" if verbose else "info")
    asyncio.run(App(config, on_ready=_say).run())
    click.echo("stopped")


def _say(app: Any) -> None:
    config = app.config
    click.echo(f"node {config.node.id} of fleet {config.fleet.name} at {config.node.advertise}")
    if config.models.watch is not None:
        click.echo(f"  put models into   {config.models.watch}")
    click.echo(f"  they go live in   {config.node.live_dir}/NAME/current")
    click.echo(f"  look around       modelsync --redis {app.redis_url} --fleet {config.fleet.name} status")
    click.echo(f"  join from a host  modelsync join {app.redis_url} --fleet {config.fleet.name}")


COMMANDS = (up_command, join_command)
