"""A side of a pull dies in the middle: a sample of what ``tools/faults resume`` does at many bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fault.resume import KINDS, SIZES, Tally, Trials


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[3]])
def test_nothing_verified_is_fetched_twice(tmp_path: Path, kind: str) -> None:
    tally, trials = Tally(), Trials(tmp_path, seed=5)
    try:
        trials.trial(kind, SIZES[0], tally)
    finally:
        trials.close()
    assert (tally.trials, tally.wrong, tally.twice) == (1, [], [])
