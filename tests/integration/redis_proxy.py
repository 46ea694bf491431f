"""What stands between one daemon and its Redis, and does something at one point of a command's way through both."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable
from importlib.resources import files
from urllib.parse import urlsplit

LUA = files("modelsync.edges.redis") / "lua"


def sha_of(script: str) -> bytes:
    """As EVALSHA names it."""
    return hashlib.sha1((LUA / f"{script}.lua").read_bytes()).hexdigest().encode()


class RedisProxy:
    """One daemon's way to Redis. ``arm`` an action for the next time that something comes to a point of its way:

    ``unheard``, ``heard``: before and after this daemon is sent it by Redis; ``unsent``, ``written``: before Redis is
    sent it, and after Redis has done it, while the daemon does not know.
    """

    def __init__(self, upstream: str) -> None:
        place = urlsplit(upstream)
        self._upstream = (str(place.hostname), int(place.port or 6379))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._guard = threading.Lock()
        self._point, self._needle = "", b""
        self._action: Callable[[], None] = lambda: None
        self._open: set[socket.socket] = set()
        self.closed = self.cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, point: str, needle: bytes, action: Callable[[], None]) -> None:
        with self._guard:
            self._point, self._needle, self._action = point, needle, action

    def disarm(self) -> None:
        with self._guard:
            self._point = ""

    def _reached(self, point: str, data: bytes) -> bool:
        """Whether this is the armed point; true once."""
        with self._guard:
            if self._point != point or (self._needle not in data and point != "written"):
                return False
            self._point = ""
            return True

    def _accept(self) -> None:
        while not self.closed:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            if self.cut:
                inner.close()
                continue
            outer = socket.create_connection(self._upstream)
            for one in (inner, outer):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {inner, outer}
            way = _Way(self, inner, outer)
            threading.Thread(target=way.to_redis, daemon=True).start()
            threading.Thread(target=way.from_redis, daemon=True).start()

    def hang_up(self) -> None:
        """Cut every connection."""
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self.closed = True
        self._listener.close()
        self.hang_up()


class _Way:
    """One connection."""

    def __init__(self, proxy: RedisProxy, inner: socket.socket, outer: socket.socket) -> None:
        self._proxy, self._inner, self._outer = proxy, inner, outer
        self._awaits_reply = False

    def to_redis(self) -> None:
        self._pump(self._inner, self._outer, self._sending)

    def from_redis(self) -> None:
        self._pump(self._outer, self._inner, self._receiving)

    def _pump(self, source: socket.socket, sink: socket.socket, relay: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                relay(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _sending(self, data: bytes) -> None:
        proxy = self._proxy
        if proxy._reached("unsent", data):
            proxy._action()
        with proxy._guard:
            self._awaits_reply = proxy._point == "written" and proxy._needle in data
        self._outer.sendall(data)

    def _receiving(self, data: bytes) -> None:
        proxy = self._proxy
        if proxy._reached("unheard", data):
            proxy._action()
        if self._awaits_reply:
            self._awaits_reply = False
            if proxy._reached("written", data):
                proxy._action()
        heard = proxy._reached("heard", data)
        self._inner.sendall(data)
        if heard:
            proxy._action()
