"""The subscription."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Woken:
    """Something was announced: reread. All fields are hints and may be empty."""

    event: str = ""
    node: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription begins: what was said before it is lost."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A daemon began to listen, here in the order of everything that is heard."""

    mark: str


@dataclass(frozen=True, slots=True)
class CommandHeard:
    """A command on ``control``, as it was typed."""

    text: str


class Bus(Protocol):
    """The subscription."""

    def listen(self) -> AsyncIterator[Subscribed | Marked | Woken | CommandHeard]:
        """Yield until the connection fails. Raises RedisUnavailable, RedisRefused: call again after a pause."""

    async def say(self, text: str) -> None:
        """A command, on ``control``. Raises RedisUnavailable, RedisRefused."""
