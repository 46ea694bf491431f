"""A rollout's steps as playbooks: what hosts and gate say, and what its holder writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import MalformedMessage, PolicyRefusal
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.rollout import orders as rollout_orders
from modelsync.core.rollout import record as rollout
from modelsync.core.rollout import steps as rollout_steps
from modelsync.core.rollout.record import Gate, Plan, Rollout
from modelsync.core.rollout.steps import AskGate, GateAnswered, Looked, Said, Watch, Write
from modelsync.core.status import NodeReport

ID, DIGEST, OTHER = EntryId(7, 1), Digest(b"a" * 32), Digest(b"b" * 32)
GATE = Gate("http://prometheus", "errors", 0.5)
PLAN = Plan(straggler_s=10, soak_s=20)


def roll(strategy: str, state: str, **changes: Any) -> Rollout:
    waves = (("a",), ("b", "c")) if strategy == rollout.WAVES else ()
    made = Rollout(ID, Version(2), DIGEST, strategy, state, ("a", "b", "c"), Version(1), waves, plan=PLAN)
    return replace(made, **changes)


def staged(node: str, **changes: Any) -> Said:
    return replace(Said(node, active=Version(1), acked=ID, digest=DIGEST, staged=True), **changes)


def looked(**changes: dict[str, Any]) -> Looked:
    return Looked({node: staged(node, **changes.get(node, {})) for node in "abc"})


def decided(found: Rollout, event: Looked, now_s: float = 1.0) -> tuple[str, str] | None:
    """The state that is written, and its reason."""
    _, effects = rollout_steps.step(Watch(found, 0.0), event, now_s)
    return next(((e.rollout.state, e.rollout.reason) for e in effects if isinstance(e, Write)), None)


@pytest.mark.parametrize(
    ("said", "now_s", "written"),
    [
        ({}, 1, ("moving", "")),
        ({"b": {"staged": False}}, 9.9, None),
        ({"b": {"staged": False}}, 10, ("aborted", "not staged within 10 s: b")),
        ({"b": {"acked": EntryId(7, 0)}}, 1, None),
        ({"b": {"digest": OTHER}}, 1, None),
        ({"b": {"lost": True}}, 1, None),
        ({"b": {"refused": "no"}}, 1, ("aborted", "b: no")),
        ({"b": {"refused": "no", "acked": EntryId(6, 9)}}, 1, None),
        ({"b": {"follows": False, "staged": False}}, 1, ("moving", "")),
    ],
)
def test_one_decision_of_a_together(said: dict[str, Any], now_s: float, written: tuple[str, str] | None) -> None:
    assert decided(roll("together", "staging"), looked(**said), now_s) == written


def test_a_host_that_vanished_from_the_reports_is_not_staged() -> None:
    assert decided(roll("together", "staging"), Looked({"a": staged("a"), "b": staged("b")})) is None


@pytest.mark.parametrize(
    ("strategy", "said", "now_s", "written"),
    [
        ("together", {}, 1, None),
        ("together", {node: {"active": 2} for node in "abc"}, 1, ("done", "")),
        ("together", {"a": {"active": 2}}, 10, ("done", "not there yet: b, c")),
        ("together", {"a": {"refused": "ill"}}, 1, ("rolled_back", "a: ill")),
        ("each", {"a": {"refused": "ill"}, "b": {"active": 2}, "c": {"active": 2}}, 1, ("done", "not there yet: a")),
    ],
)
def test_after_the_decision(strategy: str, said: dict[str, Any], now_s: float, written: tuple[str, str] | None) -> None:
    assert decided(roll(strategy, "moving"), looked(**said), now_s) == written


@pytest.mark.parametrize(
    ("line", "active"),
    [
        ({"active": 2}, 2),
        ({"active": 2, "trial": False}, 2),
        ({"active": 2, "trial": True}, None),  # its servers may still refuse it, and then the fleet goes back
        ({}, None),
    ],
)
def test_a_host_runs_a_version_once_its_servers_have_taken_it(line: dict[str, Any], active: int | None) -> None:
    report = NodeReport("a", "replica", "http://a", "ok", 0.1, models={"m": {"held": [], **line}})
    said = rollout_orders.said(report, ModelRecord(ModelName("m")))
    assert said.active == active
    moving = Looked({node: replace(said, node=node) for node in "abc"})
    assert decided(roll("together", "moving"), moving) == (("done", "") if active == 2 else None)


def test_a_wave_waits_for_its_own_hosts_alone() -> None:
    assert decided(roll("waves", "wave"), looked(a={"active": 2})) == ("soaking", "")
    assert decided(roll("waves", "wave"), looked(b={"active": 2})) is None
    assert decided(roll("waves", "wave"), looked(b={"refused": "ill"})) is None
    assert decided(roll("waves", "wave"), looked(a={"refused": "ill"})) == ("rolled_back", "wave 1: a: ill")
    assert decided(roll("waves", "wave", wave=1), looked(a={"active": 2}), 10) == (
        "rolled_back",
        "wave 2: not active within 10 s: b, c",
    )


def test_a_soak_without_a_gate_ends_with_time_and_health() -> None:
    soaking = roll("waves", "soaking")
    assert decided(soaking, looked(a={"active": 2}), 19.9) is None
    assert decided(soaking, looked(a={"active": 2}), 20) == ("wave", "")
    assert decided(soaking, looked(a={"active": 2, "lost": True}), 29) is None
    assert decided(soaking, looked(a={"active": 2, "lost": True}), 30) == (
        "rolled_back",
        "wave 1: away or not active: a",
    )
    assert decided(roll("waves", "soaking", wave=1), looked(**{n: {"active": 2} for n in "abc"}), 20) == ("done", "")


def test_the_gate_is_asked_and_nothing_is_decided_while_it_is_about_to_answer() -> None:
    soaking, well = roll("waves", "soaking", plan=replace(PLAN, gate=GATE)), looked(a={"active": 2})
    watch, effects = rollout_steps.step(Watch(soaking, 0.0), well, 0.0)
    assert effects == (AskGate(GATE),)
    watch, _ = rollout_steps.step(watch, GateAnswered(True, "", 0.0), 1.0)
    assert rollout_steps.step(watch, well, 4.9) == (watch, ()), "every five seconds is enough"
    watch, effects = rollout_steps.step(watch, well, 21.0)
    assert effects == (AskGate(GATE),), "what it said before the soak was over is not what it says after it"
    assert rollout_steps.step(watch, well, 22.0) == (watch, ())
    passed, _ = rollout_steps.step(watch, GateAnswered(True, "", 21.0), 22.0)
    _, effects = rollout_steps.step(passed, well, 22.0)
    assert isinstance(effects[0], Write) and effects[0].rollout.wave == 1
    silent, _ = rollout_steps.step(watch, GateAnswered(None, "", 21.0), 22.0)
    assert rollout_steps.step(silent, well, 22.0)[1] == (), "no answer is no health"
    asked = replace(passed, asked_s=25.0)
    assert rollout_steps.step(asked, well, 26.0)[1] == (), "a no may be on its way"
    _, effects = rollout_steps.step(asked, GateAnswered(False, "errors", 25.0), 26.0)
    assert isinstance(effects[0], Write) and effects[0].rollout.state == "rolled_back"


def test_a_new_holder_counts_a_soak_from_its_beginning_and_keeps_no_answer() -> None:
    soaking = roll("waves", "soaking")
    assert rollout_steps.watched(soaking, None, 100.0) == Watch(soaking, 100.0)
    kept = Watch(soaking, 3.0, asked_s=4.0)
    assert rollout_steps.watched(soaking, kept, 100.0) == kept
    assert rollout_steps.watched(replace(soaking, wave=1), kept, 100.0).since_s == 100.0
    late = Watch(soaking, 100.0)
    assert rollout_steps.step(late, GateAnswered(False, "of another phase", 99.0), 101.0) == (late, ())


def test_a_decision_is_void_once_the_rollout_has_moved_on() -> None:
    now = roll("waves", "soaking", wave=1)
    record = ModelRecord(ModelName("fraud"), rollout=now)
    stale = Write(roll("waves", "wave", wave=1), "rollout.advanced", roll("waves", "soaking"))
    with pytest.raises(PolicyRefusal):
        rollout_orders.advanced(record, stale, EntryId(8, 1))


def test_a_flip_taken_back_restores_what_was_wanted_before() -> None:
    _, effects = rollout_steps.step(Watch(roll("together", "moving"), 0.0), looked(a={"refused": "ill"}), 1.0)
    record = ModelRecord(ModelName("fraud"), desired=Version(2), rollout=roll("together", "moving"))
    assert isinstance(effects[0], Write)
    assert rollout_orders.advanced(record, effects[0], EntryId(8, 1)).desired == 1


def test_only_the_signal_of_this_very_rollout_is_obeyed() -> None:
    moving = roll("together", "moving")
    assert rollout.is_signal(moving, Version(2), None, ID, DIGEST)
    assert not rollout.is_signal(roll("together", "staging"), Version(1), None, ID, DIGEST)
    assert not rollout.is_signal(moving, Version(2), Version(1), ID, DIGEST), "the fleet is pinned"
    assert not rollout.is_signal(moving, Version(2), None, EntryId(7, 2), DIGEST)
    assert not rollout.is_signal(moving, Version(2), None, ID, OTHER)
    assert not rollout.is_signal(moving, Version(3), None, ID, DIGEST)


def test_waves_are_canaries_then_shares_then_everybody() -> None:
    members, labels = tuple("abcdefghij"), {"c": ["canary"]}
    plan = Plan(canaries=("canary", "j"), waves_percent=(50, 30))
    assert rollout.planned_waves(plan, members, labels) == (("c", "j"), ("a",), ("b", "d"), tuple("efghi"))
    assert rollout.planned_waves(Plan(waves_percent=(100,)), ("a",), {}) == (("a",),)


def test_the_field_comes_back_as_it_was_and_hostile_ones_are_refused() -> None:
    for found in (roll("together", "staging", by="alice"), roll("waves", "soaking", plan=replace(PLAN, gate=GATE))):
        again = rollout.from_text(rollout.to_text(found))
        assert again == replace(found, plan=replace(found.plan, strategy=found.strategy))
    text = rollout.to_text(roll("waves", "wave"))
    for old, new in (('"wave":0', '"wave":9'), ('"waves"', '"waves":1,"x"'), ('"wave"}', '"flying"}'), ("b3:", "b4:")):
        if old in text:
            with pytest.raises(MalformedMessage):
                rollout.from_text(text.replace(old, new, 1))
    for hostile in ("[]", "{}", "1", '{"id": "1-1"}', "\ud800"):
        with pytest.raises(MalformedMessage):
            rollout.from_text(hostile)
