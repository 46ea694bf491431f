"""What Python is told to put off while a model is loaded, and that it is told the opposite again."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest

from modelsync.client import switching


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds, interval_s = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval_s)


def full_collections_beside(count: int) -> int:
    """How many of them begin while so many objects are made that stay."""
    begun = [0]

    def note(phase: str, info: dict[str, int]) -> None:
        begun[0] += phase == "start" and info["generation"] == 2

    gc.callbacks.append(note)
    try:
        kept = [[number] for number in range(count)]
    finally:
        gc.callbacks.remove(note)
    assert len(kept) == count
    return begun[0]


def test_a_load_has_nobody_wait_for_a_full_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.unfreeze()  # another test's
    monkeypatch.setattr(switching, "_set_aside", False)
    objects = max(200_000, len(gc.get_objects()))  # a quarter more than there are provokes one
    assert full_collections_beside(objects) > 0
    with switching.eager():
        assert full_collections_beside(objects) == 0
        assert gc.isenabled(), "young garbage is collected on"
    assert full_collections_beside(2_000) == 0, "what was put off does not begin as the load ends"
    assert gc.get_freeze_count() == 0
    assert full_collections_beside(2 * objects) > 0


def test_the_last_of_several_loads_puts_everything_back() -> None:
    gc.set_threshold(500, 7, 9)
    sys.setswitchinterval(0.003)
    entered, leave = threading.Event(), threading.Event()

    def other_load() -> None:
        with switching.eager():
            entered.set()
            leave.wait(30)

    with switching.eager():
        other = threading.Thread(target=other_load)
        other.start()
        entered.wait(30)
        assert sys.getswitchinterval() == pytest.approx(switching.INTERVAL_S)
    assert gc.get_threshold() != (500, 7, 9), "the other load is not over"
    leave.set()
    other.join()
    assert gc.get_threshold() == (500, 7, 9)
    assert sys.getswitchinterval() == pytest.approx(0.003)


def test_what_an_application_has_set_aside_stays_there_and_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes as long as there are objects, under Python's lock: each load would have requests wait for it."""
    monkeypatch.setattr(switching, "_set_aside", False)
    counts = []
    count = gc.get_freeze_count
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counts.append(count()) or counts[-1])
    gc.freeze()
    try:
        for _ in range(3):
            with switching.eager():
                pass
        assert len(counts) == 1
        assert count() > 0, "fewer than before, perhaps: what was set aside may die"
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("own", [(0, 10, 10), (1000, 20, 10)])
def test_an_application_that_has_set_its_collector_keeps_it(own: tuple[int, int, int]) -> None:
    gc.set_threshold(*own)
    with switching.eager():
        if not own[0]:
            assert gc.get_threshold() == own
        gc.set_threshold(901, 11, 12)
    assert gc.get_threshold() == (901, 11, 12)
