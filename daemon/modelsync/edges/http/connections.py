"""Who may keep a connection, and for how long: so that slow or silent ones never crowd out those that pull.

aiohttp closes a connection that is idle, counting a request whose head never ends as idle, after one time for both.
Here a head has its own, shorter time; there is a limit on connections; and at that limit the connection that has waited
longest for a head makes room, so that a flood of slow heads only ever evicts its own.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Set
from dataclasses import dataclass

from aiohttp import web

from modelsync.edges.http.limits import HttpLimits

SWEEP_S = 1.0

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class _Seen:
    since_s: float
    """When it was opened, or its last answer ended."""
    fresh: bool = True
    """No request has come yet."""
    busy: int = 0


class ConnectionGuard:
    """Makes the protocols of accepted connections and closes those that outstay their time."""

    def __init__(self, server: web.Server, limits: HttpLimits) -> None:
        self._server = server
        self._limits = limits
        self._seen: dict[object, _Seen] = {}
        self._max = min(limits.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def __call__(self) -> asyncio.Protocol:
        """The protocol for a connection that was just accepted."""
        if len(self._server.connections) >= self._max and not self._make_room():
            return _Refused()
        protocol = self._server()
        self._seen[protocol] = _Seen(self._now_s())
        return protocol

    def request_started(self, protocol: object) -> None:
        """A whole head has come; from now on only the body's own limits apply."""
        if seen := self._seen.get(protocol):
            seen.busy += 1

    def request_ended(self, protocol: object) -> None:
        """The answer is under way; the time until the next head begins."""
        if seen := self._seen.get(protocol):
            seen.busy, seen.fresh, seen.since_s = seen.busy - 1, False, self._now_s()

    async def sweep(self) -> None:
        """Close what has outstayed its time, once a second, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self._now_s()
            living = set(self._server.connections)
            for protocol in [protocol for protocol, seen in self._seen.items() if self._overdue(seen, now_s)]:
                if protocol in living:
                    protocol.force_close()
                del self._seen[protocol]
            self._forget(living, now_s)

    def _overdue(self, seen: _Seen, now_s: float) -> bool:
        allowed_s = self._limits.head_timeout_s if seen.fresh else self._limits.idle_timeout_s
        return not seen.busy and now_s - seen.since_s > allowed_s

    def _forget(self, living: Set[object], now_s: float) -> None:
        # One just accepted is not in the server's list yet.
        gone = [p for p, seen in self._seen.items() if p not in living and now_s - seen.since_s > SWEEP_S]
        for protocol in gone:
            del self._seen[protocol]

    def _make_room(self) -> bool:
        waiting = [p for p in self._server.connections if (seen := self._seen.get(p)) and not seen.busy]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda p: (not self._seen[p].fresh, self._seen[p].since_s))
        del self._seen[oldest]
        oldest.force_close()
        return True

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


class _Refused(asyncio.Protocol):
    """A connection above the limit, while all others are at work."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_FULL)
        transport.close()
