"""Electors of one fleet, in one process, over a real Valkey: who writes, and what happens when something is gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from modelsync.core.errors import PeerUnavailable
from modelsync.core.ids import FleetName, NodeId
from modelsync.edges.disk.state_file import StateFile
from modelsync.edges.host.clock import SystemClock
from modelsync.edges.redis.connect import connect
from modelsync.edges.redis.embedded import EmbeddedRedis
from modelsync.edges.redis.lease import RedisLease
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


async def test_redis_away_suspends_and_resumes_the_same_epoch(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        for name in ("a", "b", "c"):
            nodes.start(name)
        await nodes.until(lambda: len(nodes.writers()) == 1)
        first = nodes.nodes[nodes.writers()[0]]
        epoch = first.epoch
        valkey.stop()
        await nodes.until(lambda: first.authority is None)
        await asyncio.sleep(2 * TTL_S)
        assert first.role == "primary" and nodes.writers() == []
        valkey.start()
        await nodes.until(lambda: first.authority is not None)
        await asyncio.sleep(2 * TTL_S)
        assert nodes.writers() == [first.identity.node]
        assert {node.epoch for node in nodes.nodes.values()} == {epoch}
        assert nodes.events == [(first.identity.node, "promoted")]


async def test_flushall_under_a_living_primary_changes_nothing(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        for name in ("a", "b", "c"):
            nodes.start(name)
        await nodes.until(lambda: len(nodes.writers()) == 1)
        first, client = nodes.writers()[0], connect(valkey.url)
        for _ in range(3):
            await client.flushall()
            await asyncio.sleep(2 * TTL_S)
            assert nodes.writers() == [first]
            assert await client.hget("modelsync:{f}:lease", "epoch") == b"1"
        await client.aclose()
        assert nodes.events == [(first, "promoted")]


async def test_a_dead_primary_and_an_empty_redis_reuse_no_epoch(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        for name in ("a", "b", "c"):
            nodes.start(name)
        await nodes.until(lambda: len(nodes.writers()) == 1)
        await nodes.kill(nodes.writers()[0])
        client = connect(valkey.url)
        await client.flushall()
        await client.aclose()
        await nodes.until(lambda: len(nodes.writers()) == 1)
        assert nodes.nodes[nodes.writers()[0]].epoch == 2


async def test_no_majority_no_primary(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        elector = nodes.start("a")
        await asyncio.sleep(4 * TTL_S)
        assert elector.authority is None and nodes.events == []
        nodes.start("b")
        await nodes.until(lambda: len(nodes.writers()) == 1)


async def test_a_fleet_of_two_survives_one(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b") as nodes:
        nodes.start("a")
        nodes.start("b")
        await nodes.until(lambda: len(nodes.writers()) == 1)
        await nodes.kill(nodes.writers()[0])
        await nodes.until(lambda: len(nodes.writers()) == 1)
        assert nodes.nodes[nodes.writers()[0]].fencing == "degraded"


async def test_a_switchover_goes_to_whom_it_names_and_is_quick(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        for name in ("a", "b", "c"):
            nodes.start(name)
        await nodes.until(lambda: len(nodes.writers()) == 1)
        for target in ("c", "a", "b", "c"):
            if nodes.writers() == [target]:
                continue
            await nodes.nodes[nodes.writers()[0]].release(target)
            took_s = await nodes.until(lambda target=target: nodes.writers() == [target])  # type: ignore[misc]
            assert took_s < TTL_S, "it waited for the lease to run out"


async def test_a_restarted_process_takes_its_own_lease_over_at_once(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        for name in ("a", "b", "c"):
            nodes.start(name)
        await nodes.until(lambda: len(nodes.writers()) == 1)
        first = nodes.writers()[0]
        await nodes.kill(first)
        nodes.start(first)
        assert await nodes.until(lambda: nodes.writers() == [first]) < TTL_S / 2


async def test_a_peer_that_knows_a_higher_epoch_ends_the_term_at_once(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a") as nodes:
        elector = nodes.start("a")
        await nodes.until(lambda: elector.role == "primary")
        elector.note_epoch(9, "z")
        assert elector.authority is None and elector.role == "replica"  # with no await in between
        await nodes.until(lambda: elector.role == "primary", within_s=5 * TTL_S)
        assert elector.epoch == 10


async def test_a_follower_that_names_our_epoch_changes_nothing(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a") as nodes:
        elector = nodes.start("a")
        await nodes.until(lambda: elector.role == "primary")
        for epoch in (0, 1):
            elector.note_epoch(epoch, "b")
        assert elector.authority is not None and elector.epoch == 1


async def test_a_promise_is_on_disk_before_it_is_answered_and_given_once(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        elector = nodes.start("a", role="replica")
        answer = await elector.answer_promise(5, NodeId("b"), "n")
        assert answer.granted and answer.epoch == 5
        on_disk = StateFile(tmp_path / "a.json")
        assert (on_disk.epoch, on_disk.holder, on_disk.nonce) == (5, "b", "n")
        assert (await elector.answer_promise(5, NodeId("b"), "n")).granted
        for grant in ((5, "c", "n"), (5, "b", "m"), (4, "b", "n")):
            refusal = await elector.answer_promise(grant[0], NodeId(grant[1]), grant[2])
            assert (refusal.granted, refusal.epoch, refusal.holder) == (False, 5, "b")
        assert elector.epoch == 5


async def test_an_excluded_or_paused_node_does_not_promote_itself(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        a, b, c = nodes.start("a"), nodes.start("b", nofailover=True), nodes.start("c")
        await nodes.until(lambda: len(nodes.writers()) == 1)
        for node in (a, c):
            node.set_eligibility(paused=True)
        b.set_eligibility()
        await nodes.kill(nodes.writers()[0])
        await asyncio.sleep(2 * TTL_S)
        assert nodes.writers() == []
        for node in (a, c):
            node.set_eligibility()
        await nodes.until(lambda: len(nodes.writers()) == 1)
        assert nodes.writers() != ["b"]


async def test_nobody_else_sees_the_authority_while_a_primary_prepares(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a") as nodes:
        elector = nodes.start("a")
        seen, inside = [], asyncio.Event()

        async def promoted(authority: object, ahead: object) -> None:
            seen.append(elector.authority)
            seen.append(await asyncio.to_thread(lambda: elector.authority))
            inside.set()
            await asyncio.sleep(0.2)

        elector.on_promoted = promoted
        await inside.wait()
        assert (elector.authority, elector.role) == (None, "candidate")
        await nodes.until(lambda: elector.role == "primary")
        assert seen == [elector.authority, elector.authority] and seen[0] is not None


async def test_a_node_that_cannot_take_office_gives_the_lease_back(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a") as nodes:
        elector, tries = nodes.start("a"), []

        async def promoted(authority: object, ahead: object) -> None:
            tries.append(authority)
            if len(tries) == 1:
                raise PeerUnavailable(peer="b", reason="it holds what is ahead")

        elector.on_promoted = promoted
        await nodes.until(lambda: tries)
        await nodes.until(lambda: elector.lease.state == "released")
        assert elector.role != "primary"
        await nodes.until(lambda: elector.role == "primary")
        assert elector.epoch == 2


async def test_a_fault_of_ours_while_preparing_ends_the_loop(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a") as nodes:
        elector = nodes.start("a")

        async def promoted(authority: object, ahead: object) -> None:
            raise AssertionError("ours")

        elector.on_promoted = promoted
        with pytest.raises(AssertionError, match="ours"):
            await asyncio.wait_for(nodes.tasks["a"], 5)


async def test_a_slow_redis_does_not_hold_up_the_beat(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    client = connect(valkey.url)
    async with fleet(valkey.url, tmp_path, "a") as nodes:
        elector = nodes.start("a")
        await nodes.until(lambda: elector.role == "primary")
        await client.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        lag_s = 0.0
        for _ in range(100):
            await asyncio.sleep(0.01)
            lag_s = max(lag_s, SystemClock().boottime_s() - elector.beat)
        assert lag_s < 0.2 + 4 * HEARTBEAT_S
        assert elector.authority is None and elector.role == "primary"
        await nodes.until(lambda: elector.authority is not None)
        assert elector.epoch == 1
    await client.aclose()


async def test_two_machines_of_one_name_never_write_at_once(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path / "one", "a") as one, fleet(valkey.url, tmp_path / "two", "a") as two:
        one.start("a")
        await one.until(one.writers)
        two.start("a")
        for _ in range(100):
            await asyncio.sleep(0.02)
            assert one.writers() == ["a"] and two.writers() == []


async def test_a_storm_of_nudges_costs_few_reads(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        elector = nodes.start("a", role="replica")
        await asyncio.sleep(2 * HEARTBEAT_S)
        reads, read = [], elector._coordinator.read

        async def counted() -> object:
            reads.append(1)
            return await read()

        elector._coordinator.read = counted  # type: ignore[method-assign, assignment]
        for _ in range(10_000):
            elector.nudge()
        await asyncio.sleep(HEARTBEAT_S)
        assert len(reads) < 5


async def test_a_nudge_within_a_turn_is_heard_after_it(valkey: EmbeddedRedis, tmp_path: Path) -> None:
    """The turn may have read the lease just before it was handed to this node: not to wait for the next heartbeat."""
    async with fleet(valkey.url, tmp_path, "a", "b", "c") as nodes:
        elector = nodes.start("a", role="replica")
        await asyncio.sleep(2 * HEARTBEAT_S)
        read, began, go_on = elector._coordinator.read, asyncio.Event(), asyncio.Event()
        reads: list[float] = []

        async def held() -> object:
            reads.append(asyncio.get_running_loop().time())
            began.set()
            await go_on.wait()
            return await read()

        elector._coordinator.read = held  # type: ignore[method-assign, assignment]
        await began.wait()
        elector.nudge()
        go_on.set()
        await asyncio.sleep(HEARTBEAT_S)
        assert reads[1] - reads[0] < HEARTBEAT_S / 4
