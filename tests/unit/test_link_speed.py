"""Windows of what the kernel counts of a connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from modelsync.edges.http.link_speed import WINDOW_BYTES, LinkSpeeds

MIB = 1 << 20


class Connection:
    """A socket of which the kernel says what the test does."""

    def __init__(self) -> None:
        self.acked = self.busy_us = self.held_us = 0
        self.info_bytes = 256

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        data = bytearray(max(size, 256))
        struct.pack_into("=Q", data, 120, self.acked)
        struct.pack_into("=QQ", data, 168, self.busy_us, self.held_us)
        return bytes(data[: self.info_bytes])

    def sent(self, size_bytes: int, busy_s: float, held_s: float = 0.0) -> None:
        self.acked += size_bytes
        self.busy_us += int(busy_s * 1e6)
        self.held_us += int(held_s * 1e6)


class Transport(asyncio.Transport):
    def __init__(self, connection: Any) -> None:
        super().__init__({"socket": connection})


def test_a_window_begins_with_the_connection_or_where_it_is_said_to() -> None:
    speeds, connection = LinkSpeeds(), Connection()
    transport = Transport(connection)
    connection.sent(MIB, 0.5, held_s=0.25)
    first = speeds.window(transport)
    assert first is not None and (first.acked_bytes, first.busy_s, first.held_s) == (MIB, 0.5, 0.25)
    speeds.begin(transport)
    connection.sent(5, 0.125)
    second = speeds.window(transport)
    assert second is not None and (second.acked_bytes, second.busy_s, second.held_s) == (5, 0.125, 0.0)
    assert second.took_s >= 0.0


def test_what_is_older_than_some_megabytes_is_forgotten() -> None:
    speeds, connection = LinkSpeeds(), Connection()
    transport = Transport(connection)
    speeds.begin(transport)
    for _ in range(64):
        connection.sent(MIB, 1.0)
        window = speeds.window(transport)
        assert window is not None and window.acked_bytes <= WINDOW_BYTES
    assert window.busy_s == window.acked_bytes / MIB >= WINDOW_BYTES / MIB / 2


def test_connections_are_told_apart_and_forgotten() -> None:
    speeds, quick, slow = LinkSpeeds(), Connection(), Connection()
    one, two = Transport(quick), Transport(slow)
    speeds.begin(one), speeds.begin(two)
    quick.sent(WINDOW_BYTES, 0.25)
    slow.sent(WINDOW_BYTES, 1.0)
    found = [speeds.window(one), speeds.window(two)]
    assert [window and window.busy_s for window in found] == [0.25, 1.0]
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
    speeds = LinkSpeeds()
    speeds.begin(transport)
    assert speeds.window(transport) is None


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
            found = LinkSpeeds().window(Transport(one))
    assert found is None or 0 < found.acked_bytes <= 2_000_001  # its SYN counts; None: a kernel before 4.9
