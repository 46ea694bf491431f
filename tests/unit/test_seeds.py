"""Seed maps: their text, what hostile ones are refused for, and what a receiver plans from honest ones."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES, FileEntry
from modelsync.core.transfer import seeds
from modelsync.core.transfer.seeds import Span

A, B, C = (Digest(bytes([number]) * 32) for number in (1, 2, 3))
MIB = CHUNK_BYTES


def entry(size_bytes: int = 4 * MIB) -> FileEntry:
    return FileEntry("model.bin", size_bytes, 0o644, C, chunk_list=B)


@st.composite
def layers(draw: st.DrawFn, base: Digest = A) -> tuple[Span, ...]:
    position, made = 0, []
    rows = st.tuples(st.integers(0, 9000), st.integers(4096, 90_000), st.integers(0, 99_999))
    for gap, size, at in draw(st.lists(rows, max_size=9)):
        made.append(Span(position + gap, size, base, at))
        position += gap + size
    return tuple(made)


@given(st.lists(layers(), max_size=4))
def test_written_and_read_back(made: list[tuple[Span, ...]]) -> None:
    assert seeds.decode(seeds.encode(made), entry()) == tuple(made)


def test_the_bytes() -> None:
    data = seeds.encode([(Span(0, 5000, B, 7), Span(6000, 10, A, 0))])
    assert data.decode() == f'{{"bases":["{A}","{B}"],"format":1,"layers":[[[0,5000,1,7],[6000,10,0,0]]]}}'


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([[[0, 10, 0]]], "a span is not four whole numbers"),
        ([[[0, 10, 0, True]]], "a span is not four whole numbers"),
        ([[[0, 10, 1, 0]]], "a span names no base"),
        ([[[0, 10, -1, 0]]], "a span names no base"),
        ([[[0, 0, 0, 0]]], "spans overlap"),
        ([[[0, 10, 0, -1]]], "spans overlap"),
        ([[[0, 10, 0, 0], [9, 1, 0, 0]]], "spans overlap"),
        ([[[4 * MIB, 1, 0, 0]]], "a span ends after the file"),
        ([[], [], [], [], []], "too many layers"),
        ({}, "not a list"),
    ],
)
def test_hostile_maps(layers: object, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        seeds.decode(canonical.encode({"format": 1, "bases": [str(A)], "layers": layers}), entry())


def test_other_forms() -> None:
    for value in ([], {}, {"format": 2, "bases": [], "layers": []}, {"format": True, "bases": [], "layers": []}):
        with pytest.raises(MalformedMessage):
            seeds.decode(canonical.encode(value), entry())
    with pytest.raises(BadName):
        seeds.decode(canonical.encode({"format": 1, "bases": ["../x"], "layers": []}), entry())
    with pytest.raises(MalformedMessage, match="bytes"):
        seeds.decode(b" " * (seeds.MAX_MAP_BYTES + 1), entry())


# --- composing --------------------------------------------------------------------------------------------------------


@given(st.data())
def test_a_map_through_a_map_says_what_both_say_one_after_the_other(data: st.DataObject) -> None:
    unit = 4096
    middle_from = data.draw(st.lists(st.integers(-1, 4), min_size=1, max_size=8))
    new_from = data.draw(st.lists(st.integers(-1, len(middle_from) - 1), min_size=1, max_size=8))
    to_oldest = tuple(Span(i * unit, unit, A, o * unit) for i, o in enumerate(middle_from) if o >= 0)
    to_middle = tuple(Span(i * unit, unit, B, o * unit) for i, o in enumerate(new_from) if o >= 0)
    expected = [
        Span(i * unit, unit, A, middle_from[o] * unit) for i, o in enumerate(new_from) if o >= 0 and middle_from[o] >= 0
    ]
    assert seeds.joined(seeds.composed(to_middle, to_oldest)) == seeds.joined(expected)


def test_a_map_through_a_map_cuts_what_lies_across() -> None:
    older = (Span(0, 10_000, A, 500), Span(12_000, 50_000, A, 90_000))
    assert seeds.composed((Span(100, 40_000, B, 5_000),), older) == (
        Span(100, 5_000, A, 5_500),
        Span(7_100, 33_000, A, 90_000),
    )


def test_trimming_keeps_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "MAX_SPANS", 2)
    spans = [Span(0, 5000, A, 0), Span(10_000, 9000, A, 0), Span(20_000, 4000, A, 0), Span(30_000, 7000, A, 0)]
    assert [span.size_bytes for span in seeds.trimmed(spans)] == [9000, 7000]


# --- the receiver -----------------------------------------------------------------------------------------------------


def test_the_layer_with_most_held_bytes_is_used() -> None:
    near, far = (Span(0, 100, A, 0), Span(200, 10, B, 0)), (Span(0, 50, B, 0),)
    assert seeds.usable([near, far], lambda digest: True) == near
    assert seeds.usable([near, far], lambda digest: digest == B) == far
    assert seeds.usable([near, far], lambda digest: False) == ()
    assert seeds.usable([], lambda digest: True) == ()


def test_chunks_are_made_of_pieces_and_holes() -> None:
    layer = (Span(0, MIB + 100, A, 64), Span(MIB + 200, 2 * MIB, A, 2 * MIB))
    first, second, third = seeds.assemblies(entry(), range(4), layer)
    assert (first.index, first.gaps) == (0, ())
    assert second.gaps == ((MIB + 100, 100),)
    assert third.pieces == (Span(2 * MIB, MIB, A, 3 * MIB - 200),)
    assert seeds.joined([*first.pieces, *second.pieces, *third.pieces]) == [
        Span(0, MIB + 100, A, 64), Span(MIB + 200, 2 * MIB - 200, A, 2 * MIB)
    ]  # fmt: skip


def test_a_chunk_of_mostly_holes_is_left_to_the_peers() -> None:
    half = (Span(0, MIB // 2 - 1, A, 0),)
    assert seeds.assemblies(entry(), [0, 1], half) == []
    many = tuple(Span(at * 60_000, 55_000, A, 0) for at in range(17))
    assert seeds.assemblies(entry(), [0], many) == []
    assert seeds.assemblies(entry(), [1], (Span(0, 4 * MIB, A, 0),))[0].pieces == (Span(MIB, MIB, A, MIB),)


@given(layers(), st.sets(st.integers(0, 1)))
def test_pieces_and_holes_are_the_whole_chunk(layer: tuple[Span, ...], missing: set[int]) -> None:
    made = entry(MIB + 5000)
    for plan in seeds.assemblies(made, missing, layer):
        offset, size = made.chunk_range(plan.index)
        ranges = sorted([*plan.gaps, *((piece.offset, piece.size_bytes) for piece in plan.pieces)])
        assert ranges[0][0] == offset
        assert sum(length for _, length in ranges) == size
        assert all(at + length == after for (at, length), (after, _) in itertools.pairwise(ranges))
