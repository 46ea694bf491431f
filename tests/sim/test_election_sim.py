"""The simulation, as part of the tests: enough schedules to notice, the outages, and every safeguard's mutation."""

from __future__ import annotations

import pytest

from tests.sim import many, mutations, outages, schedule
from tests.sim.mutations import Mutation

SEEDS = 2000


def test_no_schedule_breaks_a_property() -> None:
    outcomes = list(many.election(1, SEEDS))
    broken = {outcome.seed: outcome.violations[0] for outcome in outcomes if outcome.violations}
    assert broken == {}, "replay with tools/simulate election --seed N --trace"
    totals = many.summary(outcomes)
    assert totals["terms"] > 1.5 * SEEDS and totals["acknowledged"] > 10 * SEEDS, "the schedules exercise nothing"
    assert 0.3 < sum(outcome.redis_lost_data for outcome in outcomes) / SEEDS < 0.7


@pytest.mark.parametrize("seed", [3, 214, 1201])
def test_a_seed_replays_exactly(seed: int) -> None:
    assert schedule.run(seed, trace=True) == schedule.run(seed, trace=True)


def test_no_redis_outage_changes_the_primary() -> None:
    for outcome in many.redis_outages(1, 5):
        assert (outcome.leader_changes, outcome.not_resumed) == (0, 0), f"seed {outcome.seed}"
        assert outcome.outages == outages.PER_WORLD


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_safeguard_is_needed(mutation: Mutation) -> None:
    whole, caught = mutations.outcome(mutation)
    assert whole == ()
    assert {violation.property for violation in caught} & set(mutation.caught_by), (
        f"nothing noticed: {mutation.without}"
    )
