"""A fleet of three that loses its primary, its Redis or its time, as real processes: who may write, what survives."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.crew import Crew, await_live
from tests.integration.daemons import until
from tests.integration.terms import TTL_S, Ledger, in_step, primary_of, seen_by

# --- the primary dies or sleeps ---------------------------------------------------------------------------------------


def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(crew: Crew) -> None:
    old, epoch = crew.primary(), crew.epoch()
    crew.ledger.publish(old, "killed", b"before")
    await_live(crew.daemons, "killed", b"before")
    old.kill()
    answer = crew.ledger.await_accepted(crew.others(old), "killed", b"after")
    assert answer["version"] == 2 and not answer["id"].startswith(f"{epoch}-")
    await_live(crew.others(old), "killed", b"after")
    new = primary_of(crew.others(old), above=epoch)
    old.start()
    await_live([old], "killed", b"after")
    until(lambda: in_step(crew.daemons), "all three")
    assert crew.primary() is new, "who comes back follows"
    terms = json.loads(crew.run("primaries", "--json").stdout)
    assert terms[0]["node"] == new.name and terms[0]["epoch"] > epoch and old.name in terms[0]["why"]


def test_a_primary_that_slept_past_its_lease_is_fenced(crew: Crew) -> None:
    """A publish that waited in its socket while it slept is not accepted by it, and takes nobody's number."""
    old, epoch = crew.primary(), crew.epoch()
    crew.ledger.publish(old, "slept", b"1")
    old.signal(signal.SIGSTOP)
    outcome: list[int] = []
    queued = threading.Thread(target=lambda: outcome.append(crew.ledger.publish(old, "slept", b"queued")[0]))
    queued.start()
    assert crew.ledger.await_accepted(crew.others(old), "slept", b"2")["version"] == 2
    old.signal(signal.SIGCONT)
    queued.join(20)
    assert outcome and outcome[0] in (307, 409, 503), f"{outcome}: it must point elsewhere or refuse"
    await_live(crew.daemons, "slept", b"2")
    assert primary_of(crew.daemons, above=epoch) is not old


def test_a_replica_that_slept_catches_up_from_state(crew: Crew) -> None:
    replica = crew.others(crew.primary())[0]
    replica.signal(signal.SIGSTOP)
    for number in range(5):
        crew.ledger.publish(crew.primary(), "missed", b"%d" % number)
    time.sleep(TTL_S)
    replica.signal(signal.SIGCONT)
    await_live([replica], "missed", b"4")


# --- Redis ------------------------------------------------------------------------------------------------------------


def away(crew: Crew) -> Callable[[], object]:
    crew.valkey.stop()
    return crew.valkey.start


def hung(crew: Crew) -> Callable[[], object]:
    pid = crew.valkey.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(("outage", "for_s"), [(away, 1.0), (hung, 1.0), (away, 10.0)])
def test_an_outage_of_redis_changes_no_leader(
    crew: Crew, outage: Callable[[Crew], Callable[[], object]], for_s: float
) -> None:
    before, epoch = crew.primary(), crew.epoch()
    end = outage(crew)
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        assert all(daemon.alive() for daemon in crew.daemons), "they serve without Redis"
        time.sleep(0.1)
    end()
    answer = crew.ledger.await_accepted([before], "outage", os.urandom(20))
    assert answer["id"].startswith(f"{epoch}-"), "the same term goes on"
    until(lambda: in_step(crew.daemons), "all three")
    assert crew.primary() is before and crew.epoch() == epoch


@pytest.mark.parametrize("loss", ["FLUSHALL", "DEL"])
def test_what_redis_loses_is_written_back_under_the_same_epoch(crew: Crew, loss: str) -> None:
    before, epoch = crew.primary(), crew.epoch()
    model = f"lost-{loss.lower()}"
    for number in (1, 2):
        crew.ledger.publish(before, model, b"%d" % number)
    await_live(crew.daemons, model, b"2")
    crew.ledger.read_log(crew.redis)
    crew.redis.execute_command(loss, *([] if loss == "FLUSHALL" else [crew.key("lease")]))
    until(lambda: crew.redis.hget(crew.key("lease"), "holder") == before.name, "the lease")
    until(lambda: crew.redis.hget(crew.key(f"model:{model}"), "head") == "2", "the catalog")
    assert crew.ledger.await_accepted([before], model, b"3")["id"].startswith(f"{epoch}-")
    until(lambda: in_step(crew.daemons), "all three")
    assert crew.primary() is before and crew.epoch() == epoch
    before.kill()  # and the next term is above it, although Redis was wiped
    answer = crew.ledger.await_accepted(crew.others(before), model, b"4")
    assert answer["version"] == 4 and int(answer["id"].partition("-")[0]) > epoch


# --- operators --------------------------------------------------------------------------------------------------------


