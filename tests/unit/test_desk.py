"""Commands on one node's desk, with a catalog that remembers what it was told and a clock that is set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from modelsync.core import heard
from modelsync.core.election.lease import Authority
from modelsync.core.errors import DiskFull, LeaseLost, ModelsyncError, PolicyRefusal, RedisUnavailable
from modelsync.core.ids import FleetName, NodeId
from modelsync.ports import Bus, Catalog, Clock, CommandHeard, Marked, Subscribed
from modelsync.runtime import desk as desks
from modelsync.runtime.desk import Desk

AUTHORITY = Authority(3, NodeId("a"), "nonce")
AWAY = RedisUnavailable(operation="write", reason="away")


class World:
    """All that a desk is given, in one."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.now_s, self.holds, self.others = 0.0, True, False
        self.done: list[tuple[str, str]] = []
        self.faults: list[ModelsyncError] = []
        self.answers: list[dict[str, Any]] = []
        self.names: set[str] = set()
        self.said: list[str] = []
        self.lonely: list[str] = []
        self.desk = Desk(
            fleet=FleetName("f"),
            bus=cast(Bus, self),
            catalog_=cast(Catalog, self),
            clock=cast(Clock, self),
            authority=lambda: AUTHORITY if self.holds else None,
            execute=self.execute,
            others_hold=lambda: self.others,
            alone=self.lonely.append,
        )
        self.desk.hear(Subscribed())
        self.desk.hear(Marked("m"))

    def boottime_s(self) -> float:
        return self.now_s

    async def answered(self) -> frozenset[str]:
        return frozenset(self.names)

    async def answer(self, authority: Authority, names: Sequence[str], text: str) -> bool:
        if not self.holds:
            raise LeaseLost(epoch=authority.epoch, holder="b")
        known = not self.names.isdisjoint(names)
        self.names |= set(names)
        if not known:
            self.answers.append(json.loads(text))
        return not known

    async def say(self, text: str) -> None:
        self.said.append(text)

    async def execute(self, text: str, by: str, ask: str, refusal: str) -> dict[str, object]:
        if refusal:
            raise PolicyRefusal(reason=refusal)
        if self.faults:
            raise self.faults.pop(0)
        self.done.append((text, ask))
        return {"wanted": 1}

    def run(self, until: Callable[[], bool], limit_s: float = 2.0) -> None:
        async def work() -> None:
            loop = asyncio.create_task(self.desk.run())
            deadline_s = asyncio.get_running_loop().time() + limit_s
            while not until() and not loop.done() and asyncio.get_running_loop().time() < deadline_s:
                await asyncio.sleep(0.001)
            assert not loop.done(), loop
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

        self.runner.run(work())

    def idle(self) -> None:
        """Let it do what it would, for as long as it takes to look a few times."""
        self.run(lambda: False, 0.1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(desks, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(desks, "RETRY_PAUSE_S", 0.001)
    with asyncio.Runner() as runner:
        yield World(runner)


def test_the_primary_answers_in_order_once_it_is_in_office(world: World) -> None:
    for text in ("pin a 1", "pin a 2"):
        world.desk.hear(CommandHeard(text))
    world.idle()
    assert world.done == [], "not before it has taken office"
    world.desk.open()
    world.run(lambda: len(world.answers) == 2)
    assert world.done == [("pin a 1", "m+1"), ("pin a 2", "m+2")]
    assert [(a["event"], a["command"], a["ask"]) for a in world.answers] == [
        ("command.done", "pin a 1", "m+1"),
        ("command.done", "pin a 2", "m+2"),
    ]


@pytest.mark.parametrize(
    ("fault", "event", "field"),
    [
        (PolicyRefusal(reason="pinned"), "command.refused", "reason"),
        (DiskFull(path="/s"), "command.done", "fault"),
    ],
)
def test_what_a_fault_makes_of_it(world: World, fault: ModelsyncError, event: str, field: str) -> None:
    world.faults = [fault]
    world.desk.open()
    world.desk.hear(CommandHeard("pin a 1"))
    world.run(lambda: bool(world.answers))
    assert world.answers[0]["event"] == event and world.answers[0][field] == str(fault)


@pytest.mark.parametrize("fault", [AWAY, LeaseLost(epoch=3, holder="b")])
def test_a_fault_that_says_nothing_of_it_leaves_it_waiting(world: World, fault: ModelsyncError) -> None:
    world.faults = [fault, fault]
    world.desk.open()
    world.desk.hear(CommandHeard("pin a 1"))
    world.run(lambda: bool(world.answers))
    assert [a["event"] for a in world.answers] == ["command.done"] and len(world.done) == 1


def test_what_was_answered_before_is_not_done_again(world: World) -> None:
    world.holds = False
    world.desk.hear(CommandHeard("pin a 1"))
    world.names = {"m+1"}
    world.holds = True
    world.desk.open()
    world.idle()
    assert world.done == [] and world.answers == []


def test_others_say_again_what_a_primary_has_missed(world: World) -> None:
    world.holds, world.others = False, True
    world.desk.hear(CommandHeard("pin a 1"))
    world.idle()
    assert world.said == [], "it may be under way"
    world.now_s = heard.SAID_AGAIN_AFTER_S
    world.run(lambda: bool(world.said))
    world.idle()
    (text,) = world.said
    again = heard.parse_said_again(text)
    assert again is not None and (again.text, again.names) == ("pin a 1", ("m+1",))
    world.names = {"m+1"}
    world.now_s += heard.SAID_AGAIN_EVERY_S
    world.idle()
    assert len(world.said) == 1, "it was answered meanwhile"


def test_with_nobody_primary_it_waits_and_is_offered_to_whoever_can_do_it_alone(world: World) -> None:
    world.holds = False
    world.desk.hear(CommandHeard("resume"))
    world.now_s = heard.SAID_AGAIN_AFTER_S
    world.run(lambda: bool(world.lonely))
    assert world.lonely[0] == "resume" and world.said == []
    world.holds, world.now_s = True, heard.TAKEN_UP_WITHIN_S + 1
    world.desk.open()
    world.run(lambda: bool(world.answers))
    assert world.answers[0]["event"] == "command.refused" and "31 s" in world.answers[0]["reason"]


def test_those_that_found_no_room_are_owned_up_to(world: World) -> None:
    for number in range(heard.MAX_WAITING + 3):
        world.desk.hear(CommandHeard(f"pin a {number + 1}"))
    world.desk.open()
    world.run(lambda: len(world.answers) == heard.MAX_WAITING + 1, 5.0)
    assert len(world.done) == heard.MAX_WAITING and world.answers[-1]["reason"].startswith("3 commands came")
