"""A TCP proxy before a daemon that knows which bytes of one object went to whom, and acts at any one of them.

Whoever connects is known by the socket's owner in /proc: daemons do not say their names in requests.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.integration.slow_link import connections

_ASKED = re.compile(rb"^GET /v1/objects/(b3:[0-9a-f]{64}) .*?^range: bytes=(\d+)-(\d+)", re.I | re.M | re.S)
_MAX_HEAD_BYTES = 64 << 10


@dataclass(frozen=True)
class Request:
    """Bytes ``start`` to ``end`` of an object that somebody asked for."""

    at_s: float
    who: str
    digest: str
    start: int
    end: int


class CountedLink:
    """Passes everything on to ``target`` and notes the ranges that are asked for.

    Args:
        pids: of the daemons by name, read anew for each connection.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.target = ""
        self.requests: list[Request] = []
        self.passed_bytes = 0
        """Of answers on connections on which the watched object was asked for."""
        self._watched = ""
        self._at_byte = -1
        self._act: Callable[[], None] = lambda: None
        self._only = ""
        self._guard = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, digest: str, at_byte: int, act: Callable[[], None], only: str = "") -> None:
        """Do this once so many bytes of the object (heads included) have passed; ``only`` on their way to one."""
        with self._guard:
            self._watched, self._at_byte, self._act, self._only = digest, at_byte, act, only
            self.passed_bytes, self.requests = 0, []

    def disarm(self) -> None:
        with self._guard:
            self._at_byte = -1

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        for near, far, port in connections(self._listener, lambda: self.target):
            pair = _Pair(near, far, owner(port, self._pids()))
            threading.Thread(target=self._inwards, args=(pair,), daemon=True).start()
            threading.Thread(target=self._outwards, args=(pair,), daemon=True).start()

    def _inwards(self, pair: _Pair) -> None:
        """Requests, towards the daemon."""
        head = b""
        with pair, contextlib.suppress(OSError):
            while data := pair.near.recv(64 << 10):
                head = (head + data)[-_MAX_HEAD_BYTES:]
                while b"\r\n\r\n" in head:
                    one, head = head.split(b"\r\n\r\n", 1)
                    self._note(one, pair)
                pair.far.sendall(data)

    def _note(self, head: bytes, pair: _Pair) -> None:
        found = _ASKED.search(head)
        if found is None:
            return
        digest, start, end = found[1].decode(), int(found[2]), int(found[3]) + 1
        with self._guard:
            pair.counted = digest == self._watched
            self.requests.append(Request(time.monotonic(), pair.who, digest, start, end))

    def _outwards(self, pair: _Pair) -> None:
        """Answers, away from the daemon."""
        with pair, contextlib.suppress(OSError):
            while data := pair.far.recv(64 << 10):
                rest, act = self._count(len(data), pair)
                pair.near.sendall(data[:rest])
                if act is not None:
                    act()
                    return

    def _count(self, size_bytes: int, pair: _Pair) -> tuple[int, Callable[[], None] | None]:
        """How many of these bytes may pass, and what is to be done then."""
        with self._guard:
            if not pair.counted or self._only not in ("", pair.who):
                return size_bytes, None
            before = self.passed_bytes
            self.passed_bytes += size_bytes
            if not before <= self._at_byte < self.passed_bytes:
                return size_bytes, None
            rest, self._at_byte = self._at_byte - before, -1
            return rest, self._act


@dataclass
class _Pair:
    """Both ends of one connection; at its end they are closed, with a reset where bytes are unread."""

    near: socket.socket
    far: socket.socket
    who: str
    counted: bool = False

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, *raised: object) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def owner(port: int, pids: Mapping[str, int]) -> str:
    """Which of these processes has the socket with this local port; empty if none."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") in inodes:
                        return name
    return ""
