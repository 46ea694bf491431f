"""What the inference server keeps out of the garbage collector's way, and how seldom it does."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator

import pytest

from modelsync.serve.collecting import LIBRARY_MODULES, Collecting


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_once_at_the_start_and_again_when_a_library_came(monkeypatch: pytest.MonkeyPatch) -> None:
    collecting = Collecting()
    assert collecting.settled()
    frozen = gc.get_freeze_count()
    assert frozen > 1000

    kept = [[number] for number in range(5000)]
    assert not collecting.settled(), "a load that imports nothing sets nothing aside: its garbage would stay"
    assert gc.get_freeze_count() <= frozen

    for number in range(LIBRARY_MODULES):
        monkeypatch.setitem(sys.modules, f"a_library_{number}", types.ModuleType("a_library"))
    assert collecting.settled()
    assert gc.get_freeze_count() >= frozen + len(kept) - 1000
