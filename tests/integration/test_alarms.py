"""What a correct fleet never shows is told where people look: status, metrics, the events channel (issue: alarms)."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.terms import QUICK_LEASE, Ledger, in_step, primary_of

from modelsync.core.errors import LeaseLost, VersionConflict
from modelsync.core.ids import EntryId
from modelsync.core.swarm.suspects import QUARANTINE_S, Suspects
from modelsync.ports import Authority, Catalog, Change
from modelsync.runtime.alarms import KINDS, Alarms
from modelsync.runtime.appending import Appending
from modelsync.runtime.reporting import REPORT_EVERY_S


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def add(fleet: Fleet, name: str, root: Path | None = None) -> Daemon:
    daemon = Daemon(name, root or fleet.root, fleet.redis_url, QUICK_LEASE)
    fleet.daemons.append(daemon.start())
    until(daemon.alive, f"{name} to answer\n{daemon.tail()}")
    return daemon


def alarms(daemon: Daemon) -> str:
    return " | ".join(text for node in daemon.status()["nodes"] for text in node.get("alarms", ()))


def counted(daemon: Daemon, kind: str) -> float:
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f'modelsync_alarms_total{{kind="{kind}"}}')))


def heard(listener: Any) -> list[dict[str, Any]]:
    found = []
    while (message := listener.get_message(timeout=0.5)) is not None:
        found.append(message)
    return [json.loads(message["data"]) for message in found if message["type"] == "message"]


def test_two_processes_under_one_id_are_named(fleet: Fleet, tmp_path: Path) -> None:
    alpha = add(fleet, "alpha")
    until(lambda: primary_of([alpha]), "the first primary")
    with fleet.redis.pubsub() as listener:
        listener.subscribe(fleet.key("events"))
        twin = add(fleet, "alpha", root=tmp_path / "twin")
        until(lambda: counted(alpha, "node.twin") and counted(twin, "node.twin"), "both to know of each other", 15)
        told = [event for event in heard(listener) if event["event"] == "alarm.raised"]
    assert {event["kind"] for event in told} >= {"node.twin"} and told[0]["node"] == "alpha"
    until(lambda: "node.twin: alpha at" in alarms(alpha), "status to tell")
    assert twin.url in " ".join(event["what"] for event in told)
    assert "ALARM node.twin" in fleet.run("status").stdout


def test_a_restart_under_the_same_id_is_no_twin(fleet: Fleet) -> None:
    alpha, beta = add(fleet, "alpha"), add(fleet, "beta")
    until(lambda: in_step(fleet.daemons), "a fleet in step")
    beta.kill()
    beta.start()
    until(lambda: beta.alive() and in_step(fleet.daemons), "beta to be back")
    time.sleep(2 * REPORT_EVERY_S)  # it has read its own report by now, and its predecessor's before that
    assert counted(beta, "node.twin") == counted(alpha, "node.twin") == 0
    assert alarms(alpha) == ""


def test_one_number_with_two_contents_and_a_lease_from_the_past(fleet: Fleet) -> None:
    ledger = Ledger()
    alpha, beta = add(fleet, "alpha"), add(fleet, "beta")
    until(lambda: in_step(fleet.daemons), "a fleet in step")
    ledger.await_accepted([alpha], "m", b"1")
    until(lambda: beta.active("m") == 1, "version 1 on beta")
    epoch = int(fleet.redis.hget(fleet.key("lease"), "epoch"))
    forged = json.loads(fleet.redis.hget(fleet.key("model:m"), "v:1"))
    forged["digest"] = "b3:" + "0" * 64
    at = f"{epoch}-900"
    fleet.redis.hset(fleet.key("model:m"), mapping={"id": at, "v:1": json.dumps(forged)})
    fleet.redis.xadd(fleet.key("log"), {"kind": "wish", "model": "m", "by": "nobody", "note": ""}, id=at)
    fleet.redis.publish(fleet.key("events"), '{"event": "wish.changed"}')
    until(lambda: counted(beta, "version.two_digests"), "beta to see two contents")
    until(lambda: "version.two_digests: version 1 of m" in alarms(beta), "its report to say so")
    assert beta.active("m") == 1, "what runs is not given up for it"


def test_every_kind_has_its_sentence_and_is_told_once() -> None:
    told: list[tuple[str, str]] = []
    made = Alarms(lambda kind, what: told.append((kind, what)))
    for kind in KINDS:
        for _ in range(3):
            made.raised(kind, "this")
    assert told == [(kind, "this") for kind in KINDS]
    assert dict(made.counts) == dict.fromkeys(KINDS, 3)
    assert made.sentences(2) == [f"{kind}: this: {KINDS[kind]}" for kind in list(KINDS)[-2:]]
    with pytest.raises(KeyError):
        made.raised("unknown.kind", "this")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LeaseLost(epoch=3, holder="beta"), "write.refused"),
        (VersionConflict(model="m", version=2, known="x", offered="y"), "version.two_digests"),
    ],
)
async def test_a_refusal_by_redis_is_an_alarm(error: Exception, kind: str) -> None:
    class Refusing:
        async def append(self, authority: Authority, change: Change) -> None:
            raise error

    raised: list[tuple[str, str]] = []
    appending = Appending(cast(Catalog, Refusing()), lambda *alarm: raised.append(alarm))
    with pytest.raises(type(error)):
        await appending.append(Authority(3, "alpha", "n"), Change(EntryId(3, 4), "m", 2, None, {}, {}, (), ""))
    assert [each for each, _ in raised] == [kind]


def test_a_peer_that_lied_is_told_once_in_each_quarantine() -> None:
    told: list[str] = []
    suspects = Suspects(told.append)
    for now_s in (0.0, 1.0, QUARANTINE_S, QUARANTINE_S + 1.5):
        suspects.accuse("beta", now_s)
    suspects.accuse("gamma", 2.0)
    assert told == ["beta", "gamma"], "an accusation within the quarantine only makes it longer"
    suspects.accuse("beta", 3 * QUARANTINE_S)
    assert told == ["beta", "gamma", "beta"]
    assert suspects.without(["alpha", "beta"], 3 * QUARANTINE_S) == ["alpha"]
