"""Counts of several workers as one server's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from modelsync.serve.merging import labelled, merged


def test_what_counts_is_added_and_percentiles_are_the_slowest_workers() -> None:
    one = {
        "models": {
            "m": {"7": {"digest": "b3:aa", "requests": 10, "maps": False, "latency_s": {"p50": 0.1, "p99": None}}}
        },
        "timeseries": {"m": [{"t_s": 20, "requests": 4, "latency_p99_s": 0.4}, {"t_s": 30, "requests": 6}]},
        "requests": {"m": {"200": 9, "404": 1}},
        "client": {"pinned": ["a"], "watching": "inotify", "budget_bytes": None},
        "state": {"m": {"version": 7, "resident": False, "error": None}},
        "server": {"workers": 1, "live_dir": "/live"},
    }
    other = {
        "models": {"m": {"7": {"digest": "b3:aa", "requests": 5, "maps": True, "latency_s": {"p50": 0.3, "p99": 0.5}}}},
        "timeseries": {"m": [{"t_s": 10, "requests": 1}, {"t_s": 20, "requests": 2, "latency_p99_s": 0.3}], "n": []},
        "requests": {"m": {"200": 5}, "n": {"200": 1}},
        "client": {"pinned": ["b", "a"], "watching": "inotify", "budget_bytes": None},
        "state": {"m": {"version": 6, "resident": True, "error": "damaged"}},
        "server": {"workers": 1, "live_dir": "/live"},
    }
    assert merged([one, other]) == {
        "models": {
            "m": {"7": {"digest": "b3:aa", "requests": 15, "maps": True, "latency_s": {"p50": 0.3, "p99": 0.5}}}
        },
        "timeseries": {
            "m": [
                {"t_s": 10, "requests": 1},
                {"t_s": 20, "requests": 6, "latency_p99_s": 0.4},
                {"t_s": 30, "requests": 6},
            ],
            "n": [],
        },
        "requests": {"m": {"200": 14, "404": 1}, "n": {"200": 1}},
        "client": {"pinned": ["a", "b"], "watching": "inotify", "budget_bytes": None},
        "state": {"m": {"version": 7, "resident": True, "error": "damaged"}},
        "server": {"workers": 2, "live_dir": "/live"},
    }
    assert merged([one]) == one


def exposition(requests: int, waiting: int) -> str:
    registry = CollectorRegistry()
    Counter("served", "Requests", ["model"], registry=registry).labels('m "1"').inc(requests)
    Gauge("waiting", "Waiting", registry=registry).set(waiting)
    Histogram("seconds", "Time", buckets=(0.1, 1.0), registry=registry).observe(0.5)
    return generate_latest(registry).decode()


def test_prometheus_is_given_each_workers_series_under_its_number() -> None:
    class Given(Collector):
        def collect(self) -> object:  # type: ignore[override]
            return labelled({1: exposition(5, 0), 0: exposition(3, 2)})

    registry = CollectorRegistry()
    registry.register(Given())
    text = generate_latest(registry).decode()
    assert text.count("# TYPE served_total counter") == 1
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["served_total", ("model", 'm "1"'), ("worker", "0")] == 3
    assert found["served_total", ("model", 'm "1"'), ("worker", "1")] == 5
    assert found["waiting", ("worker", "0")] == 2
    assert found["seconds_bucket", ("le", "1.0"), ("worker", "1")] == 1
    assert found["seconds_count", ("worker", "0")] == 1
