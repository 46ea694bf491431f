"""The subscription."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Woken:
    """Something was announced, or the subscription is new: reread. All fields are hints and may be empty."""

    event: str = ""
    node: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class CommandHeard:
    """A command on ``control``, as it was typed."""

    text: str


class Bus(Protocol):
    """The subscription."""

    def listen(self) -> AsyncIterator[Woken | CommandHeard]:
        """Yield until the connection fails. Raises RedisUnavailable, RedisRefused: call again after a pause."""
