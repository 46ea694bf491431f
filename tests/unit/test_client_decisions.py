"""The client's decisions, without a client: who is evicted, when a failure is tried again, what a histogram tells."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.client import backoff
from modelsync.client.buckets import series
from modelsync.client.counting import LoadTimes, ModelCounts
from modelsync.client.eviction import Resident, admit
from modelsync.client.latency import BOUNDS_S, Histogram, difference, merged, percentile_s
from modelsync.core.errors import LoaderUnavailable

# --- eviction ------------------------------------------------------------------------------------------------------


def resident(key: str, stamp: int = 0, *, size: int = 10, uses: int = 0, held: bool = False) -> Resident[str]:
    return Resident(key, size, stamp, uses, held)


@pytest.mark.parametrize(
    ("residents", "occupied", "needed", "budget", "victims", "short"),
    [
        ([], 0, 10, 100, (), 0),
        ([resident("a", 1)], 10, 90, 100, (), 0),
        ([resident("a", 1)], 10, 91, 100, ("a",), 0),
        ([resident("new", 2), resident("old", 1)], 20, 10, 20, ("old",), 0),
        ([resident("a", 1, uses=5), resident("b", 1, uses=2)], 20, 10, 20, ("b",), 0),
        ([resident("a", 1, held=True), resident("b", 2)], 20, 10, 20, ("b",), 0),
        ([resident("a", 1, held=True), resident("b", 2, held=True)], 20, 10, 20, (), 10),
        ([resident("a", 1), resident("b", 2), resident("c", 3)], 30, 20, 30, ("a", "b"), 0),
        ([resident("a", 1, size=1), resident("b", 2, size=50)], 51, 40, 60, ("a", "b"), 0),
        ([resident("a", 1)], 40, 10, 20, ("a",), 20),  # old versions still leased take the rest
        ([resident("a", 1)], 10, 0, 20, (), 0),
    ],
)
def test_admission(
    residents: list[Resident[str]], occupied: int, needed: int, budget: int, victims: tuple[str, ...], short: int
) -> None:
    verdict = admit(residents, occupied, needed, budget)
    assert (verdict.victims, verdict.short_bytes) == (victims, short)


RESIDENTS = st.lists(
    st.builds(Resident, st.integers(), st.integers(0, 50), st.integers(0, 9), st.integers(0, 9), st.booleans()),
    max_size=12,
    unique_by=lambda each: each.key,
)


@given(RESIDENTS, st.integers(0, 100), st.integers(0, 200), st.integers(0, 50))
def test_nobody_held_leaves_nobody_leaves_in_vain_and_the_arithmetic_holds(
    residents: list[Resident[int]], needed: int, budget: int, leaving: int
) -> None:
    occupied = sum(each.size_bytes for each in residents) + leaving
    verdict = admit(residents, occupied, needed, budget)
    gone = [each for each in residents if each.key in verdict.victims]
    assert not any(each.held for each in gone)
    left = occupied + needed - sum(each.size_bytes for each in gone)
    assert verdict.short_bytes == max(0, left - budget)
    if gone:
        last = next(each for each in residents if each.key == verdict.victims[-1])
        assert left + last.size_bytes > budget  # without the last of them it would not have fit
    staying = [each for each in residents if not each.held and each not in gone]
    assert all((a.stamp, a.uses) <= (b.stamp, b.uses) for a in gone for b in staying)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_recency_by_misses_hits_within_two_points_of_exact_lru(exponent: float) -> None:
    dice = random.Random(7)
    names = list(range(50))
    trace = dice.choices(names, [1 / (name + 1) ** exponent for name in names], k=20_000)
    exact: OrderedDict[int, None] = OrderedDict()
    stamps: dict[int, int] = {}
    fresh: dict[int, int] = {}
    hits = exact_hits = sweep = 0
    for name in trace:
        if name in exact:
            exact_hits += 1
            exact.move_to_end(name)
        else:
            exact[name] = None
            if len(exact) > 10:
                exact.popitem(last=False)
        if name in stamps:
            hits += 1
            fresh[name] = fresh.get(name, 0) + 1
            continue
        sweep += 1
        stamps.update((each, sweep) for each in fresh)
        rated = [Resident(each, 1, stamp, fresh.get(each, 0), False) for each, stamp in stamps.items()]
        fresh.clear()
        for victim in admit(rated, len(stamps), 1, 10).victims:
            del stamps[victim]
        sweep += 1
        stamps[name] = sweep
    assert (exact_hits - hits) / len(trace) < 0.02


# --- failures ------------------------------------------------------------------------------------------------------

ERROR = LoaderUnavailable(path="m", loader="onnx", package="onnxruntime")


def test_each_failure_of_one_content_doubles_the_pause_and_another_content_is_tried_at_once() -> None:
    assert backoff.may_try(None, "v1", 0.0)
    failure, pauses, now_s = None, [], 0.0
    for _ in range(12):
        failure = backoff.failed(failure, "v1", ERROR, now_s)
        assert not backoff.may_try(failure, "v1", failure.retry_at_s - 0.001)
        assert backoff.may_try(failure, "v1", failure.retry_at_s)
        assert backoff.may_try(failure, "v2", now_s)
        pauses.append(failure.retry_at_s - now_s)
        now_s = failure.retry_at_s
    assert pauses[:4] == [0.5, 1, 2, 4] and pauses[-1] == backoff.LONGEST_S
    assert backoff.failed(failure, "v2", ERROR, now_s).count == 1
    for _ in range(2000):
        failure = backoff.failed(failure, "v1", ERROR, now_s)
    assert failure is not None and failure.retry_at_s == now_s + backoff.LONGEST_S


# --- what is counted -----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 900), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_told_within_a_tenth(durations_s: list[float], share: float) -> None:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.add(duration_s)
    exact = sorted(durations_s)[max(0, -int(-share * len(durations_s) // 1) - 1)]
    told = percentile_s(difference(histogram.counts, [0] * len(histogram.counts)), share)
    assert told is not None and exact * 0.999 <= told <= max(exact, 1e-6) * 1.101


def test_a_histogram_takes_anything_and_knows_nothing_of_nothing() -> None:
    histogram = Histogram()
    assert percentile_s({}, 0.5) is None
    for duration_s in (0.0, -1.0, 1e9):
        histogram.add(duration_s)
    assert sum(histogram.counts) == 3 and percentile_s({len(BOUNDS_S): 1}, 0.5) == BOUNDS_S[-1]
    assert merged([{1: 2}, {1: 3, 2: 1}]) == {1: 5, 2: 1}


def test_buckets_hold_what_happened_within_and_nothing_else() -> None:
    counts = ModelCounts("m")
    counts.close_bucket(0)
    version = counts.of(3)
    version.ended_requests, version.misses = 10, 2
    version.loaded(LoadTimes(read_s=1.0, warm_up_s=0.5), "npy", True, 100)
    version.latency.add(0.01, weight=10)
    counts.close_bucket(10)
    counts.close_bucket(20)  # nothing happened: not kept
    version.ended_requests = 15
    version.evicted(4.0)
    told = series(counts.buckets(30), 10)
    assert [(step["t_s"], step["requests"], step["hits"], step["loads"], step["evictions"]) for step in told] == [
        (10, 10, 8, 1, 0),
        (30, 5, 5, 0, 1),
    ]
    assert told[0]["load_s"] == 1.5 and told[0]["latency_p50_s"] == pytest.approx(0.01, rel=0.1)
    assert told[1]["latency_p50_s"] is None
    [joined] = series(counts.buckets(30), 60)
    assert (joined["t_s"], joined["requests"], joined["misses"]) == (0, 15, 2)


def test_the_ring_is_bounded() -> None:
    counts = ModelCounts("m")
    version = counts.of(1)
    for number in range(9000):
        version.ended_requests += 1
        counts.close_bucket(number * 10)
    assert len(counts.buckets(90_000)) == 8640
