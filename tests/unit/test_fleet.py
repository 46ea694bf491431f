"""The fleet's record: every change, what becomes of a switchover, and hostile fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core import fleet
from modelsync.core.errors import MalformedMessage, PolicyRefusal, TargetBehind
from modelsync.core.fleet import DONE, FAILED, HANDING_OVER, MAX_TERMS, FleetRecord, Switchover, Term
from modelsync.core.ids import EntryId
from modelsync.core.status import NodeReport

NOW = EntryId(4, 9)
JOB = Switchover("a", "b", "ada", 5)


def node(
    name: str, *, applied: EntryId = NOW, lost: bool = False, eligible: bool = True, priority: int = 0
) -> NodeReport:
    return NodeReport(
        name,
        "replica",
        f"http://{name}",
        "ok",
        99.0 if lost else 0.1,
        applied=applied,
        priority=priority,
        eligible=eligible,
    )


@pytest.mark.parametrize(
    ("job", "new", "state", "target"),
    [
        (JOB, "b", DONE, "b"),
        (JOB, "c", FAILED, "b"),
        (JOB, "a", FAILED, "b"),
        (Switchover("a", "", "ada", 5), "c", DONE, "c"),
        (Switchover("a", "", "ada", 5), "a", FAILED, ""),
        (Switchover("a", "b", "ada", 5, DONE), "c", DONE, "b"),
    ],
)
def test_a_new_primary_says_what_became_of_a_switchover(job: Switchover, new: str, state: str, target: str) -> None:
    record = fleet.took_office(FleetRecord(switchover=job), Term(5, new, 7, "why"), NOW)
    assert record.switchover is not None
    assert (record.switchover.state, record.switchover.target) == (state, target)
    assert (record.switchover.reason != "") == (state == FAILED)


def test_terms_are_newest_first_and_bounded() -> None:
    record = FleetRecord()
    for epoch in range(1, MAX_TERMS + 20):
        record = fleet.took_office(record, Term(epoch, "a", epoch, "w"), EntryId(epoch, 1))
    assert [term.epoch for term in record.terms] == list(range(MAX_TERMS + 19, 19, -1))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (FleetRecord(), "the fleet's first primary"),
        (FleetRecord(terms=(Term(1, "a", 1, ""),)), "it was primary before and came back"),
        (FleetRecord(terms=(Term(1, "b", 1, ""),)), "b let go of the lease or fell silent"),
        (FleetRecord(terms=(Term(1, "b", 1, ""),), switchover=JOB), "switchover from a, asked for by ada"),
        (
            FleetRecord(terms=(Term(1, "b", 1, ""),), switchover=Switchover("a", "b", "ada", 5, DONE)),
            "b let go of the lease or fell silent",
        ),
    ],
)
def test_why_a_term_begins(record: FleetRecord, why: str) -> None:
    assert fleet.why_term(record, "a") == why


def test_pause_resume_forget_and_return() -> None:
    record = fleet.paused(FleetRecord(), "", NOW)
    assert record.paused and record.paused_by == "somebody"
    assert not fleet.resumed(record, NOW.next()).paused
    record = fleet.forgot(fleet.forgot(record, "x", NOW), "y", NOW.next())
    assert record.forgotten == {"x", "y"} and record.id == NOW.next()
    assert fleet.remembered(record, ["x", "z"], NOW).forgotten == {"y"}


@pytest.mark.parametrize(
    ("asked", "nodes", "chosen"),
    [
        ("", [node("a"), node("b"), node("c", priority=5)], "c"),
        ("", [node("a"), node("b", applied=EntryId(4, 10)), node("c", priority=5)], "b"),
        ("", [node("a"), node("c"), node("b")], "b"),
        ("c", [node("a"), node("b"), node("c")], "c"),
    ],
)
def test_who_takes_over(asked: str, nodes: list[NodeReport], chosen: str) -> None:
    assert fleet.switchover_target(asked, "a", nodes) == chosen


@pytest.mark.parametrize(
    ("asked", "nodes"),
    [
        ("", [node("a")]),
        ("", [node("a"), node("b", lost=True), node("c", eligible=False)]),
        ("b", [node("a"), node("b", lost=True), node("c")]),
        ("b", [node("a"), node("b", eligible=False), node("c")]),
        ("a", [node("a"), node("b")]),
        ("z", [node("a"), node("b")]),
    ],
)
def test_who_cannot_take_over(asked: str, nodes: list[NodeReport]) -> None:
    with pytest.raises(PolicyRefusal):
        fleet.switchover_target(asked, "a", nodes)


def test_one_that_has_not_reported_in_this_term_may_still_do_so() -> None:
    with pytest.raises(TargetBehind, match="b is behind"):
        fleet.switchover_target("b", "a", [node("a"), node("b", applied=EntryId(3, 99)), node("c")])


def test_only_a_lost_node_is_forgotten() -> None:
    fleet.forgettable("b", [node("a"), node("b", lost=True)])
    for name in ("a", "z"):
        with pytest.raises(PolicyRefusal):
            fleet.forgettable(name, [node("a"), node("b", lost=True)])


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)
terms = st.builds(Term, st.integers(0, 2**40), names, st.integers(0, 2**45), st.text(max_size=20))
jobs = st.builds(
    Switchover,
    names,
    names,
    st.text(max_size=9),
    st.integers(0, 2**45),
    st.sampled_from([HANDING_OVER, DONE, FAILED]),
    st.text(max_size=9),
)
records = st.builds(
    FleetRecord,
    st.just(NOW),
    st.text(max_size=9),
    st.lists(terms, max_size=5).map(tuple),
    st.none() | jobs,
    st.frozensets(names),
)


@given(records)
def test_fields_bring_the_record_back(record: FleetRecord) -> None:
    assert fleet.from_fields(fleet.to_fields(record)) == record


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "x"},
        {"terms": "{}"},
        {"terms": '[{"epoch": "1"}]'},
        {"terms": '[{"epoch": true, "node": "a", "since_ms": 1, "why": ""}]'},
        {"terms": "[[[["},
        {"switchover": "[]"},
        {"switchover": '{"source": "a"}'},
        {"forgotten": '["../x"]'},
        {"forgotten": '{"a": 1.5}'},
    ],
)
def test_hostile_fields_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(MalformedMessage):
        fleet.from_fields(fields)
