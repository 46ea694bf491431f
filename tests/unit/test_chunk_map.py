"""What is verified, by chunk and by byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core.swarm.suspects import MAX_SUSPECTS, QUARANTINE_S, Suspects
from modelsync.core.transfer.chunk_map import MAX_RANGES, ChunkMap, bits_within


def made(held: set[int], count: int = 10, chunk: int = 100, size: int = 950) -> ChunkMap:
    chunks = ChunkMap(range(0, chunk * count, chunk), size)
    for index in held:
        assert chunks.add(index)
    return chunks


@given(st.sets(st.integers(0, 9)))
def test_it_is_a_set(held: set[int]) -> None:
    chunks = made(held)
    assert set(chunks) == held
    assert len(chunks) == len(held)
    assert chunks.bits() == sum(1 << index for index in held)
    assert all((index in chunks) == (index in held) for index in range(-2, 12))
    assert not any(chunks.add(index) for index in held)


@given(st.sets(st.integers(0, 9)), st.integers(-5, 1000), st.integers(-5, 1000))
def test_only_verified_bytes_are_covered(held: set[int], start: int, end: int) -> None:
    expected = 0 <= start < end <= 950 and all(byte // 100 in held for byte in range(start, end))
    assert made(held).covers(start, end) == expected


@given(st.sets(st.integers(0, 9)), st.integers(-5, 1000))
def test_verified_bytes_end_where_the_first_missing_one_is(held: set[int], start: int) -> None:
    end = made(held).end_from(start)
    expected = next((byte for byte in range(max(start, 0), 950) if byte // 100 not in held), 950)
    assert end == (expected if 0 <= start < 950 else start)


@given(st.sets(st.integers(0, 9)))
def test_ranges_say_the_same_to_a_peer(held: set[int]) -> None:
    chunks = made(held)
    told = chunks.ranges()
    assert all(end < start for (_, end), (start, _) in pairwise(told))
    assert bits_within(told, range(0, 1000, 100), 950) == chunks.bits()


@given(st.lists(st.tuples(st.integers(0, 950), st.integers(0, 950))))
def test_a_peer_that_cuts_elsewhere_gives_whole_chunks_only(pairs: list[tuple[int, int]]) -> None:
    told = [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]
    bits = bits_within(told, range(0, 1000, 100), 950)
    for index in range(10):
        start, end = 100 * index, min(950, 100 * index + 100)
        assert bool(bits >> index & 1) == any(first <= start and end <= last for first, last in told)


def test_what_is_told_is_bounded() -> None:
    count = 2 * MAX_RANGES + 10
    chunks = ChunkMap(range(count), count)
    for index in range(0, count, 2):
        chunks.add(index)
    assert len(chunks.ranges()) == MAX_RANGES


@given(st.integers(0, 2**40 - 1))
def test_what_is_coming_is_told_in_ranges(coming: int) -> None:
    chunks = ChunkMap(range(0, 400, 10), 395)
    chunks.coming = coming
    assert bits_within(chunks.coming_ranges(), range(0, 400, 10), 395) == coming


def test_an_empty_object() -> None:
    chunks = ChunkMap(range(0), 0)
    assert (chunks.bits(), chunks.ranges(), chunks.covers(0, 0)) == (0, [], False)


@pytest.mark.parametrize(("after_s", "names"), [(0.0, ["b"]), (QUARANTINE_S - 1, ["b"]), (QUARANTINE_S + 1, [])])
def test_a_suspect_is_named_for_a_while(after_s: float, names: list[str]) -> None:
    suspects = Suspects()
    suspects.accuse("b", 0.0)
    assert suspects.names(after_s) == names
    assert suspects.without(["a", "b"], after_s) == [name for name in ("a", "b") if name not in names]


def test_suspects_are_better_than_nobody_and_bounded() -> None:
    suspects = Suspects()
    for number in range(MAX_SUSPECTS + 1):
        suspects.accuse(f"n{number}", float(number))
    assert suspects.without(["n1000"], 1000.0) == ["n1000"]
    suspects.accuse("late", 10 * QUARANTINE_S)
    assert suspects.names(10 * QUARANTINE_S) == ["late"]
