"""What an edit of the configuration changed, and how much of it a running daemon takes on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace

from modelsync.config.reading import dotted
from modelsync.config.schema import Config, ModelSection
from modelsync.core.ids import ModelName

_LIVE_KEYS = frozenset(
    {
        "fleet.poll_s",
        "node.priority",
        "node.nofailover",
        "node.labels",
        "models.settle_s",
        "models.keep",
        "models.keep_days",
        "models.scrub_days",
        "models.scrub_bytes_per_s",
        "models.include",
        "models.exclude",
        "transfer.rate_limit_bytes_per_s",
        "transfer.concurrency",
        "transfer.compression",
        "storage.mode",
        "storage.copies",
        "storage.cache_bytes",
        "storage.ahead",
        "storage.grace_s",
        "storage.replace_after_s",
        "storage.moves",
        "storage.split_bytes",
        "storage.leaving",
        "security.trusted_keys",
    }
)
_LIVE_SECTIONS = frozenset({"pins", "model", "serve"})
"""``serve`` is read by modelsync-serve when it starts; the daemon has no part in it."""


@dataclass(frozen=True, slots=True)
class Differences:
    """Dotted keys that differ, sorted. ``live`` ones are taken on at once, the others at the next start."""

    live: tuple[str, ...]
    restart: tuple[str, ...]


def differences(old: Config, new: Config) -> Differences:
    """Which keys an edit changed, split by whether they need a restart."""
    names = old.model.keys() | new.model.keys()
    before, after = (dict(_flat(replace(one, model=_sections(one, names)))) for one in (old, new))
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return Differences(
        live=tuple(key for key in changed if _is_live(key)),
        restart=tuple(key for key in changed if not _is_live(key)),
    )


def _sections(config: Config, names: Iterable[ModelName]) -> dict[ModelName, ModelSection]:
    """Every named model's section; a model without one has the defaults."""
    return {name: config.model.get(name, ModelSection()) for name in names}


def in_force(old: Config, new: Config) -> Config:
    """The configuration of a daemon that was started with ``old`` and has just read ``new``."""
    return replace(
        old,
        fleet=replace(old.fleet, poll_s=new.fleet.poll_s),
        node=replace(old.node, priority=new.node.priority, nofailover=new.node.nofailover, labels=new.node.labels),
        models=replace(new.models, watch=old.models.watch),
        transfer=new.transfer,
        storage=replace(new.storage, url=old.storage.url, credentials_file=old.storage.credentials_file),
        security=replace(old.security, trusted_keys=new.security.trusted_keys),
        pins=new.pins,
        model=new.model,
        serve=new.serve,
    )


def _is_live(key: str) -> bool:
    return key in _LIVE_KEYS or key.partition(".")[0] in _LIVE_SECTIONS


def _flat(value: object, *path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, *path, key)
    elif is_dataclass(value) and not isinstance(value, type) and path != ("node", "listen"):
        for field in fields(value):
            yield from _flat(getattr(value, field.name), *path, field.name)
    else:
        yield dotted(*path), value
