"""The process between the daemon and a program it does not trust: ``python -m modelsync.edges.gates.warden``.

It starts the program under limits, adopts whatever the program leaves behind (PR_SET_CHILD_SUBREAPER), and kills all of
it at the end: on time, on too much memory, on too many processes, or when the daemon closes its standard input by
cancelling or by dying. It reads one JSON line, and writes one. Only the standard library, so that it starts fast.

A PID namespace would kill as surely, but a hardened service may not make one, and a hook must be able to signal a
server outside of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from modelsync.edges.gates import seccomp

LOOK_EVERY_S = 0.05
KILL_WITHIN_S = 5.0
KEPT_HEAD_BYTES = 2048
KEPT_TAIL_BYTES = 6144
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Output:
    """The beginning and the end of what was printed; the middle of a flood is dropped."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    total_bytes: int = 0

    def add(self, data: bytes) -> None:
        self.total_bytes += len(data)
        room = KEPT_HEAD_BYTES - len(self.head)
        self.head += data[:room]
        self.tail += data[max(room, 0) :]
        del self.tail[:-KEPT_TAIL_BYTES]

    def text(self) -> str:
        dropped = self.total_bytes - len(self.head) - len(self.tail)
        middle = f"\n… {dropped} bytes …\n" if dropped else ""
        return self.head.decode(errors="replace") + middle + self.tail.decode(errors="replace")


def descendants(root: int, most: int) -> list[int]:
    """Processes below one, itself left out; it ends after ``most``, since a fork bomb grows faster than it is read."""
    found: list[int] = []
    queue = [root]
    while queue and len(found) <= most:
        children = _children(queue.pop())
        found += children
        queue += children
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
                children += map(int, file.read().split())
    return children


def anonymous_bytes(pid: int) -> int:
    """Memory of its own that a process occupies; mapped files, a model's weights among them, do not count."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


class Ward:
    """One run of one program."""

    def __init__(self, spec: dict[str, Any], daemon: int) -> None:
        self._spec = spec
        self._protected = [daemon, os.getpid()]
        self._output = Output()
        self._code: int | None = None
        self._deadline_s = time.monotonic() + spec["timeout_s"]
        self._pipe, self._their_end = os.pipe()
        self._child = 0

    def run(self) -> dict[str, Any]:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._child = os.fork()
        if self._child == 0:
            _become(self._spec, self._their_end, self._protected)
        _say({"pid": self._child})  # by which the daemon kills the group if this process cannot any more
        os.close(self._their_end)
        os.set_blocking(self._pipe, False)
        fault = self._watch()
        killed = self._kill_all()
        self._drain()
        return {
            "code": self._code if fault is None else None,
            "fault": fault if killed else f"{fault or 'ended'}, and left a process that cannot be killed",
            "output": self._output.text(),
        }

    def _watch(self) -> str | None:
        """Until the program ends, or until it has to; why it had to."""
        reading = [sys.stdin.fileno(), self._pipe]
        while True:
            ready, _, _ = select.select(reading, [], [], LOOK_EVERY_S)
            if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 1):
                return "was stopped"
            if self._pipe in ready and not self._drain():
                reading.remove(self._pipe)
            self._reap()
            if self._code is not None:
                return None
            fault = self._over()
            if fault:
                return fault

    def _over(self) -> str | None:
        if time.monotonic() > self._deadline_s:
            return f"ran longer than {self._spec['timeout_s']:g} s"
        below = descendants(os.getpid(), self._spec["processes"])
        if len(below) > self._spec["processes"]:
            return f"started more than {self._spec['processes']} processes"
        used = sum(map(anonymous_bytes, below))
        if used > self._spec["memory_bytes"]:
            return f"used more than {self._spec['memory_bytes']} bytes of memory"
        return None

    def _drain(self) -> bool:
        """Take what was printed; False once nobody can print any more."""
        for _ in range(64):  # a flood gets no more than 4 MiB at a time: the limits are looked at in between
            try:
                data = os.read(self._pipe, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._output.add(data)
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._child:
                    self._code = os.waitstatus_to_exitcode(status)

    def _kill_all(self) -> bool:
        """Kill the group in one step, against which no fork wins; then who left it, frozen before they are killed.

        Returns: whether nothing lives on.
        """
        deadline_s = time.monotonic() + KILL_WITHIN_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child, signal.SIGKILL)
            frozen = _freeze(os.getpid())
            _signal_each(frozen, signal.SIGKILL)
            self._reap()
            if not _children(os.getpid()):
                return True
            time.sleep(0.005)
        return False


def _freeze(root: int) -> set[int]:
    """Stop each process below one before its children are listed: what is stopped makes no more of them."""
    frozen: set[int] = set()
    queue = _children(root)
    while queue:
        pid = queue.pop()
        if pid not in frozen:
            _signal_each([pid], signal.SIGSTOP)
            frozen.add(pid)
            queue += _children(pid)
    return frozen


def _signal_each(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _become(spec: dict[str, Any], output: int, protected: list[int]) -> None:
    """In the forked child: take on the limits and turn into the program. Never returns."""
    code = 126
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)  # first: what fails below is told through it
        os.setsid()
        with contextlib.suppress(PermissionError):  # a courtesy, which a service's filter of system calls may refuse
            os.nice(5)  # the daemon, the servers and the warden go first
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        os.closerange(3, 256)
        _limit(spec)
        os.chdir(spec["cwd"])
        os.umask(0o077)
        _filter(protected, spec["network"])
        os.execve(spec["argv"][0], spec["argv"], spec["env"])
    except BaseException as error:
        code = 127 if isinstance(error, FileNotFoundError) else code
        os.write(2, f"{spec['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(code)


def _limit(spec: dict[str, Any]) -> None:
    limits: tuple[tuple[int, int], ...] = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(spec["cpu_s"]) + 1),
        (resource.RLIMIT_FSIZE, spec["file_bytes"]),
        (resource.RLIMIT_NOFILE, spec["files"]),
        (resource.RLIMIT_DATA, spec["memory_bytes"]),
    )
    for limit, value in limits:
        highest = resource.getrlimit(limit)[1]
        most = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(limit, (most, most))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out all the same, the kernel takes this one and not the daemon


def _filter(protected: list[int], network: bool) -> None:
    """Without a filter the other limits hold; ``modelsync doctor`` says that the kernel has none."""
    if seccomp.available():
        with contextlib.suppress(OSError):
            seccomp.install(protected, network=network)


def main() -> None:
    """Read the order, carry it out, report."""
    daemon = os.getppid()
    spec = json.loads(_first_line())
    _say(Ward(spec, daemon).run())


def _say(value: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the daemon died; what is left to do is done all the same
        os.write(1, json.dumps(value).encode() + b"\n")


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 65536)
        if not data:
            sys.exit(1)
        line += data
    return line


if __name__ == "__main__":
    main()
