"""Electors of one fleet, in one process, over a real Valkey: who writes, and what they do when something is taken away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from modelsync.core.errors import PeerUnavailable
from modelsync.core.ids import FleetName, NodeId
from modelsync.edges.clock import SystemClock
from modelsync.edges.embedded_redis import EmbeddedRedis
from modelsync.edges.redis_connect import connect
from modelsync.edges.redis_lease import RedisLease
from modelsync.edges.state_file import StateFile
from modelsync.ports import Promise
from modelsync.runtime.elector import Elector, ElectorIdentity, ElectorSettings

TTL_S, HEARTBEAT_S = 0.6, 0.05


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


class Fleet:
    """Nodes that reach each other by a method call, and Redis by TCP."""

    def __init__(self, url: str, directory: Path, names: tuple[str, ...]) -> None:
        self.url, self.directory, self.names = url, directory, names
        self.nodes: dict[str, Elector] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.events: list[tuple[str, str]] = []

    async def promise(self, node: NodeId, epoch: int, holder: NodeId, nonce: str) -> Promise:
        if node not in self.tasks:
            raise PeerUnavailable(peer=node, reason="it is dead")
        return await self.nodes[node].answer_promise(epoch, holder, nonce)

    def start(self, name: str, **settings: object) -> Elector:
        node = NodeId(name)
        ledger = StateFile(self.directory / f"{name}.json")
        ledger.set_members(self.names)
        elector = Elector(
            identity=ElectorIdentity(node, f"http://{name}"),
            settings=ElectorSettings(ttl_s=TTL_S, heartbeat_s=HEARTBEAT_S, **settings),  # type: ignore[arg-type]
            coordinator=RedisLease(connect(self.url, timeout_s=0.2), FleetName("f"), node, f"http://{name}"),
            peers=self,
            ledger=ledger,
            clock=SystemClock(),
        )

        async def promoted(authority: object, ahead: object) -> None:
            self.events.append((name, "promoted"))

        async def demoted(reason: str) -> None:
            self.events.append((name, "demoted"))

        elector.on_promoted, elector.on_demoted = promoted, demoted
        self.nodes[name] = elector
        self.tasks[name] = asyncio.create_task(elector.run())
        return elector

    async def kill(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def writers(self) -> list[str]:
        return [name for name in self.tasks if self.nodes[name].authority is not None]

    async def until(self, what: Callable[[], object], within_s: float = 5.0) -> float:
        began_s = time.monotonic()
        while not what():
            assert time.monotonic() - began_s < within_s, f"not within {within_s} s; writers: {self.writers()}"
            await asyncio.sleep(0.005)
        return time.monotonic() - began_s


@contextlib.asynccontextmanager
async def fleet(url: str, directory: Path, *names: str) -> AsyncIterator[Fleet]:
    one = Fleet(url, directory, names)
    try:
        yield one
    finally:
        for name in list(one.tasks):
            await one.kill(name)


async def test_a_single_node_is_primary_at_once(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a") as nodes:
        elector = nodes.start("a")
        assert await nodes.until(lambda: elector.role == "primary") < TTL_S
        assert elector.authority is not None
        assert (elector.authority.epoch, elector.lease.holder, elector.fencing) == (1, "a", "alone")


async def test_another_takes_over_after_a_kill_and_after_a_release(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        for name in ("a", "b", "c"):
            nodes.start(name)
        await nodes.until(lambda: len(nodes.writers()) == 1)
        first = nodes.writers()[0]
        await nodes.kill(first)
        took_s = await nodes.until(lambda: len(nodes.writers()) == 1)
        assert TTL_S - HEARTBEAT_S < took_s < 2 * TTL_S
        second = nodes.writers()[0]
        await nodes.nodes[second].release()
        assert nodes.nodes[second].authority is None
        assert await nodes.until(lambda: nodes.writers() not in ([], [second])) < TTL_S
        assert (second, "demoted") in nodes.events
