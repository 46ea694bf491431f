"""``modelsync-serve``: the inference server that systemd runs."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelsync import __version__
from modelsync.core.errors import ConfigurationFault, ModelsyncError
from modelsync.core.ids import MAX_INTEGER


def main(argv: list[str] | None = None) -> int:
    """Run until stopped. Exit codes as in INTERFACE: 2 usage, 3 configuration."""
    arguments = _parser().parse_args(argv)
    try:
        settings = settings_of(arguments)
        _run(settings, arguments.log_level)
    except ModelsyncError as error:
        sys.stderr.write(f"modelsync-serve: {error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modelsync-serve", description="Serve the models of this host by the Open Inference Protocol."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="its [serve] and node.live_dir")
    parser.add_argument("--live", type=Path, metavar="DIR", help="the live directory; needed without --config")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where to serve (default: 127.0.0.1:8462)")
    parser.add_argument(
        "--trust-pickle", metavar="NAME,…|all", help="models whose pickles may run code here; their publishers then can"
    )
    parser.add_argument("--budget-bytes", type=int, metavar="N", help="memory for models; the least used make room")
    parser.add_argument("--preload", metavar="PATTERN,…", help="models to load before the server is ready")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that answer on the one port (default: 1)")
    parser.add_argument("--daemon", metavar="URL", help="the daemon that knows which host holds what")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    parser.add_argument("--version", action="version", version=f"modelsync {__version__}")
    return parser


def settings_of(arguments: argparse.Namespace) -> Any:
    """The settings of a command line, over those of its configuration file.

    Returns:
        ServeSettings.
    Raises:
        ConfigurationFault: no live directory is named, or the file or an option has a fault.
    """
    from modelsync.serve.from_config import from_config, from_live  # noqa: PLC0415  --help needs no TOML and no NumPy

    if arguments.config is not None:
        settings = from_config(arguments.config)
    elif arguments.live is not None:
        settings = from_live(arguments.live)
    else:
        raise ConfigurationFault(source="modelsync-serve", faults=("--live DIR or --config FILE: one is needed",))
    return dataclasses.replace(settings, **_given(arguments))


def _given(arguments: argparse.Namespace) -> Mapping[str, Any]:
    from modelsync.config.addresses import listen_address  # noqa: PLC0415
    from modelsync.core.ids import model_name  # noqa: PLC0415

    given: dict[str, Any] = {}
    if arguments.live is not None:
        given["live_dir"] = arguments.live.absolute()
    if arguments.listen is not None:
        try:
            address = listen_address(arguments.listen)
        except ValueError as error:
            raise ConfigurationFault(source="modelsync-serve", faults=(f"--listen: {error}",)) from error
        given |= {"host": address.host, "port": address.port}
    if arguments.trust_pickle is not None:
        named = arguments.trust_pickle  # a name that no model can have would be trusted for nothing, and unnoticed
        given["trust_pickle"] = "all" if named == "all" else frozenset(map(model_name, _names(named)))
    if arguments.budget_bytes is not None:
        given["budget_bytes"] = _within("--budget-bytes", arguments.budget_bytes, 0, MAX_INTEGER) or None
    if arguments.workers is not None:
        given["workers"] = _within("--workers", arguments.workers, 1, 256)
    if arguments.preload is not None:
        given["preload"] = tuple(_names(arguments.preload))
    if arguments.daemon is not None:
        given["daemon_url"] = arguments.daemon.rstrip("/")
    return MappingProxyType(given)


def _within(option: str, number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise ConfigurationFault(source="modelsync-serve", faults=(f"{option}: from {least} to {most}",))
    return number


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _run(settings: Any, log_level: str) -> None:
    import structlog  # noqa: PLC0415

    from modelsync import logs  # noqa: PLC0415

    logs.set_up(level=log_level)
    # Requests carry numbers without column names; scikit-learn would say so at each of them.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    if not settings.live_dir.is_dir():
        later = "no model is known until a daemon makes it; --live or node.live_dir names it"
        structlog.get_logger().warning("directory.missing", path=str(settings.live_dir), next=later)
    if settings.workers == 1:
        _answer(settings, None)
        return
    from modelsync.serve.workers import Workers  # noqa: PLC0415

    Workers(settings, partial(_answer, settings)).serve()


def _answer(settings: Any, place: Any) -> None:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, place))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed; it does the same in less processor time."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def serve(settings: Any, place: Any = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises CannotListen.

    Args:
        place: among the workers of one port (``workers.Place``); None: this is the only process.
    """
    from modelsync.client import Client  # noqa: PLC0415
    from modelsync.serve.beats import Alone, Told  # noqa: PLC0415
    from modelsync.serve.server import InferenceServer  # noqa: PLC0415

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    beats = Alone(settings) if place is None else Told(place.beats)
    if place is not None:
        asyncio.get_running_loop().add_reader(place.parent, stop.set)  # it ends when the parent does
    with Client(settings.live_dir, budget_bytes=settings.budget_bytes, trust_pickle=settings.trust_pickle) as client:
        server = InferenceServer(client, settings, place=place)
        beating = asyncio.create_task(_beat(beats), name="watchdog")
        try:
            await server.start()
            beats.ready(server.port)
            await stop.wait()
            beats.stopping()
            beating.cancel()
        finally:
            await server.stop()
    beats.stopped()


async def _beat(beats: Any) -> None:
    """From the loop that answers requests: when it hangs, silence brings the restart."""
    while beats.interval_s is not None:
        beats.beat()
        await asyncio.sleep(beats.interval_s)


if __name__ == "__main__":
    sys.exit(main())
