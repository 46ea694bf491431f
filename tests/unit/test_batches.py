"""Which files travel together, and in which requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.core.transfer import batches

MIB = 1 << 20


def entry(number: int, size_bytes: int) -> FileEntry:
    return FileEntry(f"f{number}", size_bytes, 0o644, Digest(number.to_bytes(32, "big")))


def test_small_files_travel_together_when_there_are_many() -> None:
    small, large = [entry(n, MIB) for n in range(16)], entry(99, MIB + 1)
    assert batches.together([large, *small]) == (small, [large])
    assert batches.together([large, *small[1:]]) == ([], [*small[1:], large])
    assert batches.together([*small, *small]) == (small, [])


@given(st.lists(st.integers(0, MIB), max_size=300))
def test_requests_hold_every_file_once_in_order_and_stay_small(sizes: list[int]) -> None:
    entries = [entry(number, size) for number, size in enumerate(sizes)]
    parts = batches.requests(entries)
    assert [each for part in parts for each in part] == entries
    for part in parts:
        assert 0 < len(part) <= batches.MAX_OBJECTS
        assert sum(each.size_bytes for each in part) <= batches.MAX_BATCH_BYTES


def test_a_request_names_a_thousand_files_at_most() -> None:
    parts = batches.requests([entry(number, 0) for number in range(2500)])
    assert [len(part) for part in parts] == [1024, 1024, 452]
