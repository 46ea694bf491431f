"""Announcements and commands as a hostile or unlucky Redis delivers them (FAULTS 20): bounded, and the fleet converges
by reading."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.integration.daemons import Daemon, Fleet, until

BOGUS: tuple[bytes, ...] = (
    b"",
    b"\xff\xfe\x00",
    b"[" * 50_000,
    b'{"event": 3, "node": [], "model": {}}',
    b'{"event": "version.published", "model": "../../etc", "version": 99999999999999999999}',
    b'{"event": "rollout.flipped", "model": "nobody", "epoch": 9223372036854775808}',
    b'{"event": "primary.changed", "node": "nobody", "epoch": 9223372036854775807}',
    b'{"event": "node.subscribed", "mark": "' + b"m" * 5000 + b'"}',
    b'{"event": "node.subscribed", "mark": "one"}',
    b'{"event": "node.subscribed", "mark": "one"}',
    b'{"event": "version.published", "event": "x"}',
    json.dumps({"event": "wish.changed", "note": "\ud800"}).encode(),
    b'{"again": "x+1", "command": "delete fraud 1", "waited_ms": 9007199254740993}',
)
UNTOUCHED = ("pinned", "aliases", "deleted", "rollout", "v:1")
FLOOD_S, FLOOD_AT_ONCE = 3.0, 500
HUGE_BYTES = 100 << 20
MEMORY_BYTES = 4 * HUGE_BYTES
"""Above what it had before: a message of 100 MB is cut off by Redis at its own limit for a subscriber's buffer."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("messages"))
    for name in ("alpha", "beta"):
        made.add(name)
    yield made
    made.close()


def published(fleet: Fleet, number: int) -> None:
    """A version goes live on both: the fleet works."""
    head = fleet.daemons[0].head("fraud")
    fleet.daemons[0].put("fraud.bin", b"%d" % number)
    until(lambda: all(daemon.active("fraud") == head + 1 for daemon in fleet.daemons), f"version {head + 1} on both")


def longest_pause_s(daemon: Daemon, stop: threading.Event, found: list[float]) -> None:
    while not stop.wait(0.02):
        began_s = time.monotonic()
        with urllib.request.urlopen(f"{daemon.url}/healthz", timeout=20):
            found.append(time.monotonic() - began_s)


def peak_bytes(daemon: Daemon) -> int:
    assert daemon.process is not None
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak(daemon: Daemon) -> None:
    assert daemon.process is not None
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")


def binary(fleet: Fleet) -> Any:
    return redis.Redis.from_url(fleet.redis_url)


def test_bogus_ones_change_nothing(fleet: Fleet) -> None:
    published(fleet, 1)
    client, wishes = binary(fleet), fleet.redis.hgetall(fleet.key("model:fraud"))
    for data in BOGUS:
        for channel in ("events", "control"):
            client.publish(fleet.key(channel), data)
    published(fleet, 2)
    assert all(daemon.process is not None and daemon.process.poll() is None for daemon in fleet.daemons)
    after = fleet.redis.hgetall(fleet.key("model:fraud"))
    assert [after.get(key) for key in UNTOUCHED] == [wishes.get(key) for key in UNTOUCHED]
    answers = [json.loads(text) for text in fleet.redis.lrange(fleet.key("answers"), 0, -1)]
    assert {answer["event"] for answer in answers} == {"command.refused"}, "nonsense on control is answered as such"


def test_every_announcement_twice_and_the_old_ones_again(fleet: Fleet) -> None:
    """Somebody repeats all that is said on events, old things after new ones."""
    client, stop = binary(fleet), threading.Event()
    seen: list[bytes] = []

    def echo() -> None:
        said = client.pubsub()
        said.subscribe(fleet.key("events"))
        own = set[bytes]()
        while not stop.is_set():
            message = said.get_message(timeout=0.05)
            if message is None or message["type"] != "message" or message["data"] in own:
                continue
            seen.append(message["data"])
            for data in (message["data"], *seen[-5:]):
                own.add(data)
                client.publish(fleet.key("events"), data)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    for number in range(10, 15):
        published(fleet, number)
    fleet.redis.publish(fleet.key("control"), "rollback fraud")
    wanted = fleet.daemons[0].head("fraud") - 1
    until(lambda: all(daemon.active("fraud") == wanted for daemon in fleet.daemons), "one step back, and no more")
    time.sleep(1.5)
    assert [daemon.active("fraud") for daemon in fleet.daemons] == [wanted, wanted]
    stop.set()
    thread.join(5)
    assert seen, "something was repeated"


def test_ten_thousand_a_second(fleet: Fleet) -> None:
    client, stop, pauses = binary(fleet), threading.Event(), [0.0]
    for daemon in fleet.daemons:
        forget_peak(daemon)
    before = [peak_bytes(daemon) for daemon in fleet.daemons]
    watcher = threading.Thread(target=longest_pause_s, args=(fleet.daemons[1], stop, pauses))
    watcher.start()
    said, began_s = 0, time.monotonic()
    text = json.dumps({"event": "wish.changed", "node": "nobody", "model": "fraud"})
    while time.monotonic() - began_s < FLOOD_S:
        with client.pipeline(transaction=False) as pipe:
            for _ in range(FLOOD_AT_ONCE):
                pipe.publish(fleet.key("events"), text)
            pipe.execute()
        said += FLOOD_AT_ONCE
        time.sleep(max(0.0, said / 10_000 - (time.monotonic() - began_s)))
    published(fleet, 30)
    stop.set()
    watcher.join(20)
    assert said >= 0.5 * 10_000 * FLOOD_S, "it was a flood"
    grown = [peak_bytes(daemon) - was for daemon, was in zip(fleet.daemons, before, strict=True)]
    assert max(grown) < 64 << 20, grown
    assert len(pauses) > 1, "it answered meanwhile"


def test_one_of_a_hundred_megabytes(fleet: Fleet) -> None:
    client = binary(fleet)
    for daemon in fleet.daemons:
        forget_peak(daemon)
    before = [peak_bytes(daemon) for daemon in fleet.daemons]
    control = fleet.key("control")
    for number, channel in enumerate(("events", "control"), 40):
        client.publish(fleet.key(channel), b"x" * HUGE_BYTES)
        published(fleet, number)
        until(lambda: dict(fleet.redis.pubsub_numsub(control))[control] == 2, "both to listen again")
    grown = [peak_bytes(daemon) - was for daemon, was in zip(fleet.daemons, before, strict=True)]
    assert max(grown) < MEMORY_BYTES, grown
    fleet.redis.delete(fleet.key("answers"))
    fleet.redis.publish(fleet.key("control"), "update fraud")
    until(lambda: fleet.redis.lrange(fleet.key("answers"), 0, 0), "the next command's answer")
