"""One contender's both ends as a host: a process with a network namespace and a cgroup of its own.

So the bytes on the wire are what the kernel counts on its loopback, headers and both directions included, and the
processor time is that of every process that it started, in user and kernel mode. The kernel's own write-back threads
are nobody's. Needs root; without it, or without a cgroup (v2) to write to, these figures are missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

_CLONE_NEWNET = 0x40000000


class Contender(Protocol):
    """What is measured; made, and from then on only used, in the process of its host."""

    def prepare(self, source: Path, old: Path | None) -> None:
        """Everything that is not timed: publish the source, put the old version where the new one will be."""

    def fetch(self) -> None:
        """What is timed: until the new version is there, verified and durable as far as the contender's notes say."""

    def clear(self) -> int:
        """Remove what was fetched; its size in bytes."""

    def stop(self) -> None: ...


class Host:
    """Runs one contender. ``fetch`` gives (seconds, bytes on the wire, processor seconds)."""

    def __init__(self, name: str, make: Callable[[], Contender]) -> None:
        self._cgroup = _new_cgroup(f"modelsync-bench-{os.getpid()}-{name.replace(' ', '-')}")
        self._pipe, theirs = multiprocessing.Pipe()
        serve = (theirs, self._pipe, make, self._cgroup)
        self._process = multiprocessing.get_context("fork").Process(target=_serve, args=serve)
        self._process.start()
        theirs.close()
        self._answer()

    def prepare(self, source: Path, old: Path | None) -> None:
        self._ask("prepare", source, old)

    def fetch(self) -> tuple[float, int, float]:
        before_s = self.cpu_s()
        took_s, wire = self._ask("fetch")
        return took_s, wire, self.cpu_s() - before_s

    def clear(self) -> int:
        return int(self._ask("clear"))

    def ask(self, method: str, *arguments: object) -> Any:
        """Any other method of the contender."""
        return self._ask(method, *arguments)

    def stop(self) -> None:
        with contextlib.suppress(EOFError, OSError, RuntimeError):
            self._ask("stop")
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._cgroup is not None:
            for pid in (self._cgroup / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _gone(self._cgroup)

    def cpu_s(self) -> float:
        if self._cgroup is None:
            return 0.0
        first = (self._cgroup / "cpu.stat").read_text().split()
        return int(first[first.index("usage_usec") + 1]) / 1e6

    def _ask(self, *message: object) -> Any:
        self._pipe.send(message)
        return self._answer()

    def _answer(self) -> Any:
        error, value = self._pipe.recv()
        if error:
            raise RuntimeError(error)
        return value


def _serve(pipe: Connection, ours: Connection, make: Callable[[], Contender], cgroup: Path | None) -> None:
    """In the child: carry out what comes over the pipe. Its end ends the contender, also when the benchmark was killed.

    Args:
        ours: the benchmark's end, which a fork has copied: as long as it is open here, the pipe has no end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the benchmark hears it too, and says stop; not inherited by exec
    ours.close()
    try:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        alone = _alone()
        contender = make()
        pipe.send(("", None))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
        return
    try:
        _answer_all(pipe, contender, alone=alone)
    except (EOFError, OSError):  # nobody is left to be told anything
        contender.stop()


def _answer_all(pipe: Connection, contender: Contender, *, alone: bool) -> None:
    while True:
        method, *arguments = pipe.recv()
        before, started_s = _loopback_bytes(), time.monotonic()
        try:
            value = getattr(contender, method)(*arguments)
        except BaseException:
            pipe.send((traceback.format_exc(), None))
            continue
        took_s = time.monotonic() - started_s
        pipe.send(("", (took_s, _loopback_bytes() - before if alone else 0) if method == "fetch" else value))
        if method == "stop":
            return


def _alone() -> bool:
    """Enter a network namespace with nothing but a loopback; False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return True


def _loopback_bytes() -> int:
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def _new_cgroup(name: str) -> Path | None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for root in (fields[1] for fields in mounts if fields[2] == "cgroup2"):
        with contextlib.suppress(OSError):
            path = Path(root) / name
            path.mkdir()
            return path
    return None


def _gone(cgroup: Path) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError):
            cgroup.rmdir()
            return
        time.sleep(0.05)
