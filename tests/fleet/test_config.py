"""The configuration of a running host: reload and edits, good and bad."""

from __future__ import annotations

import os

import pytest
from tests.fleet.lab import CONFIG, HOSTS, LIVE, Fleet, sha256, until

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]

# Runs a command on the host, then waits until `current` holds what it should; prints the milliseconds in between.
STOPWATCH = """
import hashlib, pathlib, subprocess, sys, time
command, model, wanted = sys.argv[1:]
started = time.monotonic()
subprocess.run(command, shell=True, check=True)
while True:
    (file,) = pathlib.Path(model, "current").iterdir()
    if hashlib.sha256(file.read_bytes()).hexdigest() == wanted:
        break
    if time.monotonic() - started > 10:
        sys.exit("not within 10 s")
    time.sleep(0.005)
print(1000 * (time.monotonic() - started))
"""


def timed_ms(fleet: Fleet, host: str, command: str, model: str, data: bytes) -> float:
    words = ("python3", "-c", STOPWATCH, command, f"{LIVE}/{model}", sha256(data))
    return float(fleet.run("exec", host, *words).stdout)


@pytest.fixture
def two_versions(fleet: Fleet) -> tuple[bytes, bytes]:
    old, new = os.urandom(50_000), os.urandom(50_000)
    first = fleet.publish("tuned", old)["version"]
    assert fleet.publish("tuned", new, "h1", "--wait", "3")["version"] == first + 1
    fleet.await_live("tuned", new)
    fleet.sh("h2", f"echo {first} > /root/first")
    return old, new


def test_a_pin_by_reload_on_one_host(fleet: Fleet, two_versions: tuple[bytes, bytes]) -> None:
    old, new = two_versions
    fleet.sh("h2", f"cp -a {CONFIG} /root/good.toml")
    pin = f"printf '[pins]\\ntuned = %s\\n' $(cat /root/first) >> {CONFIG}; systemctl reload modelsyncd"
    assert timed_ms(fleet, "h2", pin, "tuned", old) < 1000
    fleet.await_live("tuned", new, hosts=("h1", "h3"), timeout_s=1)
    shown = fleet.sh("h1", "modelsync status")
    assert "h2: tuned:" in shown and "pin" in shown
    newest = os.urandom(50_000)
    fleet.publish("tuned", newest)
    fleet.await_live("tuned", newest, hosts=("h1", "h3"))
    assert fleet.live("h2", "tuned") == sha256(old), "a pinned host follows no publish"
    unpin = f"cp -a /root/good.toml {CONFIG}; systemctl reload modelsyncd"
    assert timed_ms(fleet, "h2", unpin, "tuned", newest) < 1000


@pytest.mark.parametrize("how", ["renamed over", "written in place"])
def test_an_edit_is_enough(fleet: Fleet, two_versions: tuple[bytes, bytes], how: str) -> None:
    old, new = two_versions
    fleet.sh("h2", f"cp -a {CONFIG} /root/good.toml; cp -a {CONFIG} /root/pin.toml")
    fleet.sh("h2", "printf '[pins]\\ntuned = %s\\n' $(cat /root/first) >> /root/pin.toml")
    place = {
        "renamed over": f"cp -a %s {CONFIG}.new && mv {CONFIG}.new {CONFIG}",
        "written in place": f"cp %s {CONFIG}",
    }[how]
    assert timed_ms(fleet, "h2", place % "/root/pin.toml", "tuned", old) < 1000
    assert fleet.live_on(("h1", "h3"), "tuned", new)
    assert timed_ms(fleet, "h2", place % "/root/good.toml", "tuned", new) < 1000


@pytest.mark.parametrize("fault", ["[[[ not TOML", '[pins]\\ntuned = 1\\n[node]\\npriority = "high"'])
def test_a_bad_edit_keeps_the_last_good_configuration(
    fleet: Fleet, two_versions: tuple[bytes, bytes], fault: str
) -> None:
    _, new = two_versions
    pid = fleet.sh("h2", "systemctl show modelsyncd -P MainPID")
    fleet.sh("h2", f"cp -a {CONFIG} /root/good.toml; printf '%b\\n' '{fault}' >> {CONFIG}; systemctl reload modelsyncd")
    try:
        until(lambda: "config.refused" in fleet.journal("h2").splitlines()[-1], "the journal's line", 3)
        until(lambda: f"! h2: {CONFIG}" in fleet.sh("h1", "modelsync status"), "status to say it", 5)
        assert fleet.sh("h2", "systemctl is-active modelsyncd") == "active"
        assert "configuration fault" in fleet.sh("h2", "systemctl show modelsyncd -P StatusText")
        assert fleet.live("h2", "tuned") == sha256(new)
        newest = os.urandom(50_000)
        fleet.publish("tuned", newest)
        fleet.await_live("tuned", newest, hosts=HOSTS)
        assert fleet.sh("h2", "systemctl show modelsyncd -P MainPID") == pid
    finally:
        fleet.sh("h2", f"cp -a /root/good.toml {CONFIG}")
    fleet.await_step()
    assert "!" not in fleet.sh("h2", "modelsync status")
