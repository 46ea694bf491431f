"""The ``[model.NAME]`` sections: which keys one model may have of its own, and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from modelsync.config import gates
from modelsync.config.reading import Section
from modelsync.config.schema import ModelSection
from modelsync.core import ids
from modelsync.core.ids import ModelName
from modelsync.core.rollout.record import EACH, STRATEGIES, Gate
from modelsync.core.storage.modes import MODES, Mode

_RIGHT_SHARES = "a list of whole numbers from 1 to 100, such as [10, 50],"
_LARGEST_THRESHOLD = 1e300


def model_sections(table: Section) -> Mapping[ModelName, ModelSection]:
    """Every model's section, by its name."""
    sections: dict[ModelName, ModelSection] = {}
    for key in list(table.names()):
        own = Section(table.faults, ("model", key), table.raw(key))
        name = table.parsed(key, None, key, ids.model_name)
        section = _section(own)
        own.finish()
        if name is not None:
            sections[name] = section
    return MappingProxyType(sections)


def _section(table: Section) -> ModelSection:
    default = ModelSection()
    return ModelSection(
        keep=table.whole("keep", None, 1, 10_000),
        mode=_mode(table),
        copies=table.whole("copies", None, 1, 16),
        strategy=table.choice("strategy", EACH, STRATEGIES),
        straggler_s=table.number("straggler_s", default.straggler_s, 1, 86_400),
        soak_s=table.number("soak_s", default.soak_s, 0, 604_800),
        canaries=table.patterns("canaries", default.canaries),
        waves_percent=table.parsed("waves_percent", default.waves_percent, table.raw("waves_percent"), _shares),
        gate=_gate(table),
        keep_days=table.number("keep_days", 0.0, 0, 100_000) if table.given("keep_days") else None,
        validate=gates.check(table),
        health=gates.health(table),
        hooks=gates.hooks(table),
        views=gates.views(table),
        batch_rows=table.whole("batch_rows", None, 0, 1_000_000),
        batch_delay_s=_delay_s(table),
    )


def _mode(table: Section) -> Mode | None:
    """As in ``[storage]`` where the model says nothing."""
    if not table.given("mode"):
        table.raw("mode")
        return None
    return cast(Mode, table.choice("mode", MODES[0], MODES))


def _delay_s(table: Section) -> float | None:
    given = table.given("batch_delay_s")
    delay_s = table.number("batch_delay_s", 0.002, 0, 10)
    return delay_s if given else None


def _shares(value: object) -> tuple[int, ...]:
    if value is None:
        return ModelSection().waves_percent
    if not isinstance(value, list) or len(value) > 100 or not all(type(share) is int for share in value):
        raise ValueError(f"{_RIGHT_SHARES} would be right")
    if not all(1 <= share <= 100 for share in value):
        raise ValueError(f"{_RIGHT_SHARES} would be right")
    return tuple(value)


def _gate(table: Section) -> Gate | None:
    given = table.raw("gate")
    if given is None:
        return None
    own = Section(table.faults, (*table.keys, "gate"), given)
    url = own.required_text("url", 'the address of a Prometheus, such as "http://prometheus:9090",') or ""
    query = own.required_text("query", 'a PromQL expression, such as "rate(errors_total[5m])",') or ""
    most = own.number("max_value", 0.0, -_LARGEST_THRESHOLD, _LARGEST_THRESHOLD)
    if not own.given("max_value"):
        own.fault("max_value", "is missing; the largest value that counts as healthy would be right")
    if url and not url.startswith(("http://", "https://")):
        own.fault("url", "is no http:// or https:// URL; one would be right")
    own.finish()
    return Gate(url, query, most)