def test_a_pause_holds_until_resume(crew: Crew) -> None:
    old, epoch = crew.primary(), crew.epoch()
    crew.run("pause")
    until(lambda: all(d.status()["paused_by"] for d in crew.daemons), "everyone to know")
    old.kill()
    time.sleep(3 * TTL_S)
    assert all(d.status()["epoch"] == epoch for d in crew.others(old)), "nobody is promoted in a pause"
    assert crew.ledger.publish(crew.others(old)[0], "paused", b"1")[0] == 503
    crew.run("resume")
    new = primary_of(crew.others(old), above=epoch)
    assert new.status()["paused_by"] is None


def test_a_switchover_to_a_named_node(crew: Crew) -> None:
    old, epoch = crew.primary(), crew.epoch()
    target = crew.others(old)[1]
    crew.run("switchover", target.name)
    assert primary_of(crew.daemons, above=epoch, timeout_s=5) is target
    job = until(lambda: (j := old.status()["switchover"]) and j["state"] != "handing over" and j, "the job's end")
    assert (job["source"], job["target"], job["state"]) == (old.name, target.name, "done")
    assert "switchover" in json.loads(crew.run("primaries", "--json").stdout)[0]["why"]
    nobody = crew.run("switchover", "nobody", check=False)
    assert nobody.returncode == 6 and "cannot take over" in nobody.stderr


def test_a_switchover_right_after_a_change_of_primary_waits_for_its_target_to_report(crew: Crew) -> None:
    old, epoch = crew.primary(), crew.epoch()
    old.kill()
    new = primary_of(crew.others(old), above=epoch)
    (target,) = crew.others(old, new)
    later = int(new.status()["epoch"])
    crew.run("switchover", target.name)
    assert primary_of([target], above=later) is target


def test_a_switchover_whose_target_dies_half_way(crew: Crew) -> None:
    old, epoch = crew.primary(), crew.epoch()
    target = crew.others(old)[0]
    target.signal(signal.SIGSTOP)
    crew.run("switchover", target.name)
    new = primary_of(crew.others(target), above=epoch)
    job = until(lambda: (j := new.status()["switchover"]) and j["state"] != "handing over" and j, "the job's end")
    assert job["state"] == "failed" and (target.name in job["reason"]), job
    crew.ledger.await_accepted([new], "half-way", b"1")
    target.signal(signal.SIGCONT)
    until(lambda: in_step(crew.daemons), "all three")
    assert crew.primary() is new


def test_a_publish_waits_for_as_many_copies_as_asked(crew: Crew, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(os.urandom(1000))
    done = json.loads(crew.run("publish", "copies", str(tmp_path / "m.bin"), "--wait", "3", "--json").stdout)
    assert done["copies"] == 3
    asleep = crew.others(crew.primary())[0]
    asleep.signal(signal.SIGSTOP)
    (tmp_path / "m.bin").write_bytes(os.urandom(1000))
    late = crew.run("publish", "copies", str(tmp_path / "m.bin"), "--wait", "3", "--timeout", "2", check=False)
    assert late.returncode not in (0, 1) and "2 of 3 nodes hold it" in late.stderr


# --- versions that were published by a primary which nobody heard -----------------------------------------------------


@pytest.mark.parametrize("redis_loses_it", [False, True])
def test_the_last_words_of_a_primary(crew: Crew, redis_loses_it: bool) -> None:
    """It publishes while nobody listens, and dies with its disk kept. What Redis knows comes back with it; what Redis
    has lost as well is orphaned: kept, shown, and can be published again."""
    model = "last-words-lost" if redis_loses_it else "last-words"
    old, epoch = crew.primary(), crew.epoch()
    others = crew.others(old)
    crew.ledger.publish(old, model, b"1")
    await_live(crew.daemons, model, b"1")
    for daemon in others:
        daemon.signal(signal.SIGSTOP)
    ledger = Ledger() if redis_loses_it else crew.ledger
    assert ledger.publish(old, model, b"last")[1]["version"] == 2
    old.kill()
    if redis_loses_it:
        crew.redis.flushall()
    for daemon in others:
        daemon.signal(signal.SIGCONT)
    new = primary_of(others, above=epoch)
    answer = crew.ledger.await_accepted(others, model, b"next")
    assert answer["version"] == (2 if redis_loses_it else 3)
    await_live(others, model, b"next")
    old.start()
    await_live([old], model, b"next")
    if redis_loses_it:
        seen = until(lambda: next(n for n in new.status()["nodes"] if n["id"] == old.name).get("orphans"), "the orphan")
        tree = Path(seen[model]["2"])
        assert [path.read_bytes() for path in tree.iterdir()] == [b"last"]
        crew.run("publish", model, str(tree / f"{model}.bin"))
        await_live(crew.daemons, model, b"last")
    else:
        history = json.loads(crew.run("history", model, "--json").stdout)
        assert [line["version"] for line in history] == [3, 2, 1]
        assert not seen_by(old)["nodes"][0].get("orphans")
