"""What breaks on real hosts: power, processes, Redis, messages. Afterwards everyone is in step, and nothing is lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.fleet.lab import HOSTS, LIVE, POLL_S, STATE, Fleet, sha256, until

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_a_reboot_catches_up(fleet: Fleet) -> None:
    away = fleet.replicas()[0]
    others = tuple(host for host in HOSTS if host != away)
    fleet.run("poweroff", away)
    data = os.urandom(500_000)
    fleet.publish("missed", data, others[0], "--wait", "2")
    fleet.run("boot", away)
    fleet.await_live("missed", data, timeout_s=20)
    fleet.await_step()
    assert fleet.sh(away, "systemctl is-system-running --wait") == "running"


def test_a_reboot_of_the_primary(fleet: Fleet) -> None:
    primary = fleet.primary()
    others = tuple(host for host in HOSTS if host != primary)
    fleet.run("poweroff", primary)
    until(lambda: fleet.status(others[0])["primary"] in others, "another primary", 10)
    data = os.urandom(500_000)
    fleet.publish("missed", data, others[0], "--wait", "2")
    fleet.run("boot", primary)
    fleet.await_live("missed", data, timeout_s=20)
    fleet.await_step()


def cut_power(fleet: Fleet, host: str) -> None:
    """Lose what was not synced, just after another program's fsync, which on ext4 writes the journal for everyone:
    names that were made before their bytes were synced are then on the disk, and their bytes are not."""
    fleet.sh(host, "dd if=/dev/zero of=/root/bystander bs=1 count=1 conv=fsync 2>&1")
    fleet.run("kill", "--lose-unsynced", host)


def check_disk(fleet: Fleet, host: str, scratch: Path, model: str, known: set[str]) -> Path:
    """On the disk of a host that is off, `current` must hold one whole known version. Returns a copy of STATE."""
    fleet.run("cp", f"{host}:/var/lib/modelsync", scratch)
    directory = scratch / "modelsync"
    (file,) = (directory / LIVE.rsplit("/", 1)[1] / model / "current").resolve(strict=True).iterdir()
    size_bytes = file.stat().st_size
    assert sha256(file.read_bytes()) in known, f"{host}: `current` holds {size_bytes} bytes that are no version"
    return directory / STATE.rsplit("/", 1)[1]


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.06])
def test_power_cut_of_a_replica(fleet: Fleet, tmp_path: Path, after_s: float) -> None:
    """Cut right after a publish, and what was not synced is lost: `current` is one complete version or the other."""
    host = fleet.replicas()[0]
    via = fleet.primary()
    old, new = os.urandom(2_000_000), os.urandom(2_000_000)
    fleet.publish("cut", old, via, "--wait", "3")
    fleet.await_live("cut", old)
    fleet.put(via, "/srv/cut.tmp", new)
    fleet.sh(via, "mv /srv/cut.tmp /srv/models/cut.bin")
    time.sleep(after_s)
    cut_power(fleet, host)
    check_disk(fleet, host, tmp_path, "cut", {sha256(old), sha256(new)})
    fleet.run("boot", host)
    fleet.await_live("cut", new, timeout_s=20)
    assert fleet.exit_code(host, "modelsync verify") == 0
    fleet.await_step()


def test_power_cut_of_the_primary_keeps_what_it_answered(fleet: Fleet, tmp_path: Path) -> None:
    primary = fleet.primary()
    others = tuple(host for host in HOSTS if host != primary)
    old, new = os.urandom(2_000_000), os.urandom(2_000_000)
    fleet.publish("kept", old, primary, "--wait", "3")
    answer = fleet.publish("kept", new, primary, "--wait", "1")
    cut_power(fleet, primary)
    state = check_disk(fleet, primary, tmp_path, "kept", {sha256(old), sha256(new)})
    assert answer["digest"] in (state / "catalog" / "kept.json").read_text(), "it had answered the publisher"
    until(lambda: fleet.status(others[0])["primary"] in others, "another primary", 10)
    fleet.run("boot", primary)
    fleet.await_step()
    fleet.await_live("kept", new)
    assert fleet.history("kept")[0]["digest"] == answer["digest"]
    for host in HOSTS:
        assert fleet.exit_code(host, "modelsync verify") == 0


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_killed_daemon_is_started_again(fleet: Fleet) -> None:
    for host in (fleet.replicas()[0], fleet.primary()):
        before = fleet.sh(host, "systemctl show modelsyncd -P MainPID")
        fleet.sh(host, "systemctl kill -s KILL modelsyncd")
        until(lambda: _restarted(fleet, host, before), "systemd to start it again", 10)
        fleet.await_step()


def _restarted(fleet: Fleet, host: str, pid_before: str) -> bool:
    pid, state = fleet.sh(host, "systemctl show modelsyncd -P MainPID -P ActiveState").split("\n")
    return state == "active" and pid not in ("0", pid_before)


def test_the_watchdog_ends_a_daemon_that_hangs(fleet: Fleet) -> None:
    """A stopped primary: another takes over; the watchdog kills it; it comes back as a replica, in step."""
    primary = fleet.primary()
    witness = next(host for host in HOSTS if host != primary)
    before = fleet.sh(primary, "systemctl show modelsyncd -P MainPID")
    fleet.sh(primary, f"kill -STOP {before}")
    until(lambda: fleet.status(witness)["primary"] not in (None, primary), "another primary", 10)
    until(lambda: _restarted(fleet, primary, before), "the watchdog", 60)
    assert "Watchdog timeout" in fleet.journal(primary)
    fleet.await_step()


# --- Redis and its messages -------------------------------------------------------------------------------------------


def test_converges_with_deaf_subscriptions(fleet: Fleet) -> None:
    """What Redis sends to the replicas' subscriptions is dropped on the wire, silently: the poll brings it."""
    ports = [line.split("addr=")[1].split()[0].rsplit(":", 1)[1] for line in subscriptions(fleet)]
    assert len(ports) >= len(HOSTS)
    fleet.run("net", "nft", "add table bridge deaf")
    fleet.run("net", "nft", "add chain bridge deaf forward { type filter hook forward priority 0 ; }")
    fleet.run(
        "net", "nft", f"add rule bridge deaf forward tcp sport 6379 tcp dport {{ {', '.join(ports)} }} counter drop"
    )
    try:
        data = os.urandom(200_000)
        fleet.publish("whispered", data, fleet.primary())
        fleet.await_live("whispered", data, timeout_s=POLL_S + 5)
        dropped = fleet.run("net", "nft", "list", "table", "bridge", "deaf").stdout.decode()
        assert "counter packets 0 " not in dropped, f"nothing was dropped: {dropped}"
    finally:
        fleet.run("net", "nft", "delete", "table", "bridge", "deaf")
    fleet.await_step()


