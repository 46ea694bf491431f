"""Runs a program that the daemon does not trust, as child of a warden, and says how it ended.

This file starts wardens and reads their one line; what a cage is made of, ``warden`` and ``seccomp`` know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelsync.core.errors import DiskFailed

ANSWER_BYTES = 1 << 20
GRACE_S = 15.0
"""What a warden may take beyond the program's own time, on a machine that is busy."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caged program may take."""

    timeout_s: float
    memory_bytes: int = 4 << 30
    processes: int = 256
    files: int = 1024
    file_bytes: int = 256 << 20
    """The largest file that it may write."""
    network: bool = True


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended. ``code`` is None where it was killed, and ``fault`` says why; negative: by that signal."""

    code: int | None
    fault: str | None
    output: str

    @property
    def why(self) -> str | None:
        """What went wrong, with the last it said; None where it ended with 0."""
        if self.fault is None and self.code == 0:
            return None
        code = self.code or 0
        how = self.fault or (f"ended with {code}" if code > 0 else f"died of signal {-code}")
        return f"{how}: {self.output.strip()}" if self.output.strip() else how


async def run(argv: Sequence[str], env: Mapping[str, str], limits: Limits, cwd: Path = Path("/")) -> Ended:
    """Run a program to its end, or to the end of its limits; nothing of it is left afterwards.

    Raises: DiskFailed: no process could be started.
    """
    order = {
        "argv": list(argv),
        "env": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **env},
        "cwd": str(cwd),
        "timeout_s": limits.timeout_s,
        "cpu_s": 2 * limits.timeout_s,  # of two processors; who waits on more is ended by the clock
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "files": limits.files,
        "file_bytes": limits.file_bytes,
        "network": limits.network,
    }
    try:
        warden = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "modelsync.edges.gates.warden"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=ANSWER_BYTES,
            start_new_session=True,
        )
    except OSError as error:
        raise DiskFailed(path=sys.executable, operation="start", errno_name=os.strerror(error.errno or 0)) from error
    ward = 0
    try:
        ward = await _began(warden, json.dumps(order).encode() + b"\n")
        return await _ended(warden, limits.timeout_s)
    finally:
        await asyncio.shield(_end(warden, ward))


async def _began(warden: asyncio.subprocess.Process, order: bytes) -> int:
    """Hand over the order; the process group of the program, 0 where none began."""
    assert warden.stdin is not None and warden.stdout is not None
    with contextlib.suppress(ConnectionError):  # a warden that is dead already says so by its silence
        warden.stdin.write(order)
        await warden.stdin.drain()
    try:
        async with asyncio.timeout(GRACE_S):
            return int(json.loads(await warden.stdout.readline())["pid"])
    except (TimeoutError, ValueError, KeyError):
        return 0


async def _ended(warden: asyncio.subprocess.Process, timeout_s: float) -> Ended:
    assert warden.stdout is not None
    try:
        async with asyncio.timeout(timeout_s + GRACE_S):
            value = json.loads(await warden.stdout.readline())
        return Ended(value["code"], value["fault"], value["output"])
    except TimeoutError:
        return Ended(None, "its warden did not answer", "")
    except (ValueError, KeyError):
        return Ended(None, "its warden was killed", "")


async def _end(warden: asyncio.subprocess.Process, ward: int) -> None:
    """Closing its input makes a warden kill its ward and end; one that does not is killed itself, after its ward."""
    assert warden.stdin is not None
    warden.stdin.close()
    try:
        async with asyncio.timeout(GRACE_S):
            await warden.wait()
    except TimeoutError:
        if ward:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(ward, signal.SIGKILL)
        warden.kill()
        await warden.wait()
