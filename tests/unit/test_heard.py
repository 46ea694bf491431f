"""Commands heard on control: the names that listeners agree on, what was overtaken, what is said again."""

from __future__ import annotations

import json

import pytest

from modelsync.core import heard
from modelsync.core.heard import Hearing

M1, M2, M3 = "m1", "m2", "m3"


def listener(*said: str, holding: bool = False, since: str = "") -> Hearing:
    """What one node made of marks (``m1``) and commands, from the mark ``since`` on."""
    state = heard.listening_anew(Hearing())
    started = not since
    for at, one in enumerate(said):
        started = started or one == since
        if not started:
            continue
        state = (
            heard.marked(state, one, holding=holding)
            if one.startswith("m")
            else heard.heard(state, one, float(at), holding=holding)
        )
    return state


def names(state: Hearing) -> dict[str, set[str]]:
    return {item.text: set(item.names) for item in state.waiting}


def test_all_who_heard_a_command_have_a_name_of_it_in_common() -> None:
    said = (M1, "pin a 1", "pin b 1", M2, "pin c 1", M3, "pin d 1")
    first, second, third = listener(*said), listener(*said, since=M2), listener(*said, since=M3)
    assert names(first) == {
        "pin a 1": {"m1+1", "m2-2"},
        "pin b 1": {"m1+2", "m2-1"},
        "pin c 1": {"m2+1", "m3-1"},
        "pin d 1": {"m3+1"},
    }
    assert names(second)["pin c 1"] & names(first)["pin c 1"]
    assert names(third) == {"pin d 1": {"m3+1"}}


def test_the_same_words_twice_are_two_commands() -> None:
    state = listener(M1, "rollback a", "rollback a")
    assert [item.names for item in state.waiting] == [("m1+1",), ("m1+2",)]
    left = heard.answered(state, {"m1+1"})
    assert [item.names for item in left.waiting] == [("m1+2",)] and not left.waiting[0].overtaken


def test_what_was_heard_before_the_own_mark_is_the_holders_alone() -> None:
    said = ("pin a 1", M1)
    assert names(listener(*said, holding=True)) == {"pin a 1": {"m1-1"}}
    assert names(listener(*said, holding=False)) == {}
    assert names(listener("pin a 1", holding=True)) == {"pin a 1": set()}, "nobody answers what has no name yet"


def test_a_subscription_that_was_lost_begins_a_new_order() -> None:
    state = listener(M1, "pin a 1")
    state = heard.heard(heard.listening_anew(state), "pin b 1", 2.0, holding=False)
    assert names(state) == {"pin a 1": {"m1+1"}, "pin b 1": set()}
    state = heard.marked(state, M2, holding=True)
    assert names(state) == {"pin a 1": {"m1+1"}, "pin b 1": {"m2-1"}}, "the gap has an unknown number of commands"


def test_a_mark_that_is_said_twice_counts_once() -> None:
    assert names(listener(M1, "pin a 1", M1, "pin b 1")) == {"pin a 1": {"m1+1"}, "pin b 1": {"m1+2"}}


def test_what_was_said_before_one_that_is_answered_was_overtaken_by_it() -> None:
    state = heard.answered(listener(M1, "pin a 1", "pin a 2", "pin a 3"), {"m1+2"})
    assert [(item.text, item.overtaken) for item in state.waiting] == [("pin a 1", True), ("pin a 3", False)]
    assert "given later" in heard.why_not(state.waiting[0], 1.0)
    assert heard.why_not(state.waiting[1], 1.0) == ""


@pytest.mark.parametrize(("waited_s", "refused"), [(29.0, False), (31.0, True)])
def test_a_command_that_waited_too_long_is_refused(waited_s: float, refused: bool) -> None:
    (item,) = listener(M1, "pin a 1").waiting
    assert bool(heard.why_not(item, item.heard_s + waited_s)) is refused


def test_what_is_said_again_is_the_same_command_or_one_that_was_missed() -> None:
    teller = listener(M1, "pin a 1", "pin b 1")
    text = heard.to_say_again(teller.waiting[0], teller.waiting[0].heard_s + 2.0)
    again = heard.parse_said_again(text)
    assert again is not None and again.names == ("m1+1",)
    known = heard.heard_again(teller, again, 10.0)
    assert len(known.waiting) == 2 and known.waiting[0].said_again_s == 10.0
    deaf = heard.heard_again(heard.heard(Hearing(mark=M2), "pin b 2", 9.5, holding=False), again, 10.0)
    assert [item.text for item in deaf.waiting] == ["pin a 1", "pin b 2"], "in the order in which they were said"
    assert deaf.waiting[0].heard_s == 8.0


def test_it_is_said_again_after_a_second_and_then_every_five() -> None:
    state = listener(M1, "pin a 1")
    (item,) = state.waiting
    assert heard.unanswered(state, item.heard_s + 0.9) == ()
    assert heard.unanswered(state, item.heard_s + 1.0) == (item,)
    state = heard.heard_again(state, item, item.heard_s + 1.0)
    assert heard.unanswered(state, item.heard_s + 5.9) == ()
    assert len(heard.unanswered(state, item.heard_s + 6.0)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "pin a 1",
        '{"command": "pin a 1"}',
        '{"again": 1, "command": "x", "waited_ms": 1}',
        '{"again": "a", "command": "x", "waited_ms": -1}',
        '{"again": "a", "command": "x", "waited_ms": true}',
        '{"again": "a", "command": "x", "waited_ms": 1.5}',
        '{"again": "a", "again": "b", "command": "x", "waited_ms": 1}',
        json.dumps({"again": "a" * 65, "command": "x", "waited_ms": 1}),
        json.dumps({"again": "a", "command": "x" * 20_000, "waited_ms": 1}),
        '{"again"' + "[" * 5000,
    ],
)
def test_anything_else_is_a_persons_words(text: str) -> None:
    assert heard.parse_said_again(text) is None


def test_the_room_is_bounded_and_what_found_none_is_counted() -> None:
    state = Hearing(mark=M1)
    for number in range(heard.MAX_WAITING + 7):
        state = heard.heard(state, f"pin a {number}", 0.0, holding=True)
    assert (len(state.waiting), state.dropped) == (heard.MAX_WAITING, 7)
    state = heard.answered(state, {"m1+1"})
    state = heard.heard(state, "pin a 1", 0.0, holding=True)
    assert state.waiting[-1].names == (f"m1+{heard.MAX_WAITING + 8}",), "those that found no room keep their places"


def test_a_flood_does_not_deafen_those_who_may_have_to_take_over() -> None:
    state = Hearing(mark=M1)
    for number in range(heard.MAX_WAITING + 7):
        state = heard.heard(state, f"pin a {number}", 0.0, holding=False)
    state = heard.heard(state, "resume", 0.0, holding=False)
    assert len(state.waiting) == heard.MAX_WAITING
    assert (state.waiting[0].text, state.waiting[-1].text) == ("pin a 8", "resume")


def test_after_an_hour_nobody_wants_to_know() -> None:
    state = listener(M1, "pin a 1")
    assert heard.forgotten(state, 3000.0) == (state, ())
    left, old = heard.forgotten(state, 3602.0)
    assert left.waiting == () and [item.text for item in old] == ["pin a 1"]
