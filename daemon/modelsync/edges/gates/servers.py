"""Step 9: tells this host's inference servers of a version, and asks them how they are.

This file sends; what is sent to which kind of server, and which answer counts, ``core.hooks`` decides.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from modelsync.core import hooks
from modelsync.core.errors import HookFailed
from modelsync.core.gates import Health, shortened
from modelsync.core.hooks import Hook, Request, Told
from modelsync.edges.gates import cage
from modelsync.edges.gates.cage import Limits
from modelsync.edges.gates.validate import environment
from modelsync.ports import Candidate

ANSWER_BYTES = 1 << 20
ASK_AGAIN_S = 0.1
PROBE_S = 1.0
"""A probe that takes longer counts as failed: a rollback has two seconds."""
SYSTEMCTL = "/usr/bin/systemctl"


class LocalServers:
    """Implements ports.Servers."""

    def __init__(self) -> None:
        self._open_session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._open_session is not None:
            await self._open_session.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            self._open_session = aiohttp.ClientSession(
                auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._open_session

    # --- telling -----------------------------------------------------------------------------------------------------

    async def tell(self, candidate: Candidate, hooks: Sequence[Hook]) -> None:
        """One hook after another, each within its own time. Raises HookFailed."""
        for hook in hooks:
            fault = await self._tell_one(candidate, hook)
            if fault is not None:
                raise HookFailed(hook=str(hook), reason=shortened(fault))

    async def _tell_one(self, candidate: Candidate, hook: Hook) -> str | None:
        if hook.kind == "signal":
            return await asyncio.to_thread(_signal, hook)
        if hook.kind in ("command", "systemctl"):
            argv = hook.command or (SYSTEMCTL, "--no-ask-password", "reload", hook.unit)
            return (await cage.run(argv, environment(candidate), Limits(hook.timeout_s))).why
        told = Told(candidate.model, candidate.version, str(candidate.digest), str(candidate.tree))
        try:
            async with asyncio.timeout(hook.timeout_s):
                for request in hooks.requests(hook, told):
                    fault = await self._until(request)
                    if fault is not None:
                        return fault
        except TimeoutError:
            return f"not done within {hook.timeout_s:g} s"
        return None

    async def _until(self, request: Request) -> str | None:
        """Send, where it is to be repeated until it is answered well."""
        while True:
            fault, data = await self._send(request)
            if fault is None or not request.repeat or hooks.is_final(request, data):
                return fault
            await asyncio.sleep(ASK_AGAIN_S)

    async def _send(self, request: Request) -> tuple[str | None, bytes]:
        """What is wrong with the answer, or None; and the answer, where there was one."""
        try:
            status, data = await self._exchange(request.method, request.url, request.body, request.content_type)
        except (aiohttp.ClientError, OSError) as error:
            return f"{request.method} {request.url}: {str(error)[:200] or type(error).__name__}", b""
        fault = hooks.satisfied(request, status, data)
        return (None if fault is None else f"{request.method} {request.url} {fault}"), data

    async def _exchange(self, method: str, url: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        """Status and at most ``ANSWER_BYTES`` of the answer. Raises aiohttp.ClientError, OSError."""
        headers = {"Content-Type": content_type} if body else {}
        async with self._session().request(
            method, url, data=body or None, headers=headers, allow_redirects=False
        ) as answer:
            data = bytearray()
            async for block in answer.content.iter_chunked(65536):
                data += block
                if len(data) > ANSWER_BYTES:
                    raise aiohttp.ClientPayloadError("the answer is longer than 1 MiB")
            return answer.status, bytes(data)

    # --- asking ------------------------------------------------------------------------------------------------------

    async def probe(self, candidate: Candidate, health: Health) -> str | None:
        """Ask once; what is wrong, or None."""
        if health.command:
            return (await cage.run(health.command, environment(candidate), Limits(PROBE_S))).why
        told = Told(candidate.model, candidate.version, str(candidate.digest), str(candidate.tree))
        try:
            async with asyncio.timeout(PROBE_S):
                return (await self._send(Request("GET", told.filled(health.url))))[0]
        except TimeoutError:
            return f"GET {health.url} did not answer within {PROBE_S:g} s"


def _signal(hook: Hook) -> str | None:
    """Signal the process of a pid file; never the daemon itself, nor a group."""
    try:
        pid = int(Path(hook.pid_file).read_bytes()[:32])
        if pid <= 1 or pid == os.getpid():
            return f"{hook.pid_file} names process {pid}"
        os.kill(pid, signal.Signals[f"SIG{hook.signal}"])
    except (OSError, ValueError) as error:
        return f"{hook.pid_file}: {error}"
    return None
