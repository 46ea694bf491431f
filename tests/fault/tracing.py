"""Running the driver under strace: counting its system calls, and doing something to one of them.

strace counts the calls of each name from the moment it attaches; the driver's fork is stopped until then, so the n-th
call of one run is the n-th of the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CHANGING = re.findall(
    r"\w+",
    """
    mkdir mkdirat open openat creat write writev pwrite64 pwritev ftruncate fallocate copy_file_range sendfile fchmod
    chmod fsync fdatasync syncfs sync_file_range rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat
    rmdir
    """,
)
_RESTARTED = ("sendfile", "copy_file_range")
"""With a signal pending these return at once and are begun again: a SIGSTOP at each of them would never end."""
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)")
START_S = 10.0
LOST_S = 0.5


@dataclass(frozen=True)
class Call:
    """One system call of a run: the n-th of its name, from 1."""

    name: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.name}#{self.number} {self.text[:150]}"


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: the signal), the error that it reported, and strace's log."""

    code: int
    error: str
    log: str

    @property
    def kind(self) -> str:
        return self.error.partition(":")[0]


def why_not() -> str | None:
    """Why nothing can be traced here, if so."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    try:
        with Driver() as driver, tempfile.TemporaryDirectory() as directory:
            ended = driver.run("collect", Path(directory), inject="openat:error=EIO")
    except (OSError, TimeoutError, RuntimeError) as error:
        return f"strace cannot trace here: {error}"
    return None if "INJECTED" in ended.log else "this strace cannot inject faults"


class Driver:
    """The driver's serving form as a child. One run at a time."""

    def __enter__(self) -> Driver:
        path = [str(REPOSITORY / "daemon"), str(REPOSITORY), *(entry for entry in sys.path if entry)]
        self._log = tempfile.NamedTemporaryFile(prefix="strace-", suffix=".log")
        self._child = subprocess.Popen(
            [os.path.realpath(sys.executable), "-m", "tests.fault.driver", "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(path), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(START_S)
        self._log.close()

    def run(self, work: str, root: Path, url: str = "", *, inject: str = "", calls: tuple[str, ...] = ()) -> Ended:
        """Do the work once, with ``inject`` as strace's -e inject=, logging these calls and the changing ones."""
        with self._started(work, root, url, inject, calls) as _:
            pass
        return self._ended

    @contextlib.contextmanager
    def _started(self, work: str, root: Path, url: str, inject: str, calls: tuple[str, ...]) -> Iterator[int]:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps([work, str(root), url]) + "\n")
        self._child.stdin.flush()
        pid = int(self._child.stdout.readline())
        tracer = self._attach(pid, inject, calls)
        os.kill(pid, signal.SIGCONT)
        try:
            yield pid
        except BaseException:
            os.kill(pid, signal.SIGKILL)  # it may be stopped, and would never end
            raise
        finally:
            code, error = json.loads(self._child.stdout.readline())
            tracer.wait(START_S)
            self._ended = Ended(code, error, Path(self._log.name).read_text(errors="replace"))

    def _attach(self, pid: int, inject: str, calls: tuple[str, ...]) -> subprocess.Popen[str]:
        _wait_for_state(pid, "T")
        # -y: descriptors with their paths; -s 0: no data; a name that this architecture lacks is passed over with "?"
        names = ",".join(f"?{name}" for name in (*CHANGING, *calls))
        command = ["strace", "-f", "-y", "-s", "0", "-o", self._log.name, "-e", f"trace={names}", "-p", str(pid)]
        if inject:
            command += ["-e", f"inject={inject}"]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "attached" not in line:
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(line.strip() or "strace said nothing")
        return tracer

    # --- stopping at each call ------------------------------------------------------------------------------------

    def stops(self, work: str, root: Path, url: str = "") -> Iterator[Call]:
        """Do the work, stopped after each call that touches the state or live directory; yields those calls."""
        inject = ",".join(f"?{name}" for name in CHANGING if name not in _RESTARTED) + ":signal=SIGSTOP"
        with self._started(work, root, url, inject, ()) as pid:
            counted: Counter[str] = Counter()
            seen = 0
            while True:
                lines = self._until_stopped(pid, seen)
                if lines is None:
                    return
                for line in lines[seen:]:
                    call = _parsed(line, counted)
                    if call is not None and _below(call.text, root):
                        yield call
                seen = len(lines)
                os.kill(pid, signal.SIGCONT)

    def _until_stopped(self, pid: int, seen: int) -> list[str] | None:
        """The log's lines once the process has stopped again, or None if it has ended."""
        asked_s = time.monotonic()
        while True:
            lines = Path(self._log.name).read_text(errors="replace").splitlines()
            own = [line for line in lines[seen:] if line.startswith(str(pid))]
            if any("+++" in line for line in own):
                return None
            if any("--- stopped by SIGSTOP" in line for line in own):
                return lines
            if time.monotonic() - asked_s > LOST_S:
                return lines  # a SIGCONT that met a SIGSTOP half delivered is lost: it is sent once more
            time.sleep(0.0005)


def _wait_for_state(pid: int, state: str) -> None:
    deadline_s = time.monotonic() + START_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        if time.monotonic() > deadline_s:
            raise TimeoutError("the driver's fork did not stop")
        time.sleep(0.0005)


def _parsed(line: str, counted: Counter[str]) -> Call | None:
    match = _CALL.match(line)
    if match is None or match.group(2) not in CHANGING:
        return None
    counted[match.group(2)] += 1
    return Call(match.group(2), counted[match.group(2)], match.group(3))


def _below(text: str, root: Path) -> bool:
    return f"{root}/state" in text or f"{root}/live" in text


def calls_of(log: str, root: Path) -> list[Call]:
    """The calls of the work's own thread that touch the state or live directory, in order."""
    lines = log.splitlines()
    own = lines[0].split()[0] if lines else ""
    counted: Counter[str] = Counter()
    calls = [_parsed(line, counted) for line in lines if line.startswith(own)]
    return [call for call in calls if call is not None and _below(call.text, root)]
