"""Elections under a crowd (FAULTS 14, 26, 27): all start at once, primaries change often, new ones die young."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.crew import Crew, await_live
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.terms import QUICK_LEASE, TTL_S, Ledger, in_step, primary_of, seen_by

SWITCHES = 12
"""The bench `tools/bench/failover` does a hundred; here only that it can be done again and again."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    made = Crew(tmp_path)
    yield made
    made.close()


def test_five_that_start_at_once_have_one_primary(fleet: Fleet) -> None:
    ledger = Ledger()
    for name in ("a", "b", "c", "d", "e"):
        fleet.add(name, QUICK_LEASE, wait=False)
    until(lambda: in_step(fleet.daemons), "a fleet in step", 40)
    ledger.await_accepted([primary_of(fleet.daemons)], "m", b"1")
    await_live_named(fleet.daemons, "m")
    ledger.check(fleet.redis, fleet.daemons)


def await_live_named(daemons: list[Daemon], model: str) -> None:
    for daemon in daemons:
        until(lambda d=daemon: d.tree(model) is not None, f"{model} on {daemon.name}")


def test_primaries_that_change_again_and_again(crew: Crew) -> None:
    until(lambda: in_step(crew.daemons), "a fleet in step")
    for number in range(SWITCHES):
        old, epoch = crew.primary(), crew.epoch()
        crew.run("switchover")
        new = primary_of(crew.others(old), above=epoch, timeout_s=10)
        crew.ledger.await_accepted([new], "m", b"%d" % number)
    await_live(crew.daemons, "m", b"%d" % (SWITCHES - 1))
    crew.ledger.check(crew.redis, crew.daemons)


def test_a_new_primary_that_dies_before_its_first_publish(crew: Crew) -> None:
    until(lambda: in_step(crew.daemons), "a fleet in step")
    first, epoch = crew.primary(), crew.epoch()
    crew.ledger.publish(first, "m", b"1")
    await_live(crew.daemons, "m", b"1")
    first.kill()
    second = primary_of(crew.others(first), above=epoch)
    second.kill()
    third = next(iter(crew.others(first, second)))
    time.sleep(2 * TTL_S)
    assert crew.ledger.publish(third, "m", b"alone")[0] == 503, "one of three is no majority"
    first.start()
    answer = crew.ledger.await_accepted([third, first], "m", b"2")
    assert answer["version"] == 2
    second.start()
    await_live(crew.daemons, "m", b"2")
    until(lambda: in_step(crew.daemons), "all three")
    crew.ledger.check(crew.redis, crew.daemons)


def test_a_switchover_while_replicas_pull(fleet: Fleet) -> None:
    """The bytes go on coming, from whoever has them, under the next epoch."""
    slow = f"{QUICK_LEASE}[transfer]\nrate_limit_bytes_per_s = {16 << 20}\n"
    alpha = fleet.add("alpha", QUICK_LEASE)
    beta = fleet.add("beta", slow)
    gamma = fleet.add("gamma", slow)
    until(lambda: in_step(fleet.daemons), "a fleet in step")
    epoch = alpha.status()["epoch"]
    data = os.urandom(48 << 20)
    alpha.put("large.bin", data)
    until(lambda: any(n.get("transfers") for n in seen_by(beta).get("nodes", ())), "a pull under way")
    fleet.run("switchover", "gamma")
    assert primary_of(fleet.daemons, above=epoch, timeout_s=10) is gamma
    await_live_named([beta, gamma], "large")
    for daemon in (beta, gamma):
        tree = daemon.tree("large")
        assert tree is not None and (tree / "large.bin").read_bytes() == data
    job = until(lambda: (j := gamma.status()["switchover"]) and j["state"] != "handing over" and j, "the job's end")
    assert job["state"] == "done"


def test_a_daemon_of_another_fleet_on_the_same_redis_is_a_stranger(fleet: Fleet) -> None:
    alpha = fleet.add("alpha", QUICK_LEASE)
    other = Daemon("other", fleet.root, fleet.redis_url, QUICK_LEASE)
    other.config.write_text(other.config.read_text().replace('name = "test"', 'name = "elsewhere"'))
    fleet.daemons.append(other.start())
    until(other.alive, "it to answer")
    assert primary_of([other]) is other and primary_of([alpha]) is alpha
    Ledger().await_accepted([alpha], "m", b"1")
    assert other.status()["models"] == [] and len(alpha.status()["nodes"]) == 1
    assert alpha.status()["fleet"] != other.status()["fleet"]


def pulled_bytes(daemon: Daemon) -> int:
    """Verified bytes of the pull under way, as it says itself."""
    nodes = [node for node in seen_by(daemon).get("nodes", ()) if node["id"] == daemon.name]
    return max((line["done_bytes"] for node in nodes for line in node.get("transfers", {}).values()), default=0)


def test_a_stop_in_the_middle_of_a_pull_is_quick_and_loses_nothing(fleet: Fleet) -> None:
    """FAULTS 13: SIGTERM while bytes come in slowly; what was verified is not fetched again."""
    alpha = fleet.add("alpha", QUICK_LEASE)
    beta = fleet.add("beta", f"{QUICK_LEASE}[transfer]\nrate_limit_bytes_per_s = {8 << 20}\n")
    until(lambda: in_step(fleet.daemons), "a fleet in step")
    data = os.urandom(32 << 20)
    alpha.put("large.bin", data)
    until(lambda: pulled_bytes(beta) > 8 << 20, "8 MiB of it")
    assert beta.stop(timeout_s=10) == 0
    beta.config.write_text(beta.base + QUICK_LEASE)
    beta.start()
    await_live_named([beta], "large")
    pulled = [line for line in beta.log.read_text().splitlines() if '"version.pulled"' in line]
    assert int(pulled[-1].partition('"wire_bytes": ')[2].partition(",")[0]) < 26 << 20
