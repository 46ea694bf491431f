"""Counts of several workers as those of one server. Pure.

Sums where they count, the greatest where a sum would mean nothing: a percentile of all is at most that of the slowest.
Prometheus gets each worker's series with its number instead, for a worker that is replaced begins again at nought, and
only series by series does Prometheus know that from counting backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

_GREATEST = ("version", "latency_s", "last_load", "age_at_eviction_s")
_GREATEST_PREFIX = "latency_p"


def merged(documents: Iterable[Any]) -> Any:
    """Documents of one form, such as /stats gives, as one."""
    first, *others = documents
    for other in others:
        first = _two(first, other, greatest=False)
    return first


def _two(one: Any, other: Any, *, greatest: bool) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            key: _two(one.get(key), other.get(key), greatest=greatest or _greatest(key)) for key in {**one, **other}
        }
    if isinstance(one, list) and isinstance(other, list):
        return _lists(one, other)
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one or other)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return max(one, other) if greatest else one + other
    return one


def _greatest(key: str) -> bool:
    return key in _GREATEST or key.startswith(_GREATEST_PREFIX)


def _lists(one: list[Any], other: list[Any]) -> list[Any]:
    """Steps of a curve by their times; anything else: all that any has."""
    if not all(isinstance(each, dict) and "t_s" in each for each in (*one, *other)):
        return sorted({*one, *other})
    steps = {step["t_s"]: step for step in one}
    for step in other:
        t_s = step["t_s"]
        steps[t_s] = {**_two(steps[t_s], step, greatest=False), "t_s": t_s} if t_s in steps else step
    return [steps[t_s] for t_s in sorted(steps)]


def labelled(texts: Mapping[int, str]) -> list[Metric]:
    """Expositions of several workers as one, each series with its worker's number."""
    families: dict[str, Metric] = {}
    for number, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text):
            joint = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            joint.samples += [
                sample._replace(labels={**sample.labels, "worker": str(number)}) for sample in family.samples
            ]
    return list(families.values())
