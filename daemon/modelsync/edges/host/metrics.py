"""Prometheus text, computed when it is asked for from what the node knows anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

Snapshot = Callable[[], dict[str, Any]]
"""Returns primary (bool), epoch, redis_up (bool), config_ok (bool), alarms (counts by kind), models (a node's report
lines), under_way (a report's lines of transfers, uploads and scrub), and the counters of ``_TRAFFIC``."""


_TRAFFIC = {
    "sent_bytes": "Bytes of models that this node gave to peers and people, on the wire",
    "sent_content_bytes": "What these bytes stood for: more, where they were compressed",
    "received_bytes": "Bytes of models that this node pulled, on the wire",
    "received_content_bytes": "What these bytes stood for",
    "uploaded_bytes": "Bytes of uploads that came here",
}


class _NodeCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        state = self._snapshot()
        yield _gauge("modelsync_primary", "1 on the node that may publish", state["primary"])
        yield _gauge("modelsync_epoch", "The highest epoch this node has accepted", state["epoch"])
        yield _gauge("modelsync_redis_up", "1 while Redis answers", state["redis_up"])
        yield _gauge(
            "modelsync_config_ok", "0 while the config file has a fault and the last good one holds", state["config_ok"]
        )
        yield self._alarms(state["alarms"])
        for name, text in _TRAFFIC.items():
            yield CounterMetricFamily(f"modelsync_{name}", text, value=state[name])
        yield from self._models(state["models"])
        for kind, name in (("pull", "transfers"), ("upload", "uploads")):
            yield from _moving(kind, state["under_way"][name])
        if scrub := state["under_way"]["scrub"]:
            yield _gauge("modelsync_scrub_done_bytes", "Read again by the scrub under way", scrub["done_bytes"])
            yield _gauge("modelsync_scrub_total_bytes", "Bytes of the scrub under way", scrub["total_bytes"])

    @staticmethod
    def _alarms(counts: Mapping[str, int]) -> Metric:
        alarms = CounterMetricFamily("modelsync_alarms", "What a correct fleet never shows, by kind", labels=["kind"])
        for kind, count in counts.items():
            alarms.add_metric([kind], count)
        return alarms

    @staticmethod
    def _models(lines: dict[str, dict[str, Any]]) -> Iterable[Metric]:
        active = GaugeMetricFamily("modelsync_active_version", "The version that current points to", labels=["model"])
        wanted = GaugeMetricFamily("modelsync_wanted_version", "The version this host should run", labels=["model"])
        failed = GaugeMetricFamily(
            "modelsync_model_failed", "1 while the last try to activate failed", labels=["model"]
        )
        for name, line in lines.items():
            active.add_metric([name], line["active"] or 0)
            wanted.add_metric([name], line["wanted"] or 0)
            failed.add_metric([name], int(line["error"] is not None))
        return (active, wanted, failed)


def _moving(kind: str, lines: Mapping[str, Mapping[str, Any]]) -> Iterable[Metric]:
    """Bytes, rate and time left of each, by model; what is not known has no sample."""
    for key, name, text in (
        ("done_bytes", "done_bytes", f"Verified bytes of the {kind} under way"),
        ("total_bytes", "total_bytes", f"Bytes of the {kind} under way"),
        ("rate_bytes_per_s", "rate_bytes_per_second", f"How fast the {kind} under way goes on"),
        ("left_s", "left_seconds", f"Until the {kind} under way is done, at that rate"),
    ):
        family = GaugeMetricFamily(f"modelsync_{kind}_{name}", text, labels=["model"])
        for model, line in lines.items():
            if line[key] is not None:
                family.add_metric([model], line[key])
        yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


class Metrics:
    """One node's registry."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_NodeCollector(snapshot))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        return generate_latest(self._registry)
