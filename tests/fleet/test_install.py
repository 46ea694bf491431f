"""Installed as the README says: units that start, one primary, models live on every host, and the unit's promises."""

from __future__ import annotations

import os
import re
import time

import pytest
from tests.fleet.lab import (
    CONFIG,
    HOSTS,
    PASSWORD,
    PROGRAM_SCRIPT,
    REDIS_SCRIPT,
    ROOT,
    STATE,
    UNIT_SCRIPT,
    Fleet,
    sha256,
    until,
)

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]
MAX_EXPOSURE = 1.5


def test_units_are_active_and_one_host_is_primary(fleet: Fleet) -> None:
    for host in HOSTS:
        shown = fleet.sh(host, "systemctl show modelsyncd -p Type -p ActiveState -p SubState -p StatusText")
        properties = dict(line.split("=", 1) for line in shown.splitlines())
        assert properties["Type"] == "notify"
        assert (properties["ActiveState"], properties["SubState"]) == ("active", "running")
        assert properties["StatusText"]
        assert fleet.sh(host, "systemctl is-system-running") == "running"
        assert fleet.sh(host, "curl -sf http://localhost:8461/healthz -o /dev/null -w '%{http_code}'") == "200"
    for host in HOSTS:
        roles = sorted(node["role"] for node in fleet.status(host)["nodes"])
        assert roles == ["primary", "replica", "replica"], f"as {host} sees it"


def test_the_readme_says_what_was_run_here() -> None:
    readme = (ROOT / "README.md").read_text()
    lines = f"{REDIS_SCRIPT}{PROGRAM_SCRIPT}{UNIT_SCRIPT}".replace(" --quiet", "").splitlines()
    assert [line for line in lines if line not in readme] == []


def test_a_file_renamed_into_the_models_directory(fleet: Fleet) -> None:
    primary, data = fleet.primary(), os.urandom(300_000)
    fleet.put(primary, "/srv/dropped.tmp", data)
    fleet.sh(primary, "mv /srv/dropped.tmp /srv/models/dropped.bin")
    fleet.await_live("dropped", data, timeout_s=5)


def test_a_publish_from_any_host(fleet: Fleet) -> None:
    for host in HOSTS:
        data = os.urandom(3_000_000)
        answer = fleet.publish("uploaded", data, host, "--wait", "3", "--note", f"from {host}")
        assert answer["copies"] == 3
        fleet.await_live("uploaded", data, timeout_s=5)
    listed = fleet.history("uploaded")
    assert [version["version"] for version in listed] == [3, 2, 1]
    assert [version["note"] for version in listed] == ["from h3", "from h2", "from h1"]
    assert fleet.sh("h2", "modelsync show uploaded 3 | grep ^author") == "author      root"


def test_a_model_of_many_files(fleet: Fleet) -> None:
    primary = fleet.primary()
    fill = "for i in $(seq 40); do mkdir -p many/$((i % 4)); head -c 20000 /dev/urandom > many/$((i % 4))/$i; done"
    fleet.sh(primary, f"cd /srv; {fill}; mv many models/many")
    look = "cd /var/lib/modelsync/live/many/current && find . -type f | LC_ALL=C sort | xargs cat | sha256sum"
    wanted = fleet.sh(primary, "cd /srv/models/many && find . -type f | LC_ALL=C sort | xargs cat | sha256sum")
    until(lambda: all(fleet.sh(host, look, check=False) == wanted for host in HOSTS), "the tree on all hosts", 5)


def test_an_application_of_the_group_reads_the_model_and_others_do_not(fleet: Fleet) -> None:
    data = os.urandom(1000)
    fleet.publish("shared", data, "h1", "--wait", "3")
    fleet.await_live("shared", data)
    fleet.sh("h2", "id app || useradd --groups modelsync app; id stranger || useradd stranger")
    read = "runuser -u %s -- sh -c 'cat /var/lib/modelsync/live/shared/current/shared.bin | sha256sum'"
    assert fleet.sh("h2", read % "app")[:64] == sha256(data)
    assert fleet.sh("h2", read % "stranger")[:64] == sha256(b"")
    assert fleet.exit_code(
        "h2", "runuser -u app -- sh -c 'echo x >> /var/lib/modelsync/live/shared/current/shared.bin'"
    )


def test_a_second_daemon_is_refused(fleet: Fleet) -> None:
    before = fleet.sh("h2", "systemctl show modelsyncd -P MainPID -P NRestarts")
    second = f"runuser -u modelsync -- /opt/modelsync/bin/modelsyncd --config {CONFIG}"
    done = fleet.run("exec", "h2", "sh", "-c", second, check=False)
    assert done.returncode == 75, done
    assert STATE in done.stderr.decode()
    assert fleet.sh("h2", "systemctl show modelsyncd -P MainPID -P NRestarts") == before


