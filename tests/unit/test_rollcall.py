"""Who is read again, who counts as alive, and what that costs: core.rollcall over a Redis in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from modelsync.core import rollcall
from modelsync.core.election.candidacy import Eligibility, Rival, watch_every_s
from modelsync.core.election.lease import Timing
from modelsync.core.rollcall import RollCall
from modelsync.core.status import UNREAD, NodeReport


@dataclass
class Fleet:
    """Nodes that report, and one that looks, in virtual time."""

    now_s: float = 1000.0
    said: dict[str, str] = field(default_factory=dict)
    beats: dict[str, str] = field(default_factory=dict)
    wrote_s: dict[str, float] = field(default_factory=dict)
    reads: int = 0
    roll: RollCall = field(default_factory=RollCall)

    def report(self, name: str, said: str = "", *, old: bool = False) -> None:
        """``old``: a daemon of a release that knows no beats."""
        self.said[name], self.wrote_s[name] = said, self.now_s
        if not old:
            self.beats[name] = f"{name}.{said} {self.now_s}"

    def look(self, most: int | None = None, *first: str) -> dict[str, NodeReport]:
        self.roll.looked(sorted(self.said), self.beats, self.now_s)
        due = self.roll.due(self.now_s, most, first)
        assert len(due) == len(set(due))
        self.reads += len(due)
        self.roll.read(due, [self._read(name) for name in due if name in self.wrote_s], self.now_s)
        return {node.id: node for node in self.roll.nodes(self.now_s)}

    def _read(self, name: str) -> NodeReport:
        extra: dict[str, Any] = {"transfers": {"m": {}}} if self.said[name] == "pulling" else {}
        return NodeReport(
            name, "replica", f"http://{name}", self.said[name], self.now_s - self.wrote_s[name], extra=extra
        )


def alive(nodes: dict[str, NodeReport]) -> set[str]:
    return {name for name, node in nodes.items() if not node.lost}


def test_what_has_not_changed_is_not_read_again() -> None:
    fleet = Fleet()
    for turn in range(50):
        for name in "abcde":
            fleet.report(name, "ok")
        nodes = fleet.look()
        assert alive(nodes) == set("abcde") and {node.state for node in nodes.values()} == {"ok"}
        assert turn == 0 or fleet.reads <= 5 + turn, "one more each look, to be sure"
        fleet.now_s += 2
    fleet.report("c", "degraded")
    assert fleet.look()["c"].state == "degraded"


def test_who_stops_is_lost_after_ten_seconds_and_its_report_is_asked_first() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.report("a")
        fleet.report("b")
        fleet.look()
        fleet.now_s += 2
    for seconds in range(2, 20, 2):
        fleet.report("a")
        nodes = fleet.look()
        assert ("b" in alive(nodes)) == (seconds <= 10), seconds
        fleet.now_s += 2
    fleet.report("b")
    assert alive(fleet.look()) == {"a", "b"}


def test_a_daemon_of_an_earlier_release_is_read_as_ever() -> None:
    """Also one that was taken back to it: its beat stands still, and its report goes on."""
    fleet = Fleet()
    for turn in range(20):
        fleet.report("new")
        fleet.report("old", f"{turn}", old=True)
        fleet.report("back", f"{turn}", old=turn > 5)
        nodes = fleet.look(rollcall.AT_ONCE)
        assert alive(nodes) == {"new", "old", "back"} and nodes["old"].state == f"{turn}"
        fleet.now_s += 2


def test_a_large_fleet_is_read_by_and_by_and_what_matters_first() -> None:
    fleet = Fleet()
    names = [f"n{number:03}" for number in range(500)]
    for name in names:
        fleet.report(name, "v1")
    nodes = fleet.look(rollcall.AT_ONCE, "n400")
    assert fleet.reads == rollcall.AT_ONCE and nodes["n400"].state == "v1"
    assert len(nodes) == 500, "everybody is known by name: majorities are counted of them"
    assert {node.stale for node in nodes.values() if node.state == UNREAD} == {True}
    looks = 1
    while any(node.stale for node in nodes.values()):
        fleet.now_s += 10
        for name in names:
            fleet.report(name, "v1")
        nodes, looks = fleet.look(rollcall.AT_ONCE), looks + 1
    assert looks == 8 and alive(nodes) == set(names)
    fleet.reads = 0
    for _ in range(100):
        fleet.now_s += 10
        for name in names:
            fleet.report(name, "v1")
        fleet.look(rollcall.AT_ONCE)
    assert fleet.reads == 100, "a fleet in which nothing happens"


def test_a_report_that_has_changed_since_is_known_to_be_old() -> None:
    fleet = Fleet()
    for number in range(100):
        fleet.report(f"n{number}", "v1")
    fleet.look()
    for number in range(100):
        fleet.report(f"n{number}", "v2")
    nodes = fleet.look(10)
    assert {(node.state, node.stale) for node in nodes.values()} == {("v1", True), ("v2", False)}


def test_where_something_moves_the_holder_reads_again() -> None:
    fleet = Fleet()
    for number in range(10):
        fleet.report(f"n{number}", "pulling" if number < 3 else "ok")
    fleet.look()
    fleet.reads = 0
    fleet.look()
    assert fleet.reads == 3 + 1


def test_a_wiped_redis_and_a_forgotten_node() -> None:
    fleet = Fleet()
    for name in "ab":
        fleet.report(name)
    fleet.look()
    fleet.said.clear(), fleet.beats.clear(), fleet.wrote_s.clear()
    assert fleet.look() == {}
    for name in "ab":
        fleet.report(name, "again")
    assert {node.state for node in fleet.look().values()} == {"again"}
    del fleet.said["a"]
    assert set(fleet.look()) == {"b"}, "a beat alone makes no member"


def test_who_was_silent_for_an_hour_is_gone() -> None:
    fleet = Fleet()
    fleet.report("a")
    fleet.look()
    fleet.now_s += rollcall.GONE_S + 1
    del fleet.wrote_s["a"]
    assert fleet.look() == {}


@pytest.mark.parametrize(("nodes", "every_s"), [(3, 2.0), (100, 2.0), (250, 5.0), (10_000, 10.0)])
def test_looks_come_more_seldom_in_a_large_fleet(nodes: int, every_s: float) -> None:
    assert rollcall.look_every_s(nodes, primary=False) == every_s
    assert rollcall.look_every_s(nodes, primary=True) == 2.0


def test_only_who_may_be_next_looks_at_the_lease_with_each_heartbeat() -> None:
    timing = Timing(ttl_s=3.0, heartbeat_s=0.25)
    small = Eligibility(rivals=[Rival(f"n{number}") for number in range(6)])
    large = Eligibility(rivals=[Rival(f"n{number}", eligible=number < 10) for number in range(100)])
    assert watch_every_s("n5", "n0", small, timing) == 0.25
    assert [watch_every_s(f"n{number}", "n0", large, timing) for number in (1, 8)] == [0.25, 0.25]
    assert [watch_every_s(f"n{number}", "n0", large, timing) for number in (9, 50)] == pytest.approx([1.2, 1.2])
    excluded = Eligibility(excluded="nofailover", rivals=large.rivals[:9])
    assert watch_every_s("n8", "n0", excluded, timing) == pytest.approx(1.2)
    assert 0.5 * timing.ttl_s > 1.2, "an observation further apart begins anew"
