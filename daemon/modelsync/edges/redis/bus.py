"""The subscription: wake-ups for everyone, commands for the holder. Safe to lose, double or reorder.

A deaf connection is noticed by a ping that is not answered; whoever subscribes again also rereads the catalog, so that
what was said in between costs nothing. A subscription that is confirmed announces its mark, by which commands are told
apart (``core/heard.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from modelsync.core.errors import ModelsyncError, RedisRefused, RedisUnavailable
from modelsync.core.ids import FleetName, NodeId
from modelsync.core.messages import MAX_ANNOUNCEMENT_BYTES, announcement, hints
from modelsync.edges.redis.faults import redis_faults
from modelsync.ports import CommandHeard, Marked, Subscribed, Woken

PING_EVERY_S = 5.0
MARK_BYTES = 8
MAX_MARK_CHARS = 32


class RedisBus:
    """One fleet's channels, on a connection of their own."""

    def __init__(self, client: Any, fleet: FleetName, node: NodeId) -> None:
        self._redis = client
        self._fleet, self._node = fleet, node
        self._events = f"modelsync:{{{fleet}}}:events"
        self._control = f"modelsync:{{{fleet}}}:control"

    async def close(self) -> None:
        await self._redis.aclose()

    async def listen(self) -> AsyncIterator[Subscribed | Marked | Woken | CommandHeard]:
        """Yield until the connection fails. Raises RedisUnavailable, RedisRefused: call again after a pause."""
        pubsub = self._redis.pubsub()
        try:
            async with redis_faults("subscribe"):
                await pubsub.subscribe(self._events, self._control)
                for _ in (self._events, self._control):
                    await pubsub.get_message(timeout=PING_EVERY_S)
            yield Subscribed()
            async for heard in self._messages(pubsub, await self._announce_mark()):
                yield heard
        finally:
            with contextlib.suppress(ModelsyncError):
                async with redis_faults("unsubscribe"):
                    await pubsub.aclose()

    async def _announce_mark(self) -> str:
        """After the subscription is confirmed, so that this node hears it too, at the place where everybody does.

        Empty where this node may listen and not publish: it still hears what it is to reread.
        """
        mark = secrets.token_hex(MARK_BYTES)
        text = announcement("node.subscribed", self._fleet, 0, "", node=self._node, mark=mark)
        try:
            async with redis_faults("announce a mark"):
                await self._redis.publish(self._events, text)
        except RedisRefused:
            return ""
        return mark

    async def _messages(self, pubsub: Any, mark: str) -> AsyncIterator[Marked | Woken | CommandHeard]:
        missing_since_s = time.monotonic() if mark else None
        while True:
            async with redis_faults("listen"):
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=PING_EVERY_S)
                if message is None:
                    async with asyncio.timeout(PING_EVERY_S):
                        await pubsub.ping()
            if message is not None and message.get("type") == "message":
                heard = self._heard(message)
                if heard == Marked(mark):
                    missing_since_s = None
                yield heard
            if missing_since_s is not None and time.monotonic() - missing_since_s > PING_EVERY_S:
                raise RedisUnavailable(operation="listen", reason="what this node announced was not heard by it")

    def _heard(self, message: dict[str, object]) -> Marked | Woken | CommandHeard:
        data, channel = message.get("data"), message.get("channel")
        if not isinstance(data, bytes) or len(data) > MAX_ANNOUNCEMENT_BYTES:
            return Woken()
        if channel == self._control.encode():
            return CommandHeard(data.decode(errors="replace"))
        event, node, model, mark = hints(data)
        if event == "node.subscribed" and 0 < len(mark) <= MAX_MARK_CHARS:
            return Marked(mark)
        return Woken(event, node, model)

    async def say(self, text: str) -> None:
        async with redis_faults("say a command again"):
            await self._redis.publish(self._control, text)