def test_a_stop_hands_over_the_lease(fleet: Fleet) -> None:
    primary = fleet.primary()
    witness = next(host for host in HOSTS if host != primary)
    stopped = time.monotonic()
    fleet.sh(primary, "systemctl stop modelsyncd")
    until(lambda: fleet.status(witness)["primary"] not in (None, primary), "another primary", 5)
    # The lease lasts 3 s: sooner means that it was handed over and did not run out.
    assert time.monotonic() - stopped < 3
    assert fleet.sh(primary, "systemctl show modelsyncd -P Result -P ActiveState") == "success\ninactive"
    fleet.sh(primary, "systemctl start modelsyncd")
    assert fleet.sh(primary, "systemctl show modelsyncd -P StatusText") == f"{primary} in fleet prod"
    fleet.await_step()


# --- hardening --------------------------------------------------------------------------------------------------------

PROBE = f"""
attempt() {{ if sh -c "$2" 2>/dev/null; then echo "$1: yes"; else echo "$1: no"; fi; }}
attempt "write to its state" "touch {STATE}/probe && rm {STATE}/probe"
attempt "read its models directory" "ls /srv/models"
attempt "read its password" "grep -q {PASSWORD} /etc/modelsync/redis-password"
attempt "write to its models directory" "touch /srv/models/probe"
attempt "write to its configuration" "touch {CONFIG}"
attempt "write to /etc" "touch /etc/probe"
attempt "write to /usr" "touch /usr/probe"
attempt "write to /opt" "touch /opt/modelsync/probe"
attempt "write to /var/lib" "touch /var/lib/probe"
attempt "see the real /tmp" "test -e /tmp/of-the-host"
attempt "see homes" "test -e /root/of-the-host || ls /root"
attempt "see other processes" "test -e /proc/1/status"
attempt "set the clock" "date -s @0"
attempt "make a namespace" "unshare -U true"
attempt "read the kernel log" "dmesg"
attempt "become root" "setpriv --reuid 0 true"
attempt "use a raw socket" "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'"
attempt "map code" "python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=7)'"
"""
ALLOWED = {"write to its state", "read its models directory", "read its password"}


def test_what_the_unit_forbids_does_fail(fleet: Fleet) -> None:
    """The same unit, with a script for a program: what it can do, the daemon could do if it were taken over."""
    fleet.sh("h3", "touch /tmp/of-the-host /root/of-the-host; mkdir -p /opt/probe")
    fleet.put("h3", "/opt/probe/probe.sh", PROBE)
    unit = fleet.sh("h3", "cat /etc/systemd/system/modelsyncd.service")
    unit = re.sub(r"(?m)^ExecStart=.*", "ExecStart=/bin/sh /opt/probe/probe.sh", unit)
    unit = re.sub(r"(?m)^(WatchdogSec|Restart|NotifyAccess|Type)=.*", "", unit).replace(
        "[Service]", "[Service]\nType=oneshot"
    )
    fleet.put("h3", "/etc/systemd/system/probe.service", unit)
    fleet.sh("h3", "systemctl daemon-reload; systemctl start probe")
    printed = dict(re.findall(r"(?m)^(.+): (yes|no)$", fleet.sh("h3", "journalctl -u probe -o cat")))
    assert len(printed) == PROBE.count('attempt "')
    assert {what for what, could in printed.items() if could == "yes"} == ALLOWED


def test_the_running_daemon_has_nothing_to_spare(fleet: Fleet) -> None:
    status = fleet.sh("h1", "cat /proc/$(systemctl show modelsyncd -P MainPID)/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    cap_lease = f"{1 << 28:016x}"
    assert fields["Uid"].split()[0] != "0"
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert fields["CapEff"] == fields["CapBnd"] == cap_lease
    report = fleet.sh("h1", "systemd-analyze security modelsyncd --no-pager | tail -1")
    exposure = re.search(r"exposure level for modelsyncd.service: ([0-9.]+)", report)
    assert exposure is not None, report
    assert float(exposure.group(1)) <= MAX_EXPOSURE


def test_sha256_of_nothing_is_not_mistaken_for_a_model(fleet: Fleet) -> None:
    """The harness itself: a model that is nowhere live must not count as live."""
    assert not fleet.live_on(HOSTS, "nowhere", os.urandom(10))
    assert fleet.live("h1", "nowhere") == sha256(b"")
