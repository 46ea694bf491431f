"""Many schedules on all processors, in chunks, so that a process pool costs little and a failure stops the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tests.sim import outages, rollouts, schedule
from tests.sim.outages import OutageOutcome
from tests.sim.schedule import Outcome

CHUNK = 50
T = TypeVar("T")


def election(first: int, count: int, jobs: int = 0) -> Iterator[Outcome]:
    """The outcomes of schedules ``first`` to ``first + count - 1``, in order."""
    return _spread(schedule.run, range(first, first + count), jobs)


def rollout_schedules(first: int, count: int, jobs: int = 0) -> Iterator[rollouts.Outcome]:
    """The outcomes of rollouts' schedules ``first`` to ``first + count - 1``, in order."""
    return _spread(rollouts.run, range(first, first + count), jobs)


def redis_outages(first: int, worlds: int, jobs: int = 0) -> Iterator[OutageOutcome]:
    """Fleets of ``outages.PER_WORLD`` Redis outages each."""
    return _spread(outages.run, range(first, first + worlds), jobs)


def _spread(run: Callable[[int], T], seeds: range, jobs: int) -> Iterator[T]:
    jobs = jobs or len(os.sched_getaffinity(0))
    if jobs == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run, seeds, chunksize=max(1, min(CHUNK, len(seeds) // (4 * jobs))))


def summary(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Totals, for people."""
    totals = dict.fromkeys(("schedules", "violated", "virtual_s", "steps", "terms", "publishes", "acknowledged"), 0.0)
    for outcome in outcomes:
        totals["schedules"] += 1
        totals["violated"] += bool(outcome.violations)
        for name in ("virtual_s", "steps", "terms", "publishes", "acknowledged"):
            totals[name] += getattr(outcome, name)
    return totals
