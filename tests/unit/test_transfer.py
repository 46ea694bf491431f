"""Which byte ranges a pull asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_manifest import entry

from modelsync.core.manifest import CHUNK_BYTES
from modelsync.core.transfer.ranges import MAX_RUN_BYTES, Run, runs

LONGEST = MAX_RUN_BYTES // CHUNK_BYTES


@pytest.mark.parametrize(
    ("size_bytes", "verified", "expected"),
    [
        (0, set(), []),
        (1, set(), [Run(0, 0)]),
        (1, {0}, []),
        (3 * CHUNK_BYTES, set(), [Run(0, 2)]),
        (3 * CHUNK_BYTES + 1, {1}, [Run(0, 0), Run(2, 3)]),
        (4 * CHUNK_BYTES, {0, 3}, [Run(1, 2)]),
        (MAX_RUN_BYTES, set(), [Run(0, LONGEST - 1)]),
        (MAX_RUN_BYTES + 1, set(), [Run(0, LONGEST - 1), Run(LONGEST, LONGEST)]),
        (MAX_RUN_BYTES + 1, {0}, [Run(1, LONGEST)]),
    ],
)
def test_runs(size_bytes: int, verified: set[int], expected: list[Run]) -> None:
    assert runs(entry(size_bytes=size_bytes), verified) == expected


def test_the_last_chunk_ends_with_the_file() -> None:
    item = entry(size_bytes=2 * CHUNK_BYTES + 7)
    assert Run(1, 2).byte_range(item) == (CHUNK_BYTES, 2 * CHUNK_BYTES + 7)


@given(st.integers(0, 900 * CHUNK_BYTES), st.sets(st.integers(0, 900)))
def test_runs_cover_exactly_what_is_missing_in_order(size_bytes: int, verified: set[int]) -> None:
    item = entry(size_bytes=size_bytes)
    asked = runs(item, verified)
    assert [n for run in asked for n in range(run.first, run.last + 1)] == sorted(
        set(range(item.chunk_count)) - verified
    )
    for run in asked:
        start, end = run.byte_range(item)
        assert 0 <= start < end <= size_bytes
        assert end - start <= MAX_RUN_BYTES
