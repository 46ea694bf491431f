"""A TCP link of a given rate before a daemon, that counts what goes in and can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit


def connections(
    listener: socket.socket, target: Callable[[], str]
) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Each connection that comes, the one made for it to the target of that moment, and the port of who came."""
    while True:
        try:
            near, (_, port) = listener.accept()
        except OSError:
            return
        try:
            address = urlsplit(target())
            far = socket.create_connection((address.hostname, address.port), timeout=5)
            far.settimeout(None)
        except OSError:
            near.close()
            continue
        yield near, far, port


class SlowLink:
    """Listens on loopback and passes everything on to ``target``, inwards at ``rate_bytes_per_s`` in all."""

    def __init__(self, rate_bytes_per_s: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.target = ""
        self.rate_bytes_per_s = rate_bytes_per_s
        self.in_bytes = 0
        self._guard = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break off every connection."""
        with self._guard:
            for pair in self._pairs:
                for end in pair:
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
            self._pairs.clear()

    def _accept(self) -> None:
        for near, far, _ in connections(self._listener, lambda: self.target):
            with self._guard:
                self._pairs.append((near, far))
            threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, inwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(32 << 10):
                if inwards:
                    with self._guard:
                        self.in_bytes += len(data)
                    time.sleep(len(data) / self.rate_bytes_per_s)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()  # with bytes unread that is a reset, as when a process dies
