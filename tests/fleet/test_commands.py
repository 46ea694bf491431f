"""Commands in plain words, by redis-cli from a host, and what lists their answers."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

import pytest
from tests.fleet.lab import ADMIN_PASSWORD, HOSTS, PASSWORD, Fleet, until

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]


def answers(fleet: Fleet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in fleet.redis("LRANGE", "modelsync:{prod}:answers", 0, 20).splitlines()]


def command(fleet: Fleet, host: str, text: str) -> dict[str, Any]:
    """PUBLISH it from a host with the daemons' own rights; the answer that came."""
    mark = fleet.redis("LLEN", "modelsync:{prod}:answers")
    client = f"redis-cli -h redis --no-auth-warning --user modelsync --pass {PASSWORD}"
    line = f"{client} PUBLISH 'modelsync:{{prod}}:control' '{text}'"
    assert int(fleet.sh(host, line)) >= len(HOSTS), "every daemon listens to the control channel"
    until(lambda: fleet.redis("LLEN", "modelsync:{prod}:answers") != mark, f"an answer to {text!r}", 5)
    time.sleep(0.2)  # a second answer would be a second daemon's
    found = answers(fleet)
    assert len(found) == int(mark) + 1
    return found[0]


@pytest.mark.parametrize("host", ["h1"])
def test_update_pin_unpin_rollback(fleet: Fleet, host: str) -> None:
    versions: dict[int, bytes] = {}
    for _ in range(3):
        data = os.urandom(20_000)
        versions[fleet.publish("ruled", data, "h1", "--wait", "3")["version"]] = data
    first, second, third = sorted(versions)
    script = [
        (f"update ruled {first}", first),
        ("update ruled", third),
        ("rollback ruled", second),
        (f"pin ruled {first}", first),
        ("unpin ruled", None),
        (f"update ruled {third}", third),
    ]
    for text, wanted in script:
        answer = command(fleet, host, text)
        assert answer["event"] == "command.done", answer
        assert answer["command"] == text
        if wanted is not None:
            assert answer["wanted"] == wanted
            fleet.await_live("ruled", versions[wanted], timeout_s=5)
    fleet.await_step()


def test_a_pin_holds_against_a_publish(fleet: Fleet) -> None:
    held, newer = os.urandom(20_000), os.urandom(20_000)
    number = fleet.publish("held", held, "h1", "--wait", "3")["version"]
    assert command(fleet, "h3", f"pin held {number}")["event"] == "command.done"
    fleet.publish("held", newer, "h2", "--wait", "1")
    time.sleep(1)
    assert fleet.live_on(HOSTS, "held", held)
    assert command(fleet, "h3", "unpin held")["event"] == "command.done"
    fleet.await_live("held", newer, timeout_s=5)


def test_a_command_that_cannot_be_done_is_answered(fleet: Fleet) -> None:
    for text in ("pin nothing 1", "update held 999", "frobnicate", "pin ../x 1"):
        answer = command(fleet, "h2", text)
        assert answer["event"] == "command.refused", answer
        assert answer["reason"]
    assert fleet.in_step()


def test_events_tell_of_a_publish(fleet: Fleet) -> None:
    words = ["redis-cli", "--no-auth-warning", "--user", "admin", "--pass", ADMIN_PASSWORD]
    listen = f"timeout 3 {' '.join(words)} SUBSCRIBE 'modelsync:{{prod}}:events' > /root/events || true"
    listener = subprocess.Popen(
        fleet.command("exec", "redis", "sh", "-c", listen), env=fleet.environment, stdin=subprocess.DEVNULL
    )
    until(
        lambda: " 4" in fleet.redis("PUBSUB", "NUMSUB", "modelsync:{prod}:events").replace("\n", " "), "a listener", 3
    )
    answer = fleet.publish("told", os.urandom(1000), "h1", "--wait", "3")
    listener.wait(20)
    lines = fleet.sh("redis", "cat /root/events").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    published = [event for event in events if event["event"] == "version.published"]
    assert [(e["model"], e["version"], e["digest"]) for e in published] == [
        ("told", answer["version"], answer["digest"])
    ]
    activated = {event["node"] for event in events if event["event"] == "version.activated"}
    assert activated == set(HOSTS)
