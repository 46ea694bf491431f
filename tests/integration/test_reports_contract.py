"""Reports and beats over every Redis we may meet, as test_lease_contract has them: what is written, lost and read."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.test_lease_contract import P, redis, redis7, valkey  # noqa: F401  fixtures

from modelsync.core.ids import FleetName, NodeId
from modelsync.edges.redis.catalog import RedisCatalog

A, B = NodeId("a"), NodeId("b")
FIELDS = {"id": "a", "role": "replica", "url": "http://a", "state": "ok", "models": "{}", "extra": "{}", "moving": "{}"}


@pytest.fixture
def catalog(redis: Any) -> RedisCatalog:  # noqa: F811
    return RedisCatalog(redis, FleetName("f"))


async def test_a_report_is_written_whole_and_then_what_is_new(redis: Any, catalog: RedisCatalog) -> None:  # noqa: F811
    assert await catalog.report(A, FIELDS, "x.1 1", after="")
    assert await catalog.report(A, {"state": "degraded"}, "x.2 2", after="x.1 1")
    assert await catalog.report(A, {}, "x.2 3", after="x.2 2")
    look = await catalog.beats()
    assert (list(look.names), dict(look.beats)) == (["a"], {"a": "x.2 3"})
    (report,) = await catalog.reports(["a", "absent"])
    assert (report.id, report.state, report.url) == ("a", "degraded", "http://a") and report.last_seen_s < 2
    assert 3590 < await redis.ttl(P + "node:a") <= 3600


async def test_whoever_was_forgotten_by_redis_is_told_whatever_it_writes(redis: Any, catalog: RedisCatalog) -> None:  # noqa: F811
    """With new fields too, which alone would make a report that is none."""
    for fields in ({}, {"state": "degraded"}):
        await redis.flushall()
        assert not await catalog.report(A, fields, "x.2 2", after="x.1 1")
        assert await catalog.report(A, FIELDS, "x.2 2", after="")
        assert [report.url for report in await catalog.nodes()] == ["http://a"]
        assert await redis.ttl(P + "node:a") > 3590


async def test_a_redis_that_lost_the_last_report_shows_an_older_beat(redis: Any, catalog: RedisCatalog) -> None:  # noqa: F811
    """As one has that took over: the report is there, and not what it said last."""
    await catalog.report(A, FIELDS, "x.1 1", after="")
    assert not await catalog.report(A, {}, "x.2 3", after="x.2 2")
    assert await catalog.report(A, {"state": "degraded", **FIELDS}, "x.3 4", after="")
    assert await catalog.report(A, {}, "x.3 5", after="x.3 4")


async def test_a_lost_set_of_names_is_mended_by_the_next_beat(redis: Any, catalog: RedisCatalog) -> None:  # noqa: F811
    await catalog.report(A, FIELDS, "x.1 1", after="")
    await redis.delete(P + "nodes")
    assert await catalog.report(A, {}, "x.1 2", after="x.1 1")
    assert list((await catalog.beats()).names) == ["a"]


async def test_who_is_forgotten_leaves_no_beat(redis: Any, catalog: RedisCatalog) -> None:  # noqa: F811
    for node in (A, B):
        await catalog.report(node, {**FIELDS, "id": node}, "x.1 1", after="")
    await catalog.forget(A)
    look = await catalog.beats()
    assert (list(look.names), dict(look.beats)) == (["b"], {"b": "x.1 1"})


async def test_a_stranger_s_beats_spoil_nobody_else_s(redis: Any, catalog: RedisCatalog) -> None:  # noqa: F811
    await catalog.report(A, FIELDS, "x.1 1", after="")
    await redis.hset(P + "beats", mapping={b"\xff": b"1", "b": b"\xff\xfe", "c": "y" * 5000, "../x": "1"})
    await redis.sadd(P + "nodes", b"\xff", "../x", "c")
    look = await catalog.beats()
    assert list(look.names) == ["a", "c"] and look.beats["a"] == "x.1 1" and len(look.beats["c"]) <= 64


async def test_what_moves_stands_beside_the_rest_and_is_read_with_it(redis: Any, catalog: RedisCatalog) -> None:  # noqa: F811
    moving = '{"transfers": {"m": {"done_bytes": 1, "total_bytes": 2}}}'
    await catalog.report(A, {**FIELDS, "moving": moving, "extra": '{"fencing": "majority"}'}, "x.1 1", after="")
    (report,) = await catalog.reports(["a"])
    assert report.moving and report.extra["fencing"] == "majority"
    await redis.hset(P + "node:a", "moving", "[1]")
    assert (await catalog.reports(["a"]))[0].state == "unreadable"
