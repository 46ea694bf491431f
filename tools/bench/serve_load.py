"""The one client of both inference servers: closed loops over kept connections, a process of its own.

It speaks just enough HTTP to cost little beside the servers: whole requests are prepared once, answers are cut by
their Content-Length. Prints one JSON line: answers by status, seconds, latencies in milliseconds.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections import Counter
from typing import Any


class Loop(asyncio.Protocol):
    """One connection: the next request as soon as the answer before is whole."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.buffer = bytearray()
        self.missing = -1
        self.status = 0
        self.sent_s = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        assert self.transport is not None
        if time.perf_counter() >= self.run.until_s:
            self.transport.close()
            return
        self.sent_s = time.perf_counter()
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            if self.missing < 0 and not self.head():
                return
            if len(self.buffer) < self.missing:
                return
            del self.buffer[: self.missing]
            self.missing = -1
            self.run.note(self.status, time.perf_counter() - self.sent_s)
            self.sent_s = 0.0
            self.send()

    def head(self) -> bool:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self.buffer[:end]).lower()
        at = head.index(b"content-length:") + 15
        line = head.find(b"\r\n", at)
        self.missing = int(head[at : line if line > 0 else None])
        self.status = int(head[9:12])
        del self.buffer[: end + 4]
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self.sent_s:
            self.run.note(-1, time.perf_counter() - self.sent_s)
        self.run.closed(self)


class Run:
    """All connections."""

    def __init__(self, host: str, port: int, request: bytes, connections: int, seconds: float) -> None:
        self.host, self.port, self.request, self.connections = host, port, request, connections
        self.until_s = time.perf_counter() + seconds
        self.latencies_s: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.open = 0
        self.done = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()

    def note(self, status: int, took_s: float) -> None:
        self.statuses[status] += 1
        self.latencies_s.append(took_s)

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: Loop(self), self.host, self.port)
        self.open += 1

    def closed(self, loop: Loop) -> None:
        self.open -= 1
        if time.perf_counter() < self.until_s:
            task = asyncio.get_running_loop().create_task(self.connect())
            self.tasks.add(task)
        elif self.open == 0:
            self.done.set()

    async def all(self) -> dict[str, Any]:
        started_s = time.perf_counter()
        for _ in range(self.connections):
            await self.connect()
        await self.done.wait()
        ordered = sorted(self.latencies_s)
        at = {share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 for share in (0.5, 0.99, 0.999)}
        return {
            "statuses": self.statuses,
            "seconds": time.perf_counter() - started_s,
            "p50_ms": at[0.5],
            "p99_ms": at[0.99],
            "p999_ms": at[0.999],
        }


def request_bytes(host: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def main() -> None:
    host, port, path, connections, seconds, headers, body = sys.argv[1:]
    request = request_bytes(f"{host}:{port}", path, json.loads(headers), base64.b64decode(body))

    async def run() -> None:
        print(json.dumps(await Run(host, int(port), request, int(connections), float(seconds)).all()))

    asyncio.run(run())


if __name__ == "__main__":
    main()
