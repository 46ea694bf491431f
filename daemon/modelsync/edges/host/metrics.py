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
lines), transfers, and the counters of ``_TRAFFIC``."""


_TRAFFIC = {
    "sent_bytes": "Bytes of models that this node gave to peers and people, on the wire",
    "sent_content_bytes": "What these bytes stood for: more, where they were compressed",
    "received_bytes": "Bytes of models that this node pulled, on the wire",
    "received_content_bytes": "What these bytes stood for",
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
        yield from self._transfers(state["transfers"])

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

    @staticmethod
    def _transfers(transfers: dict[str, dict[str, int]]) -> Iterable[Metric]:
        done = GaugeMetricFamily("modelsync_pull_done_bytes", "Verified bytes of the pull under way", labels=["model"])
        total = GaugeMetricFamily("modelsync_pull_total_bytes", "Bytes of the pull under way", labels=["model"])
        for name, line in transfers.items():
            done.add_metric([name], line["done_bytes"])
            total.add_metric([name], line["total_bytes"])
        return (done, total)


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
