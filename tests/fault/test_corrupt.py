"""A sample of what `tools/faults corrupt` does ten thousand times."""

from __future__ import annotations

import pytest
from tests.fault import corrupt

from modelsync.edges.pull import batch_fetch


def test_no_damaged_transfer_is_installed() -> None:
    tally = corrupt.run(200, seed=1)
    assert sum(tally.damaged.values()) > 190
    assert sum(tally.refused.values()) + tally.harmless == sum(tally.damaged.values())
    assert tally.harmless < 10
    assert (tally.wrong, tally.accepted) == ([], [])


def test_the_tally_sees_what_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of a digest there must be failures, or the zero above means nothing."""

    class Same:
        def __ne__(self, _: object) -> bool:
            return False

        def __eq__(self, _: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    monkeypatch.setattr(batch_fetch, "Digest", lambda _: Same())
    tally = corrupt.run(60, seed=1)
    assert tally.wrong != []
