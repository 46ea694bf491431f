"""Garbage collection in a shared store, in simulation: nothing that is kept is lost; each schedule replays."""

from __future__ import annotations

import pytest

from modelsync.core.ids import Digest
from modelsync.core.storage.condemned import CondemnedLog, Kind, Name
from tests.sim import garbage

SEEDS = 80


def test_no_kept_version_loses_an_object() -> None:
    outcomes = [garbage.run(seed) for seed in range(1, SEEDS + 1)]
    assert {one.seed: one.violations[0] for one in outcomes if one.violations} == {}
    assert [one.faults for one in outcomes if one.faults] == []
    for name, least in (("published", 6), ("refused", 0.5), ("deleted", 3), ("rounds", 4), ("put_again", 1)):
        assert sum(getattr(one, name) for one in outcomes) > least * SEEDS, f"{name}: nothing is exercised"


def test_a_seed_replays_exactly() -> None:
    assert garbage.run(7) == garbage.run(7)


def test_a_name_that_is_used_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delete of a collector that was stopped meets the bytes that somebody has put there meanwhile."""

    def first(log: CondemnedLog, kind: Kind, digest: Digest) -> Name:
        return Name(kind, digest.hex)

    monkeypatch.setattr(CondemnedLog, "usable", first)
    assert any(garbage.run(seed).violations for seed in range(1, SEEDS + 1))
