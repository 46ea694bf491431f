"""A node's rate, with the time that its waits would take counted instead of waited."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from modelsync.edges.pull import rate_limit
from modelsync.edges.pull.rate_limit import RateLimiter


class Clock(threading.Event):
    """Time that passes only in waits; ``at`` runs something when a moment has come."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.at: tuple[float, Callable[[], None]] | None = None

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now_s += timeout
        if self.at and self.now_s >= self.at[0]:
            self.at[1]()
            self.at = None
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate_limit.time, "monotonic", lambda: clock.now_s)
    return clock


def test_the_rate_is_kept_and_what_was_not_used_is_not_saved_up(clock: Clock) -> None:
    limiter = RateLimiter(100)
    for _ in range(11):
        limiter.take(100, clock)
    assert clock.now_s == pytest.approx(10, abs=0.01)
    clock.now_s += 100
    for _ in range(11):
        limiter.take(100, clock)
    assert clock.now_s == pytest.approx(120, abs=0.01)


@pytest.mark.parametrize("rate", [0, 1000])
def test_who_waits_already_hears_of_another_rate(clock: Clock, rate: int) -> None:
    """At 1 byte a second this would wait for twelve days."""
    limiter = RateLimiter(1)
    limiter.take(1 << 20, clock)
    clock.at = (5.0, lambda: setattr(limiter, "rate_bytes_per_s", rate))
    limiter.take(1, clock)
    assert clock.now_s < 6 + (rate and (1 << 20) / rate)


def test_a_cancelled_pull_waits_no_longer(clock: Clock) -> None:
    limiter = RateLimiter(1)
    limiter.take(1000, clock)
    clock.at = (3.0, clock.set)
    limiter.take(1000, clock)
    assert clock.now_s < 4
