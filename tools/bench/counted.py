"""A TCP relay that counts what it hands back: how much leaves a server, seen from outside of whoever asks it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

PIECE = 256 << 10


class Relay:
    """``answered_bytes`` came from the server, ``requests`` counts the requests that went to it."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._guard = threading.Lock()
        self.answered_bytes = 0
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                with self._guard:
                    if answers:
                        self.answered_bytes += len(piece)
                    else:
                        self.requests += piece.count(b" HTTP/1.1\r\n")
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        self._listener.close()


@contextmanager
def counted(url: str) -> Iterator[Relay]:
    """A relay before the server at ``url``."""
    parts = urlsplit(url)
    relay = Relay((parts.hostname or "", parts.port or 80))
    try:
        yield relay
    finally:
        relay.close()
