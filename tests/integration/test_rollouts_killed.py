"""A primary that dies in the middle of a rollout, on real daemons: all of the fleet gets the version, or none of it.

`tools/faults rollouts` has every step; here is a sample.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.fault import rollouts
from tests.fault.rollouts import STEPS, Step

SAMPLE = tuple(
    step
    for step in STEPS
    if (step.strategy, step.at, step.point)
    in {
        ("together", "rollout.flipped", "unsent"),
        ("together", "rollout.flipped", "late"),
        ("together", "rollout.aborted", "written"),
        ("waves", "gate", "asked"),
        ("waves", "rollout.rolled_back", "written"),
    }
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rollouts.Rollouts]:
    made = rollouts.Rollouts(tmp_path_factory.mktemp("rollouts"))
    yield made
    made.close()


@pytest.mark.parametrize("step", SAMPLE, ids=str)
def test_all_or_none(fleet: rollouts.Rollouts, step: Step) -> None:
    tally = rollouts.Tally()
    fleet.trial(step, tally, restarts_at_once=step.strategy == "waves")
    assert tally.wrong == [] and tally.reached == 1
