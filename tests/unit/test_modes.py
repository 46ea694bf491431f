"""core.storage.modes: what a host must hold, may let go of, what the primary writes, by tables, hostile records."""

from __future__ import annotations

import pytest

from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import NodeId
from modelsync.core.storage import modes, placing, shown
from modelsync.core.storage.modes import Demand, Placement
from modelsync.core.storage.placement import Place
from modelsync.core.storage.placing import Kept

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
SPLIT = Placement("partitioned", 2, (A, B))
PLACES = [Place("a"), Place("b"), Place("c")]


@pytest.mark.parametrize(
    ("at", "node", "demand", "must"),
    [
        (Placement(), "c", Demand(()), True),
        (SPLIT, "a", Demand(()), True),
        (SPLIT, "c", Demand(("*",)), False),  # `ahead` is for shared models: it would make every host an owner
        (SPLIT, "c", Demand((), frozenset({"m"})), True),
        (Placement("shared"), "a", Demand(("*",)), True),
        (Placement("shared"), "a", Demand(("other-*",)), False),
        (Placement("shared"), "a", Demand((), frozenset({"m"})), True),
    ],
)
def test_what_must_be_held(at: Placement, node: str, demand: Demand, must: bool) -> None:
    assert modes.holds(at, node, "m", demand) is must


@pytest.mark.parametrize(
    ("at", "holders", "in_store", "may"),
    [
        (Placement(), {"a", "b"}, True, False),
        (Placement("shared"), {"a", "b"}, False, False),
        (Placement("shared"), set(), True, True),
        (SPLIT, {"a", "b"}, False, True),
        (SPLIT, {"a"}, True, False),
    ],
)
def test_what_may_be_let_go(at: Placement, holders: set[str], in_store: bool, may: bool) -> None:
    assert modes.may_let_go(at, 0, "c", holders, in_store=in_store) is may


@pytest.mark.parametrize("at", [Placement(), Placement("shared"), SPLIT])
def test_a_placement_is_read_as_it_was_written(at: Placement) -> None:
    assert modes.decode(modes.encode(at)) == at


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"copies":1,"mode":"raid","owners":[]}',
        '{"copies":-1,"mode":"shared","owners":[]}',
        '{"copies":true,"mode":"shared","owners":[]}',
        '{"copies":1,"mode":"partitioned","owners":"a"}',
        '{"copies":1,"mode":"partitioned","owners":["../x"]}',
        '{"copies":1,"mode":"partitioned","owners":[1]}',
        '{"copies":1,"copies":2,"mode":"shared","owners":[]}',
        "nonsense",
    ],
)
def test_a_hostile_placement_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        modes.decode(text)


def kept(now: Placement, holders: set[str], silent: set[str] = frozenset(), copies: int = 2) -> Kept:  # type: ignore[assignment]
    return Kept("m", (100,), now, "partitioned", copies, (frozenset(holders),), frozenset(silent))


def test_a_silent_owner_is_waited_for_and_a_gone_one_replaced() -> None:
    quiet = [Place("a", accepting=False), *PLACES[1:]]
    assert placing.changes([kept(SPLIT, {"b"}, {"a"})], quiet, 4) == {}
    after = placing.changes([kept(SPLIT, {"b"}, {"a"})], PLACES[1:], 4)
    assert set(after["m"].owners) == {"b", "c"}


def test_an_owner_without_room_is_replaced_unless_it_holds_it() -> None:
    full = [Place("a", accepting=False), *PLACES[1:]]
    assert placing.changes([kept(SPLIT, {"a", "b"})], full, 4) == {}
    assert set(placing.changes([kept(SPLIT, {"b"})], full, 4)["m"].owners) == {"b", "c"}


def test_owners_are_found_among_those_that_hold_it_when_the_mode_changes() -> None:
    after = placing.changes([kept(Placement(), {"b", "c"})], PLACES, 1)
    assert set(after["m"].owners) == {"b", "c"}


def test_more_copies_than_nodes_and_no_nodes_at_all() -> None:
    assert set(placing.changes([kept(Placement(), {"a"}, copies=5)], PLACES, 4)["m"].owners) == {"a", "b", "c"}
    assert placing.changes([kept(SPLIT, set())], [], 4) == {}, "owners that cannot be replaced stay written down"


@pytest.mark.parametrize(
    ("holders", "trouble"),
    [
        ({"a", "b"}, None),
        ({"a"}, "under-replicated: 1 of 2 owners hold it; missing: b"),
        ({"c"}, "under-replicated: 0 of 2 owners hold it; missing: a, b"),
        (set(), "no living node holds version 3: it is served again when one returns"),
    ],
)
def test_what_a_person_is_told(holders: set[str], trouble: str | None) -> None:
    assert shown.line(SPLIT, [holders], (9,), 3).get("trouble") == trouble  # type: ignore[arg-type]
