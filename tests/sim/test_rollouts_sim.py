"""Rollouts in simulation, as part of the tests: enough schedules to notice, and safeguards whose removal is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from modelsync.core.catalog import ModelRecord
from modelsync.core.ids import EntryId
from modelsync.core.rollout import orders as rollout_orders
from modelsync.core.rollout import steps as rollout_steps
from modelsync.core.rollout.steps import Write
from tests.sim import many, rollouts

SEEDS = 300


def test_no_schedule_is_half_flipped_or_past_a_failed_gate() -> None:
    outcomes = list(many.rollout_schedules(1, SEEDS))
    broken = {outcome.seed: outcome.violations[0] for outcome in outcomes if outcome.violations}
    assert broken == {}, "replay with tools/simulate rollouts --seed N --trace"
    for name, least in (("flipped", 0.5), ("aborted", 0.3), ("rolled_back", 0.15), ("waves_passed", 0.4)):
        assert sum(getattr(outcome, name) for outcome in outcomes) > least * SEEDS, f"{name}: nothing is exercised"


@pytest.mark.parametrize("seed", [2, 145])
def test_a_seed_replays_exactly(seed: int) -> None:
    assert rollouts.run(seed, trace=True) == rollouts.run(seed, trace=True)


def _advanced_blindly(record: ModelRecord, write: Write, at: EntryId) -> ModelRecord:
    assert record.rollout is not None
    blind = replace(write, decided_on=record.rollout)
    return original_advanced(record, blind, at)


original_advanced = rollout_orders.advanced


@pytest.mark.parametrize(
    ("where", "name", "without"),
    [
        (rollout_orders, "advanced", _advanced_blindly),
        (rollout_steps, "_speaks_of", lambda host, rollout: True),
        (rollout_steps, "_gate_answered", lambda watch, event: (replace(watch, passed_s=1e9, answered_s=1e9), ())),
    ],
    ids=["a decision is void once the rollout has moved on", "an answer is for this rollout", "the gate counts"],
)
def test_every_safeguard_is_needed(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, without: Callable[..., object]
) -> None:
    monkeypatch.setattr(where, name, without)
    assert any(rollouts.run(seed).violations for seed in range(1, 200)), "nothing noticed"
