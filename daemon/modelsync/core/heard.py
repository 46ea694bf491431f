"""Commands heard on ``control`` and not answered yet: which is which, what may be done with each, what is said again.

Pub/sub is what people type into, and gives a message no identity. But one server's channels reach every listener in one
order, so a place in that order is one: each daemon that begins to listen has a **mark** announced, and a command is the
n-th after the last mark, or the n-th before the next. Whoever heard both agrees on that name, whatever else it missed.
PROTOCOL.md section 10.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from modelsync.core import canonical
from modelsync.core.commands import MAX_COMMAND_BYTES
from modelsync.core.errors import MalformedMessage

MAX_WAITING = 1000
MAX_MARKS = 64
TAKEN_UP_WITHIN_S = 30.0
"""A command that no primary took up within this time is refused: by then the person has gone on to something else."""
KEPT_S = 3600.0
"""So long a refusal is still worth saying."""
SAID_AGAIN_AFTER_S = 1.0
"""What is not answered by then was not heard by the primary, or by one that is primary no longer."""
SAID_AGAIN_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Heard:
    """One command, as it was typed, under each of its names."""

    text: str
    heard_s: float
    names: tuple[str, ...] = ()
    place: int = 0
    """Its number after the last mark."""
    stretch: int = 0
    """Between which two marks it was heard."""
    overtaken: bool = False
    """A later one was answered before it."""
    said_again_s: float = float("-inf")
    """When somebody said it again; never: heard from whoever typed it alone."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """What one node has heard; ``waiting`` in the order in which it was said."""

    waiting: tuple[Heard, ...] = ()
    mark: str = ""
    """The last one; empty: this subscription has heard none yet."""
    marks: tuple[str, ...] = ()
    since_mark: int = 0
    stretch: int = 0
    dropped: int = 0
    """Commands for which there was no room, since this was last asked."""


def listening_anew(state: Hearing) -> Hearing:
    """A new subscription: what was said since the last one is not known, nor where in the order this one begins."""
    named = tuple(item for item in state.waiting if item.names)
    return replace(state, waiting=named, mark="", since_mark=0, stretch=state.stretch + 1)


def marked(state: Hearing, mark: str, *, holding: bool) -> Hearing:
    """A mark was announced: what came before it has a second name, by its place before this mark.

    What has no first name was heard before this node's own mark. The holder alone takes it up: to anyone else it may
    be under a name under which it was answered already.
    """
    if mark in state.marks:
        return state  # said twice: everybody else passes over it too
    kept = [item for item in state.waiting if item.names or holding]
    waiting = tuple(_second_name(item, state, mark) for item in kept)
    marks = (*state.marks, mark)[-MAX_MARKS:]
    return replace(state, waiting=waiting, mark=mark, marks=marks, since_mark=0, stretch=state.stretch + 1)


def _second_name(item: Heard, state: Hearing, mark: str) -> Heard:
    if item.stretch != state.stretch or not item.place:
        return item
    return replace(item, names=(*item.names, f"{mark}-{state.since_mark - item.place + 1}"))


def heard(state: Hearing, text: str, now_s: float, *, holding: bool) -> Hearing:
    """Somebody typed a command.

    Where there is no room, the holder refuses it. The others let go of what they heard first, since that is what the
    holder has most likely answered: a flood must not deafen those who take over from it.
    """
    place = state.since_mark + 1
    state = replace(state, since_mark=place)
    if len(state.waiting) >= MAX_WAITING:
        state = replace(state, dropped=state.dropped + 1)
        if holding:
            return state
        state = replace(state, waiting=state.waiting[1 - MAX_WAITING :])
    names = (f"{state.mark}+{place}",) if state.mark else ()
    item = Heard(text[: MAX_COMMAND_BYTES + 1], now_s, names, place, state.stretch)
    return replace(state, waiting=(*state.waiting, item))


def heard_again(state: Hearing, said: Heard, now_s: float) -> Hearing:
    """Another node said a command again: it is the one under this name, or one that this node has missed."""
    known = [not set(item.names).isdisjoint(said.names) for item in state.waiting]
    waiting = [
        replace(item, said_again_s=now_s, overtaken=item.overtaken or said.overtaken) if same else item
        for item, same in zip(state.waiting, known, strict=True)
    ]
    if not any(known) and len(waiting) < MAX_WAITING:
        waiting.append(replace(said, heard_s=now_s - said.heard_s, said_again_s=now_s))
        waiting.sort(key=lambda item: item.heard_s)
    return replace(state, waiting=tuple(waiting))


def answered(state: Hearing, names: Collection[str]) -> Hearing:
    """These were answered: they wait no longer, and what was said before one of them was overtaken by it."""
    done = [not set(item.names).isdisjoint(names) for item in state.waiting]
    last = max((at for at, is_done in enumerate(done) if is_done), default=-1)
    waiting = tuple(
        replace(item, overtaken=True) if at < last else item for at, item in enumerate(state.waiting) if not done[at]
    )
    return replace(state, waiting=waiting)


def forgotten(state: Hearing, now_s: float) -> tuple[Hearing, tuple[Heard, ...]]:
    """Without what waited too long to be answered at all, and that."""
    old = tuple(item for item in state.waiting if now_s - item.heard_s > KEPT_S)
    return (
        (replace(state, waiting=tuple(item for item in state.waiting if item not in old)), old) if old else (state, ())
    )


def without_dropped(state: Hearing) -> Hearing:
    return replace(state, dropped=0)


def why_not(item: Heard, now_s: float) -> str:
    """Why the holder refuses a command that nobody has carried out yet; empty: it does not."""
    if item.overtaken:
        return (
            "a command that was given later was carried out before this one was heard: give it again if it still holds"
        )
    waited_s = now_s - item.heard_s
    if waited_s > TAKEN_UP_WITHIN_S:
        return f"it waited {waited_s:.0f} s for a primary that could carry it out: give it again if it still holds"
    return ""


def unanswered(state: Hearing, now_s: float) -> tuple[Heard, ...]:
    """What has waited for so long that a primary must have missed it."""
    return tuple(
        item
        for item in state.waiting
        if item.names and now_s - item.heard_s >= SAID_AGAIN_AFTER_S and now_s - item.said_again_s >= SAID_AGAIN_EVERY_S
    )


def to_say_again(item: Heard, now_s: float) -> str:
    """A command as one node says it to the others, on ``control``."""
    value = {
        "again": item.names[0],
        "command": item.text,
        "waited_ms": max(0, int(1000 * (now_s - item.heard_s))),
        "overtaken": item.overtaken,
    }
    return json.dumps(value, ensure_ascii=False)


def parse_said_again(text: str) -> Heard | None:
    """What another node said again, its ``heard_s`` so many seconds ago; None: a person's command."""
    if not text.startswith('{"again"'):
        return None
    try:
        value = canonical.decode(text.encode(errors="replace"), "command", max_bytes=4 * MAX_COMMAND_BYTES)
    except MalformedMessage:
        return None
    name, command, waited_ms = value.get("again"), value.get("command"), value.get("waited_ms")
    if not isinstance(name, str) or not isinstance(command, str) or not name or len(name) > 64:
        return None
    if type(waited_ms) is not int or waited_ms < 0:
        return None
    return Heard(command, waited_ms / 1000, (name,), overtaken=value.get("overtaken") is True)


def joined(names: Iterable[str]) -> str:
    """Names as the one field ``ask`` of a record, an answer or a log entry holds them."""
    return " ".join(names)
