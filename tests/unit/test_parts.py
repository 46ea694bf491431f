"""core.storage.parts, core.storage.placing: what lies in which part, what a report may say, how pieces come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_catalog import record

from modelsync.core import status
from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import Digest, EntryId, ModelName, NodeId, Version
from modelsync.core.manifest import FileEntry
from modelsync.core.status import NodeReport
from modelsync.core.storage import modes, parts, placing, shown
from modelsync.core.storage.modes import Placement
from modelsync.core.storage.placement import Place
from modelsync.core.storage.placing import Kept

A, B, C, D = (NodeId(name) for name in "abcd")
PLACES = [Place(name) for name in "abcd"]


def file(number: int, size_bytes: int, content: int | None = None) -> FileEntry:
    digest = Digest((number if content is None else content).to_bytes(32, "big"))
    return FileEntry(f"shard-{number:04}", size_bytes, 0o644, digest, (digest,))


@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=60), st.integers(1, 64))
def test_every_file_has_one_part_and_parts_are_even(sizes: list[int], count: int) -> None:
    files = [file(number, size) for number, size in enumerate(sizes)]
    groups = parts.split(files, count)
    assert len(groups) == count
    assert sorted(digest for group in groups for digest in group) == sorted(entry.digest for entry in files)
    assert groups == parts.split(reversed(files), count), "whatever the order in which it is told"
    bytes_of = parts.sizes_of(files, count)
    assert sum(bytes_of) == sum(sizes)
    assert max(bytes_of) <= sum(sizes) / count + max(sizes), "no part is above the mean by more than a file"


def test_a_retrained_model_s_files_stay_in_their_parts() -> None:
    first = [file(number, 1000 + number % 3) for number in range(20)]
    second = [file(number, 1000 + number % 3, content=500 + number) for number in range(20)]

    def paths(files: list[FileEntry]) -> list[set[str]]:
        return [{entry.path for entry in files if entry.digest in group} for group in parts.split(files, 6)]

    assert paths(first) == paths(second)


@pytest.mark.parametrize(
    ("sizes", "split_bytes", "count"),
    [
        ([10, 10, 10], 0, 1),
        ([10, 10, 10], 30, 1),
        ([10, 10, 10], 29, 2),
        ([10, 10, 10], 1, 3),  # never more than there are files
        ([1000], 1, 1),  # a file is never split
        ([1] * 1000, 1, parts.MAX_PARTS),
        ([0, 0], 5, 1),
    ],
)
def test_how_many_parts(sizes: list[int], split_bytes: int, count: int) -> None:
    assert parts.number_of([file(number, size) for number, size in enumerate(sizes)], split_bytes) == count


def test_one_content_under_two_paths_lies_once() -> None:
    files = [file(1, 10, content=7), file(2, 10, content=7), file(3, 10)]
    assert sorted(map(len, parts.split(files, 2))) == [1, 1]


# --- what nodes say --------------------------------------------------------------------------------------------------


def line(held: list[int], told: dict[int, list[int]] | None = None, count: int = 3) -> dict[str, object]:
    return status.node_model(
        active=None, wanted=None, held=[Version(n) for n in held], state="part", error=None, why="",
        parts={Version(n): each for n, each in (told or {}).items()}, shares=count,
    )  # fmt: skip


def test_what_a_node_tells_is_what_others_hear() -> None:
    said = status.parse_node_models({"m": line([1], {2: [0, 2]})})["m"]
    assert [parts.holds(said, 1, part, 3) for part in (0, 1, 2, None)] == [True] * 4
    assert [parts.holds(said, 2, part, 3) for part in (0, 1, 2, None)] == [True, False, True, True]
    assert not parts.holds(said, 2, 0, 4), "it spoke of another number of parts"
    assert not parts.holds(said, 3, None, 3)


@pytest.mark.parametrize(
    "said",
    [
        [],
        {"of": 3},
        {"of": "3", "held": {}},
        {"of": True, "held": {}},
        {"of": 1, "held": {}},
        {"of": 10**9, "held": {}},
        {"of": 3, "held": {"1": "0"}},
        {"of": 3, "held": {"1": [True]}},
        {"of": 3, "held": {"1": [None]}},
        {"of": 3, "held": [], "more": 1},
    ],
)
def test_a_hostile_report_of_parts_is_refused(said: object) -> None:
    with pytest.raises(MalformedMessage):
        status.parse_node_models({"m": {"active": None, "held": [], "parts": said}})


def test_copies_are_those_of_the_rarest_part() -> None:
    nodes = [
        {"state": "ok", "epoch": 1, "models": {"m": line([1])}},
        {"state": "ok", "epoch": 1, "models": {"m": line([], {1: [0, 1]})}},
        {"state": "ok", "epoch": 1, "models": {"m": line([], {1: [2]})}},
        {"state": "lost", "epoch": 1, "models": {"m": line([1])}},
        {"state": "ok", "epoch": 1, "models": {}},
    ]
    assert status.copies({"nodes": nodes}, "m", 1, EntryId(1, 1)) == 2
    assert status.copies({"nodes": nodes[1:]}, "m", 1, EntryId(1, 1)) == 1
    assert status.copies({"nodes": nodes[2:]}, "m", 1, EntryId(1, 1)) == 0
    assert status.copies({"nodes": []}, "m", 1, EntryId(1, 1)) == 0


def test_a_version_that_lies_in_parts_is_retained_while_each_has_a_holder() -> None:
    def nodes(*told: dict[int, list[int]]) -> list[NodeReport]:
        return [NodeReport(f"n{at}", "", "", "ok", 0, models={"fraud": line([], each)}) for at, each in enumerate(told)]

    newest, oldest = status.history(record(1, 2), nodes({1: [0], 2: [0, 1]}, {1: [1], 2: [2]}))
    assert (newest["state"], oldest["state"]) == ("retained", "evicted")
    assert newest["hosts"] == {"n0": "part 1, 2 held", "n1": "part 3 held"}


# --- what the primary writes -----------------------------------------------------------------------------------------


def kept(now: Placement, holders: list[set[str]], copies: int = 2, silent: set[str] | None = None) -> Kept:
    held = tuple(map(frozenset, holders))
    return Kept("m", (100,) * len(holders), now, "partitioned", copies, held, frozenset(silent or ()))


IN_PARTS = Placement("partitioned", 2, (), ((A, B), (B, C), (C, D)))


def test_a_placement_in_parts_is_read_as_it_was_written_and_says_who_owns_what() -> None:
    assert modes.decode(modes.encode(IN_PARTS)) == IN_PARTS
    assert IN_PARTS.everyone == (A, B, C, D)
    assert IN_PARTS.owned("b") == {0, 1} and not IN_PARTS.owns_all("b")
    assert not modes.holds(IN_PARTS, "b", "m", modes.Demand(())), "nobody activates a part"
    assert modes.holds(Placement("partitioned", 1, (), ((A,), (A, B))), "a", "m", modes.Demand(()))


@pytest.mark.parametrize("text", ['"x"', "[[1]]", '[["../x"]]', "[" + ",".join(["[]"] * 65) + "]", '{"0":[]}'])
def test_hostile_parts_are_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        modes.decode(f'{{"copies":1,"mode":"partitioned","owners":[],"parts":{text}}}')


def test_a_model_is_split_among_those_who_hold_it_and_joined_again_among_any() -> None:
    whole = Placement("partitioned", 2, (A, B))
    split = placing.changes([kept(whole, [{"a", "b"}] * 3)], PLACES, 1)["m"]
    assert len(split.parts) == 3 and all(set(share) == {"a", "b"} for share in split.parts)
    joined = placing.changes([kept(IN_PARTS, [set()])], PLACES, 1)["m"]
    assert len(joined.owners) == 2 and not joined.parts, "nobody has the whole yet: its owners get it from the parts"


def test_one_part_s_lost_owner_is_replaced_and_the_others_stay() -> None:
    held = [{"a", "b"}, {"b"}, {"c", "d"}]
    after = placing.changes([kept(IN_PARTS, held)], [Place("a"), Place("b"), Place("c"), Place("d")], 4)
    assert after == {}, "it is an owner that has yet to pull, and is not replaced"
    gone = placing.changes([kept(IN_PARTS, [{"a", "b"}, {"b"}, {"d"}])], [Place("a"), Place("b"), Place("d")], 4)["m"]
    assert set(gone.parts[0]) == {"a", "b"}
    assert "b" in gone.parts[1] and "d" in gone.parts[2]
    assert all(len(set(share)) == 2 and C not in share for share in gone.parts)
    waited = placing.changes(
        [kept(IN_PARTS, [{"a", "b"}, {"b"}, {"d"}], silent={"c"})],
        [Place("a"), Place("b"), Place("c", accepting=False), Place("d")],
        4,
    )
    assert waited == {}


def test_the_plan_and_the_trouble_name_the_part() -> None:
    told = {"a": {4: [0]}, "b": {4: [0, 1]}, "c": {3: [2]}, "d": {}}
    nodes = [
        NodeReport(name, "replica", "", "ok", 0.1, models={"fraud": line([], held)}) for name, held in told.items()
    ]
    nodes.append(NodeReport("e", "replica", "", "ok", 99.0, models={"fraud": line([4])}))
    made = replace(record(4), placement=IN_PARTS)
    said = shown.document([made, replace(record(1), name=ModelName("everywhere"))], nodes, {"fraud": (5, 6, 7)})
    assert [(move["model"], move["to"], move["size_bytes"], move["living"]) for move in said["placement_plan"]] == [
        ("fraud part 3", "c", 7, 0),
        ("fraud part 3", "d", 7, 0),
        ("fraud part 2", "c", 6, 1),
    ]
    (fraud,) = said["placement"].values()
    assert fraud["living"] == 0 and [part["living"] for part in fraud["parts"]] == [2, 1, 0]
    assert fraud["trouble"] == (
        "part 2 of 3: under-replicated: 1 of 2 owners hold it; missing: c; "
        "part 3 of 3: no living node holds version 4: it is served again when one returns"
    )
    assert shown.document([record(1)], nodes, {}) == {}


def test_a_record_never_asks_for_fewer_copies_than_it_names_owners() -> None:
    """Of parts that no living host holds all owners stay, being who may bring them back."""
    lost = [kept(IN_PARTS, [set() for _ in IN_PARTS.shares], copies=1)]
    assert placing.changes(lost, PLACES, 4) == {}
    held = [kept(IN_PARTS, [set(share) for share in IN_PARTS.shares], copies=1)]
    after = placing.changes(held, PLACES, 1)["m"]
    assert (after.copies, {len(share) for share in after.shares}) == (1, {1})
