"""The subscription: wake-ups for everyone, commands for the holder. Every one of them may be lost, doubled or late."""

from __future__ import annotations

from modelsync.core.errors import ModelsyncError
from modelsync.core.ids import NodeId
from modelsync.ports import Bus, Subscribed, Woken
from modelsync.runtime.desk import Desk
from modelsync.runtime.elector import Elector
from modelsync.runtime.flips import Flips
from modelsync.runtime.following import Following
from modelsync.runtime.redis_health import Pause, RedisHealth
from modelsync.runtime.rollouts import Rollouts

_NO_CHANGE = frozenset(
    {
        "version.activated",
        "version.rejected",
        "rollout.reported",
        "command.done",
        "command.refused",
        "alarm.raised",
    }
)
"""Announcements that change no catalog."""


class Listening:
    """Hands on what is heard to whom it concerns."""

    def __init__(
        self,
        *,
        node: NodeId,
        bus: Bus,
        desk: Desk,
        flips: Flips,
        rollouts: Rollouts,
        following: Following,
        elector: Elector,
        health: RedisHealth,
    ) -> None:
        self._node = node
        self._bus = bus
        self._desk = desk
        self._flips = flips
        self._rollouts = rollouts
        self._following = following
        self._elector = elector
        self._health = health

    async def run(self) -> None:
        pause = Pause()
        while True:
            try:
                async for heard in self._bus.listen():
                    pause.over()
                    self._health.answered("events")
                    if not isinstance(heard, Woken):
                        self._desk.hear(heard)
                        if isinstance(heard, Subscribed):
                            self._woken(Woken())
                    elif heard.event == "rollout.flipped" and await self._flips.signal(heard.model):
                        continue
                    else:
                        self._woken(heard)
            except ModelsyncError as error:
                self._health.failed("events", error)
                await pause.take()

    def _woken(self, heard: Woken) -> None:
        """Reread what the announcement may have changed; without a hint, everything."""
        if heard.event == "rollout.reported":
            self._rollouts.wake()
        if heard.event in _NO_CHANGE:
            return  # it changes no catalog: a fleet of N would reread it N times for each switch
        if heard.node != self._node:
            self._following.wake()
        if heard.event not in ("version.published", "wish.changed") and not heard.event.startswith("rollout."):
            self._elector.nudge()
