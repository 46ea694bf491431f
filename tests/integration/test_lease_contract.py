"""The contract of the five scripts, the same for every Redis we may meet: fakeredis, Valkey, Debian's Redis 7.0."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from typing import Any

import fakeredis
import pytest

from modelsync.core.election.lease import NO_LEASE
from modelsync.core.errors import (
    LeaseLost,
    MalformedMessage,
    RedisRefused,
    RedisUnavailable,
    StaleEpoch,
    VersionConflict,
)
from modelsync.core.ids import EntryId, FleetName, NodeId, Version
from modelsync.edges.redis.catalog import RedisCatalog
from modelsync.edges.redis.connect import connect
from modelsync.edges.redis.embedded import EmbeddedRedis
from modelsync.edges.redis.lease import RedisLease
from modelsync.ports import Authority, Change, LeaseView

P = "modelsync:{f}:"
A, B = NodeId("a"), NodeId("b")
MAX = 2**53 - 1
D1, D2 = "b3:" + "1" * 64, "b3:" + "2" * 64


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("valkey"))
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def redis7(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH (Debian: apt-get install redis-server)")
    socket = tmp_path_factory.mktemp("redis7") / "redis.sock"
    argv = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(socket.parent)]
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    while not socket.exists():
        time.sleep(0.01)
    yield f"unix://{socket}"
    child.terminate()
    child.wait()


@pytest.fixture(params=["fakeredis", "valkey", "redis7"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "fakeredis":
        client: Any = fakeredis.FakeAsyncRedis()
    else:
        client = connect(request.getfixturevalue(request.param))
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def a(redis: Any) -> RedisLease:
    return RedisLease(redis, FleetName("f"), A, "http://a")


@pytest.fixture
def b(redis: Any) -> RedisLease:
    return RedisLease(redis, FleetName("f"), B, "http://b")


async def held(lease: RedisLease, holder: NodeId = A, nonce: str = "n", min_epoch: int = 0) -> Authority:
    epoch = await lease.acquire(await lease.read(), nonce, min_epoch)
    assert isinstance(epoch, int)
    return Authority(epoch, holder, nonce)


# --- acquire --------------------------------------------------------------------------------------------------------


async def test_no_lease_reads_as_epoch_zero_and_can_be_acquired(a: RedisLease) -> None:
    assert await a.read() == NO_LEASE
    assert await a.acquire(NO_LEASE, "n1", 0) == 1
    assert await a.read() == LeaseView(1, "a", "n1", 0, "held", "", "http://a")


@pytest.mark.parametrize("stale", [{"epoch": 0, "nonce": "", "seq": 0}, {"seq": 1}, {"nonce": "x"}, {"epoch": 2}])
async def test_acquire_only_what_was_observed(a: RedisLease, b: RedisLease, stale: dict[str, Any]) -> None:
    await held(a)
    seen = await b.read()
    observed = LeaseView(**{"epoch": 1, "holder": "a", "nonce": "n", "seq": 0, "state": "held"} | stale)
    assert await b.acquire(observed, "nb", 0) == seen
    assert await b.read() == seen


async def test_acquire_goes_above_lease_epoch_key_log_and_disk(redis: Any, a: RedisLease) -> None:
    assert await a.acquire(NO_LEASE, "n", 41) == 42  # disk
    assert await a.acquire(await a.read(), "n", 0) == 43  # lease
    await redis.set(P + "epoch", 50)
    assert await a.acquire(await a.read(), "n", 0) == 51
    await redis.xadd(P + "log", {"kind": "x"}, id="60-7")
    assert await a.acquire(await a.read(), "n", 0) == 61
    await redis.delete(P + "lease", P + "epoch")
    assert await a.acquire(NO_LEASE, "n", 0) == 61  # the log alone remembers 60, so 61 is free again: disks decide
    assert await redis.get(P + "epoch") == b"61"


async def test_acquire_clears_what_the_last_holder_left(redis: Any, a: RedisLease, b: RedisLease) -> None:
    await a.release(await held(a), "b")
    await redis.hset(P + "lease", "stray", "x")
    assert (await b.read()).successor == "b"
    await held(b, B)
    assert await b.read() == LeaseView(2, "b", "n", 0, "held", "", "http://b")
    assert await redis.hexists(P + "lease", "stray") == 0


async def test_epochs_are_exact_up_to_the_last_and_then_refused(redis: Any, a: RedisLease) -> None:
    assert await a.acquire(NO_LEASE, "n", MAX - 1) == MAX
    assert (await a.read()).epoch == MAX
    with pytest.raises(RedisRefused, match="no epoch is left"):
        await a.acquire(await a.read(), "n", 0)
    assert (await a.read()).epoch == MAX


# --- renew ----------------------------------------------------------------------------------------------------------


async def test_renew_writes_the_heartbeat(a: RedisLease) -> None:
    authority = await held(a)
    assert await a.renew(authority, 7) is None
    assert (await a.read()).seq == 7


@pytest.mark.parametrize("other", [Authority(2, A, "n"), Authority(1, B, "n"), Authority(1, A, "m")])
async def test_renew_needs_the_very_grant(a: RedisLease, other: Authority) -> None:
    await held(a)
    assert await a.renew(other, 9) == await a.read()
    assert (await a.read()).seq == 0


async def test_renew_of_a_lost_or_released_lease_says_so(redis: Any, a: RedisLease) -> None:
    authority = await held(a)
    await a.release(authority)
    refused = await a.renew(authority, 1)
    assert refused is not None and (refused.epoch, refused.state) == (1, "released")
    await redis.delete(P + "lease")
    assert await a.renew(authority, 1) == NO_LEASE
    assert await redis.exists(P + "lease") == 0


# --- reassert -------------------------------------------------------------------------------------------------------


async def test_reassert_after_flushall_restores_lease_and_epoch(redis: Any, a: RedisLease) -> None:
    authority = await held(a, min_epoch=4)
    await redis.flushall()
    assert await a.reassert(authority, 12) is None
    assert await a.read() == LeaseView(5, "a", "n", 12, "held", "", "http://a")
    assert await redis.get(P + "epoch") == b"5"


async def test_reassert_over_an_older_lease_that_came_back(a: RedisLease, b: RedisLease) -> None:
    await held(b, B)
    assert await a.reassert(Authority(9, A, "n"), 3) is None
    assert (await a.read()).epoch == 9


@pytest.mark.parametrize("what", ["lease", "equal", "epoch", "log"])
async def test_reassert_yields_to_anything_newer(redis: Any, a: RedisLease, b: RedisLease, what: str) -> None:
    if what in ("lease", "equal"):
        await held(b, B, min_epoch=6 if what == "lease" else 4)
    elif what == "epoch":
        await redis.set(P + "epoch", 6)
    else:
        await redis.xadd(P + "log", {"kind": "x"}, id="6-1")
    before = await a.read()
    assert await a.reassert(Authority(5, A, "n"), 1) == before
    assert await a.read() == before


# --- release --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successor", "state"), [("", "released"), ("b", "handoff")])
async def test_release_is_announced(redis: Any, a: RedisLease, successor: str, state: str) -> None:
    authority = await held(a)
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(P + "events")
    await pubsub.get_message(timeout=0.05)
    await a.release(authority, successor)
    lease = await a.read()
    assert (lease.state, lease.successor, lease.epoch) == (state, successor, 1)
    message = await pubsub.get_message(timeout=1)
    assert message is not None and b"lease.released" in message["data"]
    await pubsub.aclose()


@pytest.mark.parametrize("other", [Authority(2, A, "n"), Authority(1, B, "n"), Authority(1, A, "m")])
async def test_release_of_what_is_not_ours_changes_nothing(a: RedisLease, other: Authority) -> None:
    await held(a)
    await a.release(other)
    assert (await a.read()).state == "held"


# --- publish --------------------------------------------------------------------------------------------------------


def change(id: str, version: int | None = 1, digest: str | None = D1, note: str = "") -> Change:
    known = f'{{"content":"{D2}","digest":"{digest}","note":"{note}","parent":"{D2}"}}'
    written = {f"v:{version}": known, "head": str(version)} if version else {"desired": "1"}
    log = {"kind": "published", "model": "m", "note": note}
    return Change(
        id=EntryId.parse(id),
        model="m",
        version=Version(version) if version else None,
        digest=digest if version else None,
        log=log,
        written=written,
        removed=("gone",),
        announcement="{}",
    )


@pytest.fixture
def catalog(redis: Any) -> RedisCatalog:
    return RedisCatalog(redis, FleetName("f"))


async def test_publish_writes_log_hash_names_and_announcement(redis: Any, a: RedisLease, catalog: RedisCatalog) -> None:
    authority = await held(a)
    await redis.hset(P + "model:m", "gone", "x")
    await catalog.append(authority, change("1-1"))
    assert await catalog.tail() == EntryId(1, 1)
    assert await catalog.model_names() == ["m"]
    assert set(await redis.hgetall(P + "model:m")) == {b"v:1", b"head"}


@pytest.mark.parametrize("other", [Authority(2, A, "n"), Authority(1, B, "n"), Authority(1, A, "m")])
async def test_publish_is_fenced(redis: Any, a: RedisLease, catalog: RedisCatalog, other: Authority) -> None:
    await held(a)
    with pytest.raises(LeaseLost):
        await catalog.append(other, change(f"{other.epoch}-1"))
    assert await redis.keys("*model*m") == [] and await catalog.tail() == EntryId(0, 0)


async def test_publish_after_a_release_or_a_takeover_is_refused(
    a: RedisLease, b: RedisLease, catalog: RedisCatalog
) -> None:
    authority = await held(a)
    await a.release(authority)
    with pytest.raises(LeaseLost):
        await catalog.append(authority, change("1-1"))
    await held(b, B)
    with pytest.raises(LeaseLost):
        await catalog.append(authority, change("1-1"))


@pytest.mark.parametrize("id", ["2-9", "0-9", "1-4", "1-3"])
async def test_publish_ids_only_grow_within_the_epoch(a: RedisLease, catalog: RedisCatalog, id: str) -> None:
    authority = await held(a)
    await catalog.append(authority, change("1-5"))
    with pytest.raises(StaleEpoch):
        await catalog.append(authority, change(id, 2))
    await catalog.append(authority, change("1-6", 2))


async def test_publish_repeated_after_a_lost_answer_is_done_once(
    redis: Any, a: RedisLease, catalog: RedisCatalog
) -> None:
    authority = await held(a)
    await catalog.append(authority, change("1-1"))
    await catalog.append(authority, change("1-1"))
    assert await redis.xlen(P + "log") == 1


async def test_publish_of_something_else_under_the_last_id_is_no_repeat(a: RedisLease, catalog: RedisCatalog) -> None:
    authority = await held(a)
    await catalog.append(authority, change("1-1"))
    with pytest.raises(StaleEpoch):
        await catalog.append(authority, change("1-1", note="another"))


async def test_publish_never_changes_a_version(redis: Any, a: RedisLease, catalog: RedisCatalog) -> None:
    authority = await held(a)
    await catalog.append(authority, change("1-1"))
    with pytest.raises(VersionConflict):  # D2 stands in the known entry, but as parent and content
        await catalog.append(authority, change("1-2", digest=D2))
    assert await catalog.tail() == EntryId(1, 1)
    await catalog.append(authority, change("1-2", note='"digest":"'.replace('"', '\\"')))


async def test_publish_after_an_entry_that_redis_lost_is_refused(
    redis: Any, a: RedisLease, catalog: RedisCatalog
) -> None:
    authority = await held(a)

    async def publish(id: str, version: int, after: str) -> Any:
        one = change(id, version)
        log = [part for pair in (one.log | {"after": after}).items() for part in pair]  # type: ignore[operator]
        fields = [part for pair in one.written.items() for part in pair]
        keys = [P + key for key in ("lease", "log", "model:m", "models", "events")]
        head = [authority.epoch, "a", "n", id, "m", version, one.digest, "{}"]
        return await redis.eval(publish_lua, len(keys), *keys, *head, len(log), *log, len(fields), *fields)

    publish_lua = (files("modelsync.edges.redis") / "lua" / "publish.lua").read_text()
    assert await publish("1-1", 1, "0-0") == [1]
    assert await publish("1-2", 2, "1-1") == [1]
    assert await publish("1-2", 2, "1-1") == [2]
    await redis.xdel(P + "log", "1-2")
    assert await publish("1-3", 3, "1-2") == [0, b"behind"]
    await redis.delete(P + "log")
    assert await publish("1-3", 3, "1-2") == [0, b"behind"]
    assert await redis.hexists(P + "model:m", "v:3") == 0
    assert await publish("1-3", 3, "0-0") == [1]


@pytest.mark.parametrize("key", ["model:m", "models", "log", "lease"])
async def test_publish_onto_a_key_of_the_wrong_type_writes_nothing(
    redis: Any, a: RedisLease, catalog: RedisCatalog, key: str
) -> None:
    authority = await held(a)
    await redis.delete(P + key)
    await redis.set(P + key, "x")
    before = sorted(await redis.keys("*"))
    with pytest.raises(RedisRefused):
        await catalog.append(authority, change("1-1"))
    assert sorted(await redis.keys("*")) == before
    assert await redis.type(P + key) == b"string"


async def test_publish_epochs_near_2_53_are_told_apart(redis: Any, a: RedisLease, catalog: RedisCatalog) -> None:
    authority = await held(a, min_epoch=MAX - 2)
    await redis.xadd(P + "log", {"kind": "x"}, id=f"{MAX}-1")
    with pytest.raises(StaleEpoch):
        await catalog.append(authority, change(f"{MAX - 1}-1"))
    for absurd in (2**53 + 1, 2**64 - 1):  # a double rounds the first; the second has more digits than we read
        await redis.delete(P + "log")
        await redis.xadd(P + "log", {"kind": "x"}, id=f"{absurd}-1")
        with pytest.raises(StaleEpoch):
            await catalog.append(authority, change(f"{MAX - 1}-1"))


# --- hostile keys ---------------------------------------------------------------------------------------------------

GOOD = {"epoch": "3", "holder": "a", "nonce": "n", "seq": "0", "state": "held"}


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": str(2**63)},
        {"epoch": "9" * 5000},
        {"epoch": "-1"},
        {"epoch": "0"},
        {"epoch": "1e3"},
        {"epoch": "٣"},
        {"seq": str(2**53)},
        {"holder": b"\xff\xfe"},
        {"holder": "../../etc"},
        {"holder": ""},
        {"nonce": b"\xed\xa0\x80"},
        {"state": "mine"},
        {"successor": "a/b"},
        {"url": "x" * 2000},
        {f"more{n}": "x" for n in range(100)},
    ],
    ids=lambda fields: str(fields)[:30],
)
async def test_a_hostile_lease_is_a_fault_and_not_an_absence(redis: Any, a: RedisLease, fields: dict[str, Any]) -> None:
    await redis.hset(P + "lease", mapping=GOOD | fields)
    with pytest.raises(MalformedMessage):
        await a.read()


@pytest.mark.parametrize("missing", sorted(GOOD))
async def test_a_lease_that_lacks_a_field_is_a_fault(redis: Any, a: RedisLease, missing: str) -> None:
    await redis.hset(P + "lease", mapping={k: v for k, v in GOOD.items() if k != missing})
    with pytest.raises(MalformedMessage):
        await a.read()


@pytest.mark.parametrize("key", ["lease", "epoch", "log"])
async def test_keys_of_the_wrong_type_are_refused_and_kept(redis: Any, a: RedisLease, key: str) -> None:
    await redis.sadd(P + key, "x")
    with pytest.raises(RedisRefused):
        await a.acquire(NO_LEASE, "n", 0)
    with pytest.raises(RedisRefused):
        await a.reassert(Authority(1, A, "n"), 0)
    assert await redis.type(P + key) == b"set"
    assert len(await redis.keys("*")) == 1


@pytest.mark.parametrize("value", [str(2**53), str(2**63), "9" * 5000, "x", "", "-1", "1.5"])
async def test_an_absurd_epoch_key_is_refused(redis: Any, a: RedisLease, value: str) -> None:
    await redis.set(P + "epoch", value)
    with pytest.raises(RedisRefused, match="MALFORMED"):
        await a.acquire(NO_LEASE, "n", 0)
    with pytest.raises(RedisRefused, match="MALFORMED"):
        await a.reassert(Authority(1, A, "n"), 0)
    assert await redis.exists(P + "lease") == 0


async def test_an_absurd_log_is_refused(redis: Any, a: RedisLease) -> None:
    await redis.xadd(P + "log", {"kind": "x"}, id=f"{2**53}-1")
    with pytest.raises(RedisRefused, match="MALFORMED"):
        await a.acquire(NO_LEASE, "n", 0)


async def test_scripts_survive_a_script_flush(redis: Any, a: RedisLease) -> None:
    authority = await held(a)
    await a.renew(authority, 1)
    await redis.script_flush()
    assert await a.renew(authority, 2) is None


class _Says:
    """A client that answers every command alike."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply

    async def evalsha(self, *args: Any) -> Any:
        return self.reply

    hgetall = evalsha


@pytest.mark.parametrize("reply", [None, 1, b"OK", [], [b"1"], [2], [1], [1, b"x"], [1, b"99999999999999999"], [0, 1]])
async def test_an_answer_that_no_script_of_ours_gives_is_malformed(reply: Any) -> None:
    lease = RedisLease(_Says(reply), FleetName("f"), A, "")
    with pytest.raises(MalformedMessage):
        await lease.acquire(NO_LEASE, "n", 0)
    if reply not in ([1], [1, b"x"], [1, b"99999999999999999"]):
        with pytest.raises(MalformedMessage):
            await lease.renew(Authority(1, A, "n"), 1)
    with pytest.raises(MalformedMessage):
        await lease.read()


async def test_no_redis_is_unavailable_and_within_the_time_limit() -> None:
    lease = RedisLease("redis://127.0.0.1:1", FleetName("f"), A, "")
    began_s = time.monotonic()
    with pytest.raises(RedisUnavailable):
        await lease.read()
    assert time.monotonic() - began_s < 1
    await lease.close()
