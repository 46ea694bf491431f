"""The load test's plan: arrivals that depend on the seed alone, popular models by rank and hour; its bookkeeping."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from tools.load.plan import HOURS, Plan, best_hours
from tools.load.record import Record

PLAN = Plan(seconds=240.0, rate=100.0, models=10, skew=1.1, seed=3)


def test_arrivals_are_in_order_within_the_run_and_the_same_for_a_seed() -> None:
    arrivals = list(PLAN.arrivals())
    assert arrivals == list(PLAN.arrivals())
    assert all(a.at_s <= b.at_s for a, b in itertools.pairwise(arrivals))
    assert arrivals[0].at_s >= 0 and arrivals[-1].at_s < PLAN.seconds
    assert arrivals != list(Plan(240.0, 100.0, 10, 1.1, seed=4).arrivals())


def test_the_rate_is_kept_on_average_and_follows_the_hour() -> None:
    arrivals = list(PLAN.arrivals())
    assert len(arrivals) == pytest.approx(24_000, rel=0.03)
    by_hour = Counter(int(PLAN.hour(arrival.at_s)) for arrival in arrivals)
    assert by_hour[14] == pytest.approx(1500, rel=0.15) and by_hour[2] == pytest.approx(500, rel=0.25)
    assert set(by_hour) == set(range(HOURS))


def test_popularity_falls_with_rank_over_the_day() -> None:
    asked = Counter(arrival.model for arrival in PLAN.arrivals())
    assert asked[0] > 2 * asked[4] > 2 * asked[9] > 0
    over_the_day = [sum(PLAN.weights(hour)[model] for hour in range(HOURS)) for model in (0, 1)]
    assert over_the_day[0] / over_the_day[1] == pytest.approx(2**PLAN.skew)  # the hours' swing is even


def test_each_model_is_asked_for_most_around_its_own_hour() -> None:
    for model, best in enumerate(best_hours(PLAN.models, PLAN.seed)):
        curve = [PLAN.weights(hour)[model] for hour in range(HOURS)]
        assert curve.index(max(curve)) == int(best)
        assert max(curve) > 15 * min(curve)


def test_what_is_recorded_of_requests() -> None:
    record = Record()
    for number in range(100):
        record.ask(number / 50, 0, 1)
        record.answered(number / 50, 0.001 * (number + 1), 1, 7, 0.5)
    record.ask(1.5, 0, 2)
    record.fail(1.5, "status 503", "busy")
    assert (record.due, record.failed, record.failures["status 503"]) == (101, 1, 1)
    told = record.percentiles_ms()
    assert told["p50"] == pytest.approx(50, rel=0.01) and told["max"] == pytest.approx(100, rel=0.01)
    assert record.counts("failed") == [(0.0, 0.0), (1.0, 1.0)]
    assert [second for second, _ in record.curve_ms("p99")] == [0.0, 1.0]


def test_an_answer_that_its_version_does_not_give_is_wrong() -> None:
    record = Record()
    record.answered(0, 0.001, 1, 7, 0.5)
    record.answered(0, 0.001, 1, 8, 0.5)
    record.answered(0, 0.001, 2, 7, 0.5)
    assert record.wrong({(1, 7): 0.5, (1, 8): 0.6}) == 2
