"""The simulation's Redis against a real one: the same random calls, the same answers, the same state after each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from tests.sim.redis_model import RedisModel, Written

from modelsync.core.election.lease import NO_LEASE, Authority, LeaseView
from modelsync.core.ids import EntryId, FleetName, NodeId
from modelsync.edges.redis.connect import connect
from modelsync.edges.redis.embedded import EmbeddedRedis
from modelsync.edges.redis.lease import RedisLease

P = "modelsync:{f}:"
PUBLISH = (files("modelsync.edges.redis") / "lua" / "publish.lua").read_text()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("valkey"))
    yield server.start()
    server.stop()


class Real:
    """A real server behind the model's interface, one client for each node."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.leases = {name: RedisLease(client, FleetName("f"), NodeId(name), "") for name in "ab"}

    async def acquire(self, holder: str, observed: LeaseView, nonce: str, min_epoch: int) -> int | LeaseView:
        return await self.leases[holder].acquire(observed, nonce, min_epoch)

    async def renew(self, authority: Authority, seq: int) -> LeaseView | None:
        return await self.leases["a"].renew(authority, seq)

    async def reassert(self, authority: Authority, seq: int) -> LeaseView | None:
        return await self.leases["a"].reassert(authority, seq)

    async def release(self, authority: Authority, successor: str) -> None:
        await self.leases["a"].release(authority, successor)

    async def publish(self, authority: Authority, after: EntryId, id: EntryId, written: dict[int, Written]) -> str:
        note = " ".join(f"{n}={one.content}" for n, one in sorted(written.items()))
        log = ["kind", "published", "after", str(after), "note", note]
        fields = [part for n, one in written.items() for part in (f"v:{n}", one.content)]
        keys = [P + key for key in ("lease", "log", "model:m", "models", "events")]
        head = [authority.epoch, authority.holder, authority.nonce, str(id), "m", "", "", "{}"]
        reply = await self.client.eval(PUBLISH, len(keys), *keys, *head, len(log), *log, len(fields), *fields)
        return {1: "done", 2: "repeat"}.get(reply[0]) or reply[1].decode()

    async def state(self) -> tuple[LeaseView, int, str, set[int]]:
        tail = await self.client.xrevrange(P + "log", count=1)
        versions = await self.client.hkeys(P + "model:m")
        return (
            await self.leases["a"].read(),
            int(await self.client.get(P + "epoch") or 0),
            tail[0][0].decode() if tail else "0-0",
            {int(key[2:]) for key in versions},
        )


def _model_state(model: RedisModel) -> tuple[LeaseView, int, str, set[int]]:
    data = model.data
    return data.lease, data.epoch, str(data.tail), set(data.record.versions)


def _call(dice: random.Random, model: RedisModel) -> tuple[str, tuple[Any, ...]]:
    """A call that often fits the state, and often just does not."""
    lease = model.data.lease
    name, nonce = dice.choice("ab"), dice.choice("nm")
    observed = dice.choice((lease, lease, NO_LEASE, LeaseView(1, "a", "n", 1, "held")))
    epoch = max(1, lease.epoch + dice.choice((0, 0, 0, -1, 1)))
    near = Authority(epoch, NodeId(dice.choice((lease.holder or "a", name))), dice.choice((lease.nonce or "n", nonce)))
    tail = model.data.tail
    after = dice.choice((tail, tail, tail, EntryId(1, 1)))
    id = dice.choice((EntryId(epoch, 1), EntryId(epoch, tail.seq + 1), tail, EntryId(max(1, tail.epoch - 1), 9)))
    if id == EntryId(0, 0):
        id = EntryId(epoch, 1)
    number = dice.randint(1, 4)
    return dice.choice(
        (
            ("acquire", (name, observed, nonce, dice.randint(0, 3))),
            ("renew", (near, dice.randint(0, 5))),
            ("reassert", (near, dice.randint(0, 5))),
            ("release", (near, dice.choice(("", "a", "b")))),
            ("publish", (near, after, id, {number: Written(number, "x", id)})),
            ("publish", (near, after, id, {number: Written(number, "x", id)})),
        )
    )


@pytest.mark.parametrize("seed", range(40))
async def test_the_model_answers_as_the_scripts_do(url: str, seed: int) -> None:
    dice, client = random.Random(seed), connect(url)
    await client.flushall()
    real, model = Real(client), RedisModel()
    answers: set[str] = set()
    for step in range(60):
        if dice.random() < 0.03:
            await client.flushall()
            model = RedisModel()
        name, args = _call(dice, model)
        expected = getattr(model, name)(*args)
        got = await getattr(real, name)(*args)
        assert got == expected, f"step {step}: {name}{args}"
        assert await real.state() == _model_state(model), f"step {step}: after {name}{args}"
        answers.add(f"{name}:{expected}" if name == "publish" else f"{name}:{type(expected).__name__}")
    await client.aclose()
    assert len(answers) > 5
