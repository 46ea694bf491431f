"""A connection's speed from what the kernel counts: bytes acknowledged, over the time in which some were waiting."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from modelsync.edges.http.link_speed import ENOUGH_BYTES, LEAST_S, WINDOW_BYTES, LinkSpeeds

MIB = 1 << 20


class Connection:
    """A socket of which the kernel says what the test does."""

    def __init__(self) -> None:
        self.acked = self.busy_us = 0
        self.info_bytes = 256

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        data = bytearray(max(size, 256))
        struct.pack_into("=Q", data, 120, self.acked)
        struct.pack_into("=Q", data, 168, self.busy_us)
        return bytes(data[: self.info_bytes])

    def sent(self, size_bytes: int, busy_s: float) -> None:
        self.acked += size_bytes
        self.busy_us += int(busy_s * 1e6)


class Transport(asyncio.Transport):
    def __init__(self, connection: Any) -> None:
        super().__init__({"socket": connection})


def test_bytes_over_the_time_in_which_some_were_waiting() -> None:
    speeds, connection = LinkSpeeds(), Connection()
    transport = Transport(connection)
    assert speeds.bytes_per_s(transport) is None
    connection.sent(ENOUGH_BYTES - 1, 0.01)
    assert speeds.bytes_per_s(transport) is None
    connection.sent(1, 0.0)
    assert speeds.bytes_per_s(transport) == pytest.approx(ENOUGH_BYTES / 0.01)


def test_a_link_that_never_was_busy_is_quick_and_finite() -> None:
    speeds, connection = LinkSpeeds(), Connection()
    connection.sent(2 * MIB, 0.0)
    assert speeds.bytes_per_s(Transport(connection)) == 2 * MIB / LEAST_S


def test_a_link_that_changes_is_seen_after_a_window() -> None:
    speeds, connection = LinkSpeeds(), Connection()
    transport = Transport(connection)
    for _ in range(16):
        connection.sent(MIB, MIB / 12.5e6)
        found = speeds.bytes_per_s(transport)
    assert found == pytest.approx(12.5e6, rel=0.01)
    for _ in range(2 * WINDOW_BYTES // MIB):
        connection.sent(MIB, MIB / 1e9)
        found = speeds.bytes_per_s(transport)
    assert found == pytest.approx(1e9, rel=0.01)


def test_connections_are_told_apart_and_forgotten() -> None:
    speeds, quick, slow = LinkSpeeds(), Connection(), Connection()
    one, two = Transport(quick), Transport(slow)
    quick.sent(WINDOW_BYTES, 0.01)
    slow.sent(WINDOW_BYTES, 1.0)
    assert speeds.bytes_per_s(one) == 100 * (speeds.bytes_per_s(two) or 0)
    assert len(speeds._marks) == 2
    del one, two
    assert len(speeds._marks) == 0


@pytest.mark.parametrize("fault", ["no transport", "no socket", "old kernel", "closed"])
def test_what_is_not_known_is_none(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()
    connection.sent(WINDOW_BYTES, 0.01)
    if fault == "old kernel":
        connection.info_bytes = 104
    if fault == "closed":
        monkeypatch.setattr(connection, "getsockopt", lambda *_: _closed())
    transport = {"no transport": None, "no socket": Transport(None)}.get(fault, Transport(connection))
    assert LinkSpeeds().bytes_per_s(transport) is None


def _closed() -> bytes:
    raise OSError(9, "Bad file descriptor")


def test_the_kernel_of_this_machine_tells() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        other, _ = listener.accept()
        with other:
            for _ in range(20):
                one.sendall(bytes(100_000))
                left = 100_000
                while left:
                    left -= len(other.recv(left))
            found = LinkSpeeds().bytes_per_s(Transport(one))
    assert found is None or found > 1e6  # None: a kernel before 4.9
