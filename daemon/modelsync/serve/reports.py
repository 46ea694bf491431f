"""What this server did, for people and for Prometheus: ``/stats``, ``/metrics``, and the page at ``/``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from modelsync.client import Client
from modelsync.client.latency import BOUNDS_S
from modelsync.serve.bodies import Bodies
from modelsync.serve.faults import BadRequest
from modelsync.serve.fellows import Fellows
from modelsync.serve.forwarding import Forwarder
from modelsync.serve.lanes import Lanes
from modelsync.serve.merging import labelled, merged
from modelsync.serve.messages import json_bytes
from modelsync.serve.traffic import BUCKET_S, ModelTraffic, Traffic, VersionTraffic
from modelsync.web import page, page_headers

MAX_STEP_S = 86_400
_UNASKED = VersionTraffic()
_EDGES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Of the exported histogram: few, since each is a time series for every model."""


class Reports:
    """Puts the senders' view (``traffic``) and the cache's (``client``) side by side."""

    def __init__(
        self,
        live_dir: Path,
        client: Client,
        traffic: Traffic,
        lanes: Lanes,
        bodies: Bodies,
        forwarder: Forwarder | None,
        fellows: Fellows,
    ) -> None:
        self._live_dir = str(live_dir)
        self._client = client
        self._traffic = traffic
        self._lanes = lanes
        self._bodies = bodies
        self._forwarder = forwarder
        self._fellows = fellows
        self._registry = CollectorRegistry()
        self._registry.register(_Exporter(self))
        ProcessCollector(registry=self._registry)
        self._page = page("serve")
        self._page_headers = page_headers(self._page)

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/", self.page)
        app.router.add_get("/stats", self.stats)
        app.router.add_get("/metrics", self.metrics)

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html", headers=self._page_headers)

    async def stats(self, request: web.Request) -> web.Response:
        text = request.query.get("step_s", str(BUCKET_S))
        step_s = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
        if not BUCKET_S <= step_s <= MAX_STEP_S or step_s % BUCKET_S:
            raise BadRequest(reason=f"step_s is a multiple of {BUCKET_S} from {BUCKET_S} to {MAX_STEP_S}")
        told = await self._fellows.told(request)
        document = merged([self.document(step_s), *map(orjson.loads, told.values())])
        return web.Response(
            body=json_bytes(document),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def metrics(self, request: web.Request) -> web.Response:
        told = await self._fellows.told(request)
        body = generate_latest(self._registry)
        if told and self._fellows.number is not None:
            texts = {number: data.decode() for number, data in {**told, self._fellows.number: body}.items()}
            registry = CollectorRegistry()
            registry.register(_Given(labelled(texts)))
            body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def document(self, step_s: int) -> dict[str, Any]:
        """``/stats``: counters by model and version, curves by model, what the client and the server are doing."""
        counted = dict(self._client.stats())
        models = self._by_version(counted.pop("models"))
        names = sorted({*models, *(name for name in self._traffic.models if name)})
        return {
            "models": {name: models.get(name, {}) for name in names},
            "timeseries": {name: self._series(name, step_s) for name in names},
            "requests": {name: _answers(each) for name, each in self._traffic.models.items()},
            "client": counted,
            "server": self.server(),
        }

    def server(self) -> dict[str, Any]:
        forwarder = self._forwarder
        return {
            "live_dir": self._live_dir,
            "workers": 1,
            "waiting": self._lanes.waiting,
            "body_bytes": self._bodies.held_bytes,
            "forwarded": forwarder.forwarded if forwarder else 0,
            "forwarding_failed": forwarder.failed if forwarder else 0,
        }

    def _by_version(self, counted: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The client's counters by model and version, with requests, misses and latency as their senders had them.

        The client counts leases, of which a request that waits for a load and then leases is one without a wait, and
        does not see how long they last.
        """
        for name, versions in counted.items():
            traffic = self._traffic.models.get(name)
            for number, line in versions.items():
                seen = traffic.by_version.get(int(number), _UNASKED) if traffic is not None else _UNASKED
                line |= {"requests": seen.requests, "hits": seen.requests - seen.misses, "misses": seen.misses}
                line["latency_s"] = seen.percentiles_s()
        return counted

    def _series(self, name: str, step_s: int) -> list[dict[str, Any]]:
        """The client's steps with the senders' latencies; steps that only one of them saw are there, too."""
        steps = {step["t_s"]: dict(step) for step in self._client.timeseries(name, step_s=step_s)}
        blank = dict.fromkeys(("requests", "hits", "misses", "coalesced", "loads", "load_s", "evictions"), 0)
        for t_s, seen in self._traffic.series(name, step_s).items():
            steps[t_s] = {"t_s": t_s, **blank, **steps.get(t_s, {}), **seen}
        return [steps[t_s] for t_s in sorted(steps)]

    # --- for Prometheus ----------------------------------------------------------------------------------------------

    def families(self) -> Iterable[Metric]:
        yield from self._request_families()
        yield from self._cache_families()
        server = self.server()
        yield GaugeMetricFamily("modelsync_serve_waiting", "Requests that wait for a thread", value=server["waiting"])
        yield GaugeMetricFamily("modelsync_serve_body_bytes", "Request bodies in memory", value=server["body_bytes"])
        yield CounterMetricFamily("modelsync_serve_forwarded", "Answered by an owner", value=server["forwarded"])

    def _request_families(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("modelsync_serve_requests", "Inference requests", labels=["model", "status"])
        seconds = HistogramMetricFamily(
            "modelsync_serve_request_seconds", "From the body's last byte to the answer", labels=["model"]
        )
        for name, each in list(self._traffic.models.items()):
            for status, count in list(each.by_status.items()):
                requests.add_metric([name, str(status)], count)
            seconds.add_metric([name], _cumulated(each), each.total_s)
        return (requests, seconds)

    def _cache_families(self) -> Iterable[Metric]:
        families = {
            key: CounterMetricFamily(f"modelsync_serve_{key}", text, labels=["model", "version"])
            for key, text in (
                ("hits", "Requests that found their version in memory"),
                ("misses", "Requests that waited for a load"),
                ("loads", "Loads into memory"),
                ("evictions", "Evictions to make room"),
            )
        }
        size = GaugeMetricFamily("modelsync_serve_model_bytes", "In memory", labels=["model", "version"])
        for name, versions in self._by_version(self._client.stats()["models"]).items():
            for number, line in versions.items():
                for key, family in families.items():
                    family.add_metric([name, str(number)], line.get(key, 0))
                size.add_metric([name, str(number)], line.get("size_bytes", 0))
        return (*families.values(), size)


class _Exporter(Collector):
    """Computed when it is asked for."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        return self._reports.families()


class _Given(Collector):
    """Of all workers."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _answers(each: ModelTraffic) -> dict[str, int]:
    return {str(status): count for status, count in sorted(each.by_status.items())}


def _cumulated(each: ModelTraffic) -> list[tuple[str, float]]:
    buckets, seen, step = [], 0, 0
    counts = list(each.latency.counts)
    for edge_s in _EDGES_S:
        while step < len(BOUNDS_S) and BOUNDS_S[step] <= edge_s:
            seen += counts[step]
            step += 1
        buckets.append((repr(edge_s), float(seen)))
    return [*buckets, ("+Inf", float(sum(counts)))]