def subscriptions(fleet: Fleet) -> list[str]:
    return fleet.redis("CLIENT", "LIST", "TYPE", "pubsub").splitlines()


def test_converges_while_subscriptions_are_cut(fleet: Fleet) -> None:
    for _ in range(5):
        data = os.urandom(50_000)
        fleet.redis("CLIENT", "KILL", "TYPE", "pubsub")
        fleet.publish("cut-off", data, fleet.primary())
        fleet.redis("CLIENT", "KILL", "TYPE", "pubsub")
        fleet.await_live("cut-off", data, timeout_s=POLL_S + 5)
    fleet.await_step()


def test_a_start_without_redis(fleet: Fleet) -> None:
    data = os.urandom(100_000)
    fleet.publish("served", data, "h1", "--wait", "3")
    fleet.await_live("served", data)
    epoch = fleet.status()["epoch"]
    fleet.sh("redis", "systemctl stop redis-server")
    host = replica_without_redis(fleet)
    fleet.sh(host, "systemctl restart modelsyncd")
    assert fleet.sh(host, "systemctl is-active modelsyncd") == "active"
    assert fleet.live(host, "served") == sha256(data)
    until(lambda: fleet.status(host).get("redis", "ok") != "ok", "status to say that Redis is away", 5)
    assert "redis" in fleet.sh(host, "modelsync status")
    fleet.sh("redis", "systemctl start redis-server")
    fleet.await_step()
    assert fleet.status()["epoch"] == epoch, "the primary was never in doubt"
    assert fleet.sh("redis", "journalctl -u redis-server -o cat | grep CRITICAL || true") == "", "Redis lost writes"


def replica_without_redis(fleet: Fleet) -> str:
    """A host that is not primary, by what the daemons remember."""
    primary = fleet.status().get("primary")
    return next(host for host in HOSTS if host != primary)


def test_a_redis_that_lost_everything(fleet: Fleet) -> None:
    """Stopped, its files removed, started: the primary writes the catalog back from its disk, numbers and all."""
    for _ in range(2):
        fleet.publish("durable", os.urandom(10_000), "h1", "--wait", "3")
    before, epoch = fleet.history("durable"), fleet.status()["epoch"]
    fleet.sh("redis", "systemctl stop redis-server; rm -rf /var/lib/redis/*; systemctl start redis-server")
    until(lambda: fleet.redis("EXISTS", "modelsync:{prod}:model:durable") == "1", "the catalog in Redis", 20)
    fleet.await_step()
    for host in HOSTS:
        after = fleet.history("durable", host)
        assert [(v["version"], v["digest"]) for v in after] == [(v["version"], v["digest"]) for v in before]
    assert fleet.status()["epoch"] >= epoch
    data = os.urandom(10_000)
    assert fleet.publish("durable", data, "h2", "--wait", "3")["version"] == before[0]["version"] + 1
    fleet.await_live("durable", data)


def test_flushall_beneath_a_running_fleet(fleet: Fleet) -> None:
    data = os.urandom(10_000)
    fleet.publish("flushed", data, "h1", "--wait", "3")
    before = {model: fleet.history(model) for model in ("flushed",)}
    fleet.redis("FLUSHALL")
    until(lambda: fleet.redis("EXISTS", "modelsync:{prod}:model:flushed") == "1", "the catalog in Redis", 20)
    fleet.await_step()
    assert [v["digest"] for v in fleet.history("flushed")] == [v["digest"] for v in before["flushed"]]
    assert fleet.live_on(HOSTS, "flushed", data)


def test_nothing_is_left_beneath_state(fleet: Fleet) -> None:
    """After all of the above: no temporary or partial file, and every byte still good."""
    for host in HOSTS:
        fleet.sh(host, "systemctl restart modelsyncd")
    fleet.await_step()
    for host in HOSTS:
        assert fleet.sh(host, f"ls {STATE}/tmp {STATE}/partial | grep -v : | grep . || true") == ""
        assert fleet.exit_code(host, "modelsync verify") == 0
