"""Commands heard on ``control``: each is carried out once, or refused, and answered, whoever is primary meanwhile.

Every node keeps what it hears. The holder takes it up in the order in which it was said; the others look a moment later
whether it was answered, and say again what was not: to a primary that was deaf, or that has only just become one. That
nothing is done twice is no matter of this file: the change itself carries the command's names (``Publisher``), and the
answer is fenced.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import structlog

from modelsync.core import heard
from modelsync.core.errors import AuthorityLost, LocalFault, ModelsyncError, RemoteFault
from modelsync.core.heard import Heard, Hearing
from modelsync.core.ids import FleetName
from modelsync.core.messages import announcement
from modelsync.ports import Authority, Bus, Catalog, Clock, CommandHeard, Marked, Subscribed

log = structlog.get_logger()

LOOK_EVERY_S = 0.5
"""While something waits for an answer."""
RETRY_PAUSE_S = 0.2
SHOWN_CHARS = 200


Execute = Callable[[str, str, str, str], Awaitable[dict[str, object]]]
"""A command's text, who gave it, its names, and why it is refused unless it was carried out: ``Orders.execute``."""


class Desk:
    """One node's ear for commands, and while it is primary also its hand."""

    def __init__(
        self,
        *,
        fleet: FleetName,
        bus: Bus,
        catalog_: Catalog,
        clock: Clock,
        authority: Callable[[], Authority | None],
        execute: Execute,
        others_hold: Callable[[], bool],
        alone: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._bus = bus
        self._catalog = catalog_
        self._clock = clock
        self._authority = authority
        self._execute = execute
        self._others_hold = others_hold
        """Whether another node is primary and alive, as far as this one knows."""
        self._alone = alone
        """Told of a command that nobody is there to carry out."""
        self._state = Hearing()
        self._wake = asyncio.Event()
        self._in_office = False
        self._looks = True
        """Whether what was answered is read before anything is done: after a change of primary, and after a fault."""

    # --- hearing -----------------------------------------------------------------------------------------------------

    def hear(self, what: Subscribed | Marked | CommandHeard) -> None:
        """Take down what the subscription yields; nothing waits for anything here."""
        now_s = self._clock.boottime_s()
        if isinstance(what, Subscribed):
            self._state = heard.listening_anew(self._state)
        elif isinstance(what, Marked):
            self._state = heard.marked(self._state, what.mark, holding=self._authority() is not None)
        elif (again := heard.parse_said_again(what.text)) is not None:
            self._state, self._looks = heard.heard_again(self._state, again, now_s), True
        else:
            self._state = heard.heard(self._state, what.text, now_s, holding=self._authority() is not None)
        if self._state.waiting:
            self._wake.set()

    def open(self) -> None:
        """This node has taken office: what waits is its to answer."""
        self._in_office = self._looks = True
        self._wake.set()

    def close(self) -> None:
        self._in_office = False

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer, or see to it that somebody does."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._attend()
            except ModelsyncError as error:
                log.debug("command.waits", error=str(error))
                self._looks = True
                await asyncio.sleep(RETRY_PAUSE_S * random.uniform(1.0, 2.0))

    def _pause_s(self) -> float | None:
        """Not the same everywhere: else all would say a command again at once."""
        return LOOK_EVERY_S * random.uniform(0.5, 1.5) if self._state.waiting else None

    async def _attend(self) -> None:
        self._forget()
        if self._in_office and self._authority() is not None:
            await self._answer_all()
            return
        self._state = heard.without_dropped(self._state)  # the primary has a room of its own, and says so
        if due := heard.unanswered(self._state, self._clock.boottime_s()):
            await self._see_to(due)

    def _forget(self) -> None:
        self._state, old = heard.forgotten(self._state, self._clock.boottime_s())
        for item in old:
            log.warning("command.unanswered", command=item.text[:SHOWN_CHARS], next="no primary came; it is forgotten")

    async def _look(self) -> None:
        self._looks = False
        self._state = heard.answered(self._state, await self._catalog.answered())

    # --- as primary --------------------------------------------------------------------------------------------------

    async def _answer_all(self) -> None:
        while (authority := self._authority()) is not None and self._in_office:
            if self._looks:
                await self._look()
            item = next((item for item in self._state.waiting if item.names), None)
            if item is None:
                break
            await self._answer(authority, item)
        await self._own_up()

    async def _answer(self, authority: Authority, item: Heard) -> None:
        ask = heard.joined(item.names)
        event, fields = await self._outcome(item, ask)
        await self._say(authority, item, event, fields)
        self._state = heard.answered(self._state, item.names)

    async def _outcome(self, item: Heard, ask: str) -> tuple[str, dict[str, object]]:
        """Raises AuthorityLost, RemoteFault: they say nothing of the command, which is taken up again."""
        refusal = heard.why_not(item, self._clock.boottime_s())
        try:
            return "command.done", await self._execute(item.text, "redis-cli", ask, refusal)
        except (AuthorityLost, RemoteFault):
            raise
        except LocalFault as error:  # of this disk, which is written to after Redis
            return "command.done", {"fault": str(error)}
        except ModelsyncError as error:
            return "command.refused", {"reason": str(error)}

    async def _say(self, authority: Authority, item: Heard, event: str, fields: dict[str, object]) -> None:
        text = announcement(
            event, self._fleet, authority.epoch, "", command=item.text[:SHOWN_CHARS], ask=item.names[0], **fields
        )
        if not await self._catalog.answer(authority, item.names, text):
            log.info("command.known", command=item.text[:SHOWN_CHARS])

    async def _own_up(self) -> None:
        """Say so where there was no room for commands."""
        authority, dropped = self._authority(), self._state.dropped
        if not dropped or authority is None:
            return
        reason = f"{dropped} commands came while {heard.MAX_WAITING} were waiting: they were not looked at"
        text = announcement("command.refused", self._fleet, authority.epoch, "", reason=reason)
        await self._catalog.answer(authority, (), text)
        self._state = heard.without_dropped(self._state)
        log.warning("command.dropped", count=dropped, next="give them again, more slowly")

    # --- as anyone else ----------------------------------------------------------------------------------------------

    async def _see_to(self, due: tuple[Heard, ...]) -> None:
        await self._look()
        left = [item for item in self._state.waiting if any(item.names == one.names for one in due)]
        if not self._others_hold():
            for item in left:
                self._alone(item.text)
            return
        for item in left:
            now_s = self._clock.boottime_s()
            self._state = heard.heard_again(self._state, item, now_s)
            await self._bus.say(heard.to_say_again(item, now_s))
