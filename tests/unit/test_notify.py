"""The notification protocol against a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelsync.edges.host.systemd import SystemdNotifier, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    name = str(tmp_path / "notify")
    address, shown = (name, name) if request.param == "path" else ("\0" + name, "@" + name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.settimeout(5)
        yield server, {"NOTIFY_SOCKET": shown}


def test_every_message(listener: tuple[socket.socket, dict[str, str]]) -> None:
    server, environ = listener
    notifier = SystemdNotifier(environ)
    notifier.ready("primary of prod")
    assert server.recv(999) == b"READY=1\nSTATUS=primary of prod"
    notifier.ready()
    assert server.recv(999) == b"READY=1"
    notifier.status("pulling fraud 13")
    assert server.recv(999) == b"STATUS=pulling fraud 13"
    notifier.watchdog()
    assert server.recv(999) == b"WATCHDOG=1"
    notifier.stopping("bye")
    assert server.recv(999) == b"STOPPING=1\nSTATUS=bye"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    first, second = server.recv(999).split(b"\n")
    assert first == b"RELOADING=1"
    key, usec = second.split(b"=")
    assert key == b"MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.close()
    notifier.watchdog()


def test_a_status_cannot_smuggle_an_assignment_in(listener: tuple[socket.socket, dict[str, str]]) -> None:
    server, environ = listener
    SystemdNotifier(environ).status("model a\nMAINPID=1\x1b[2J" + "x" * 1000)
    message = server.recv(9999)
    assert message.startswith(b"STATUS=model a MAINPID=1 [2Jxxx")
    assert b"\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
def test_without_systemd_nothing_happens(environ: dict[str, str]) -> None:
    notifier = SystemdNotifier(environ)
    notifier.ready("x")
    notifier.watchdog()
    notifier.close()


def test_a_listener_that_is_gone_or_full_does_not_hurt(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    SystemdNotifier(environ).ready("nobody there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(environ["NOTIFY_SOCKET"])
        notifier = SystemdNotifier(environ)
        for _ in range(10_000):
            notifier.watchdog()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "77"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_how_often_the_watchdog_is_fed(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_interval_s(environ, pid=77) == expected


def test_the_watchdog_is_of_this_process() -> None:
    assert watchdog_interval_s({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}) == 1.0
