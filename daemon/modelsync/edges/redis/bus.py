"""The subscription: wake-ups for everyone, commands for the holder. Safe to lose, double or reorder.

A deaf connection is noticed by a ping that is not answered; whoever subscribes again also rereads the catalog, so that
what was said in between costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from modelsync.core.errors import ModelsyncError
from modelsync.core.ids import FleetName
from modelsync.core.messages import MAX_ANNOUNCEMENT_BYTES, hints
from modelsync.edges.redis.connect import redis_faults
from modelsync.ports import CommandHeard, Woken

PING_EVERY_S = 5.0


class RedisBus:
    """One fleet's channels, on a connection of their own."""

    def __init__(self, client: Any, fleet: FleetName) -> None:
        self._redis = client
        self._events = f"modelsync:{{{fleet}}}:events"
        self._control = f"modelsync:{{{fleet}}}:control"

    async def close(self) -> None:
        await self._redis.aclose()

    async def listen(self) -> AsyncIterator[Woken | CommandHeard]:
        """Yield until the connection fails. Raises RedisUnavailable, RedisRefused: call again after a pause."""
        pubsub = self._redis.pubsub()
        try:
            async with redis_faults("subscribe"):
                await pubsub.subscribe(self._events, self._control)
            yield Woken()
            while True:
                async with redis_faults("listen"):
                    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=PING_EVERY_S)
                    if message is None:
                        async with asyncio.timeout(PING_EVERY_S):
                            await pubsub.ping()
                if message is not None and message.get("type") == "message":
                    yield self._heard(message)
        finally:
            with contextlib.suppress(ModelsyncError):
                async with redis_faults("unsubscribe"):
                    await pubsub.aclose()

    def _heard(self, message: dict[str, object]) -> Woken | CommandHeard:
        data, channel = message.get("data"), message.get("channel")
        if channel == self._control.encode() and isinstance(data, bytes) and len(data) <= MAX_ANNOUNCEMENT_BYTES:
            return CommandHeard(data.decode(errors="replace"))
        return Woken(*hints(data)) if isinstance(data, bytes) and len(data) <= MAX_ANNOUNCEMENT_BYTES else Woken()
