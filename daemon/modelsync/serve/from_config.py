"""The server's settings from modelsync's configuration file, or from a live directory alone."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from modelsync import config as configuration
from modelsync.config import Address, Config, ModelSection
from modelsync.config.addresses import is_wildcard
from modelsync.serve.settings import Batching, ServeSettings


def from_live(live_dir: Path) -> ServeSettings:
    """The defaults, over one live directory."""
    return ServeSettings(live_dir.absolute())


def from_config(path: Path) -> ServeSettings:
    """What a file's ``[serve]``, ``[model.NAME]`` and ``node.live_dir`` say. Raises ConfigurationFault."""
    config = configuration.load(path)
    serve = config.serve
    batching = Batching(serve.batch_rows, serve.batch_delay_s)
    return ServeSettings(
        live_dir=config.node.live_dir,
        host=serve.listen.host,
        port=serve.listen.port,
        budget_bytes=serve.budget_bytes or None,
        trust_pickle=serve.trust_pickle,
        preload=serve.preload,
        threads=serve.threads,
        queue=serve.queue,
        max_body_bytes=serve.max_body_bytes,
        workers=serve.workers,
        drain_s=serve.drain_s,
        batching=batching,
        model_batching=MappingProxyType(_model_batching(config, batching)),
        daemon_url=_daemon_url(config),
    )


def _model_batching(config: Config, default: Batching) -> dict[str, Batching]:
    return {name: _own(section, default) for name, section in config.model.items()}


def _own(section: ModelSection, default: Batching) -> Batching:
    return Batching(
        rows=default.rows if section.batch_rows is None else section.batch_rows,
        delay_s=default.delay_s if section.batch_delay_s is None else section.batch_delay_s,
    )


def _daemon_url(config: Config) -> str | None:
    """Where the daemon beside this server answers, if any model is spread over hosts."""
    modes = {config.storage.mode, *(section.mode for section in config.model.values())}
    if "partitioned" not in modes:
        return None
    listen = config.node.listen
    if not is_wildcard(listen.host):
        return f"http://{listen}"
    return f"http://{Address('::1' if ':' in listen.host else '127.0.0.1', listen.port)}"
