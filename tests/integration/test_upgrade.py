"""A rolling upgrade (FAULTS 29): what a later release may add is passed over, what it may change is refused by name."""

from __future__ import annotations

import json
import time

from blake3 import blake3
from tests.integration.crew import Crew, await_live
from tests.integration.daemons import until
from tests.integration.terms import TTL_S, in_step, primary_of

LATER = {"later": "a field of a release that does not exist yet"}


def test_what_a_later_release_adds_is_passed_over(crew: Crew) -> None:
    """Fields, kinds of entries, events and a node's own words that this release has never heard of."""
    redis, old, epoch = crew.redis, crew.primary(), crew.epoch()
    crew.ledger.publish(old, "m", b"1")
    await_live(crew.daemons, "m", b"1")
    for key in ("lease", "fleet", "model:m"):
        redis.hset(crew.key(key), mapping=LATER)
    redis.hset(crew.key("node:later"), mapping={**LATER, "id": "later", "role": "observer", "url": "", "state": "new"})
    redis.expire(crew.key("node:later"), 3600)
    redis.sadd(crew.key("nodes"), "later")
    redis.publish(crew.key("events"), json.dumps({"event": "something.new", **LATER}))
    redis.publish(crew.key("control"), json.dumps({"later": ["verb"]}))
    time.sleep(TTL_S)
    assert crew.ledger.await_accepted([old], "m", b"2")["id"].startswith(f"{epoch}-"), "the same term goes on"
    await_live(crew.daemons, "m", b"2")
    assert redis.hget(crew.key("model:m"), "later") == LATER["later"], "what is not understood is not thrown away"
    redis.srem(crew.key("nodes"), "later")
    redis.delete(crew.key("node:later"))
    for daemon in crew.daemons:
        redis.publish(crew.key("control"), "forget later")
        until(lambda d=daemon: d.alive(), "it to live on")


def test_each_host_is_restarted_in_turn_as_an_upgrade_does(crew: Crew) -> None:
    until(lambda: in_step(crew.daemons), "all three")
    for number, daemon in enumerate(crew.daemons):
        assert daemon.stop() == 0
        new = primary_of(crew.others(daemon))
        crew.ledger.await_accepted([new], "rolling", b"%d" % number)
        daemon.start()
        until(lambda: in_step(crew.daemons), "all three", 30)
        await_live(crew.daemons, "rolling", b"%d" % number)


def test_a_manifest_of_a_later_format_is_refused_by_name_and_the_old_version_stays(started_crew: Crew) -> None:
    """The last test of this file: the fleet stays degraded while its newest version cannot be read."""
    crew = started_crew
    until(lambda: in_step(crew.daemons), "all three")
    redis, primary = crew.redis, crew.primary()
    crew.ledger.publish(primary, "later", b"1")
    await_live(crew.daemons, "later", b"1")
    entry = json.loads(redis.hget(crew.key("model:later"), "v:1"))
    document = (primary.state / "manifests" / entry["digest"].removeprefix("b3:")).read_bytes()
    newer = json.loads(document)
    newer.update(format=newer["format"] + 1, version=2, id=f"{crew.epoch()}-{10**6}")
    data = json.dumps(newer, sort_keys=True, separators=(",", ":")).encode()
    entry.update(digest=f"b3:{blake3(data).hexdigest()}", id=newer["id"])
    redis.hset(crew.key("model:later"), mapping={"id": newer["id"], "head": 2, "desired": 2, "v:2": json.dumps(entry)})
    fields = {"kind": "published", "model": "later", "version": 2, "digest": entry["digest"], "by": "", "note": ""}
    redis.xadd(crew.key("log"), {**fields, "manifest": data.decode()}, id=newer["id"])
    redis.publish(crew.key("events"), '{"event": "version.published"}')
    replica = crew.others(primary)[0]
    until(lambda: "format" in str(replica.status()), "it to say what it does not understand")
    await_live(crew.daemons, "later", b"1")
    crew.run("rollback", "later", "1")
    until(lambda: replica.active("later") == 1, "version 1 to be what is wanted")
