"""core.pace: rates and times left, from looks at any moments."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core import pace
from modelsync.core.pace import Pace

MIB = 1 << 20


def looked(*steps: tuple[float, int], total: int = 1000 * MIB) -> Pace:
    """Looks at (seconds, bytes done)."""
    seen = None
    for now_s, done in steps:
        seen = pace.seen(seen, done, total, now_s)
    assert seen is not None
    return seen


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=20), st.integers(1, 10 * MIB))
def test_a_steady_rate_is_that_rate_however_often_one_looks(gaps_s: list[float], rate: int) -> None:
    now_s, steps = 100.0, [(100.0, 0)]
    for gap_s in gaps_s:
        now_s += gap_s
        steps.append((now_s, math.floor(rate * (now_s - 100.0))))
    seen = looked(*steps, total=1 << 40)
    if now_s - 100.0 >= pace.FIRST_S:
        assert seen.rate_bytes_per_s == pytest.approx(rate, rel=0.01, abs=200)
        assert seen.left_s == pytest.approx((2**40 - seen.done_bytes) / rate, rel=0.02, abs=1) or rate < 20_000
    else:
        assert seen.rate_bytes_per_s is None and seen.left_s is None


def test_what_was_there_at_the_first_look_has_no_rate() -> None:
    """A resumed upload: half of it lies there, and one MiB a second comes."""
    seen = looked(*((float(second), (500 + second) * MIB) for second in range(11)))
    assert seen.rate_bytes_per_s == pytest.approx(MIB) and seen.left_s == pytest.approx(490)


def test_a_change_is_followed_within_a_window_and_one_burst_is_not_a_rate() -> None:
    steps = [(float(second), second * MIB) for second in range(61)]
    steps += [(60.0 + second, (60 + 10 * second) * MIB) for second in range(1, 11)]
    assert looked(*steps).rate_bytes_per_s == pytest.approx(10 * MIB, rel=0.15)
    burst = [*steps[:61], (60.1, 61 * MIB)]
    assert looked(*burst).rate_bytes_per_s == pytest.approx(MIB, rel=0.25), (
        "ten times the rate, for a tenth of a second"
    )


def test_looking_often_and_looking_seldom_tell_the_same() -> None:
    def done(now_s: float) -> int:
        return int(MIB * (now_s if now_s < 20 else 20 + 3 * (now_s - 20)))

    often = looked(*((at / 10, done(at / 10)) for at in range(301)))
    seldom = looked(*((float(at), done(at)) for at in range(0, 31, 5)))
    assert often.rate_bytes_per_s == pytest.approx(seldom.rate_bytes_per_s or 0, rel=0.01)


def test_what_stands_still_slows_to_nothing_and_has_no_end() -> None:
    steps = [(float(second), second * MIB) for second in range(11)]
    stalled = looked(*steps, *((10.0 + second, 10 * MIB) for second in range(1, 120)))
    assert stalled.rate_bytes_per_s == pytest.approx(0, abs=1) and stalled.left_s is None


def test_another_total_or_a_step_back_begins_anew() -> None:
    seen = looked((0.0, 0), (10.0, 100 * MIB))
    for done, total in ((0, 1000 * MIB), (100 * MIB, 5)):
        again = pace.seen(seen, done, total, 11.0)
        assert again == pace.begun(done, total, 11.0) and again.rate_bytes_per_s is None


def test_an_instant_and_a_clock_that_stands_are_no_division_by_zero() -> None:
    seen = looked((5.0, 0), (5.0, MIB), (5.0, 2 * MIB), (7.0, 2 * MIB))
    assert seen.rate_bytes_per_s == pytest.approx(MIB)
    assert looked((1.0, MIB), total=MIB).left_s == 0.0


def test_the_line_is_plain_json() -> None:
    assert looked((0.0, 0), (4.0, 4 * MIB), total=8 * MIB).line() == {
        "done_bytes": 4 * MIB, "total_bytes": 8 * MIB, "rate_bytes_per_s": MIB, "left_s": 4.0,
    }  # fmt: skip
    assert looked((0.0, 3), total=5).line() == {
        "done_bytes": 3, "total_bytes": 5, "rate_bytes_per_s": None, "left_s": None,
    }  # fmt: skip
