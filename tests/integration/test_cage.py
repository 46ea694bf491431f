"""The cage: what a program may take, what becomes of its descendants, and whom it may not harm."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import until
from tests.integration.marked import alive, marked

from modelsync.edges.gates import cage, seccomp
from modelsync.edges.gates.cage import Ended, Limits

MIB = 1 << 20

HANGS, LEFT, MANY, CANCELLED, ORPHANED, OUTRUN = (marked(number) for number in range(6))


def run(*argv: str, **limits: Any) -> Ended:
    return asyncio.run(cage.run(argv, {}, Limits(**{"timeout_s": 1.0, **limits})))


def shell(script: str, **limits: Any) -> Ended:
    return run("/bin/sh", "-c", script, **limits)


def python(script: str, **limits: Any) -> Ended:
    return run(sys.executable, "-c", script, **limits)


@pytest.mark.parametrize(
    ("script", "code", "why"),
    [("exit 0", 0, None), ("echo bad >&2; exit 3", 3, "ended with 3: bad"), ("kill -15 $$", -15, "died of signal 15")],
)
def test_how_it_ended(script: str, code: int, why: str | None) -> None:
    ended = shell(script)
    assert (ended.code, ended.why) == (code, why)


def test_a_program_that_is_not_there() -> None:
    assert "No such file" in (run("/no/such/program").why or "")


NO_NICE = """
import os, sys
from modelsync.edges.gates import seccomp
# nice(2) is made of setpriority: 141 on x86_64, 140 on aarch64.
for machine, number in ("x86_64", 141), ("aarch64", 140):
    seccomp._ARCHITECTURES[machine][1]["never"] = (number,)
seccomp.install([], network=True)
try:
    os.nice(1)
    sys.exit("the filter does not filter")
except PermissionError:
    pass
from tests.integration.test_cage import shell
print(shell("echo ran; exit 3").why)
"""


@pytest.mark.skipif(not seccomp.available(), reason="no filter of system calls here")
def test_a_service_that_may_not_be_nice_has_a_cage_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", NO_NICE], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ended with 3: ran\n", done.stderr


def test_one_that_hangs_is_killed_with_all_that_it_started() -> None:
    ended = shell(f"setsid sleep {HANGS} & (setsid sleep {HANGS} &) ; sleep {HANGS}")
    assert ended.fault == "ran longer than 1 s" and not alive(f"sleep {HANGS}")


def test_what_it_leaves_behind_ends_with_it() -> None:
    ended = shell(f"(setsid sh -c 'sleep {LEFT}; :' &) ; exit 0", timeout_s=30)
    assert ended.why is None and not alive(f"sleep {LEFT}")


def test_a_flood_is_dropped_and_its_ends_are_kept() -> None:
    ended = shell("echo first; head -c 50000000 /dev/zero | tr '\\0' y; echo; echo last", timeout_s=20)
    assert ended.why is None or ended.code == 0
    assert ended.output.startswith("first") and ended.output.endswith("last\n") and len(ended.output) < 9000


def test_an_endless_flood_is_ended_by_the_clock() -> None:
    ended = shell("yes")
    assert ended.fault == "ran longer than 1 s" and len(ended.output) < 9000


def test_memory_of_one_process_and_of_many() -> None:
    assert "MemoryError" in python("bytearray(400 << 20)", memory_bytes=200 * MIB, timeout_s=20).output
    many = python(
        "import os, time\nfor _ in range(3): os.fork()\nkept = bytearray(60 << 20)\ntime.sleep(60)",
        memory_bytes=200 * MIB,
        timeout_s=20,
    )
    assert many.fault == f"used more than {200 * MIB} bytes of memory"


def test_too_many_processes() -> None:
    ended = python(
        f"import os, time\nfor _ in range(7): os.fork()\ntime.sleep(60 + 0 * {MANY})", processes=40, timeout_s=20
    )
    assert ended.fault == "started more than 40 processes" and not alive(f"0 * {MANY}")


def test_processes_that_beget_and_die_are_outrun() -> None:
    # Each is gone before it can be listed and has left another: bounded here, so that a failure harms nobody.
    script = f"import os\nfor _ in range(3000):  # {OUTRUN}\n    if os.fork():\n        os._exit(0)"
    ended = python(script, timeout_s=0.3)
    assert (ended.fault or "").startswith("ran longer") or ended.code == 0
    assert not alive(f"# {OUTRUN}")


@pytest.mark.skipif(not seccomp.available(), reason="no table of system calls for this architecture")
def test_it_cannot_kill_whoever_started_it() -> None:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        ended = shell(f"kill -9 $PPID; kill -9 {os.getpid()}; kill -9 -1; /bin/kill -9 -- -{os.getpid()}; echo done")
        assert ended.code == 0 and ended.output.count("not permitted") >= 3 and ended.output.endswith("done\n")
        assert victim.poll() is None, "not even by a signal to everybody"
        assert shell(f"kill -9 {victim.pid}").code == 0 and victim.wait(5) == -9, "a hook may signal a server"
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.skipif(not seccomp.available(), reason="no table of system calls for this architecture")
def test_without_a_network_there_are_no_sockets() -> None:
    script = "import socket; socket.socketpair(); socket.socket()"
    assert "not permitted" in python(script, network=False).output
    assert python(script, network=True).code == 0


def test_its_files_are_bounded(tmp_path: Path) -> None:
    ended = shell(f"head -c 3000000 /dev/zero > {tmp_path}/big", file_bytes=MIB)
    assert ended.code != 0 and (tmp_path / "big").stat().st_size <= MIB


def sleeping(mark: str) -> list[str]:
    return [line for line in alive(f"sleep {mark}") if line.startswith("/bin/sleep")]


def test_a_daemon_that_cancels_takes_it_along() -> None:
    async def cancel() -> None:
        task = asyncio.create_task(cage.run(["/bin/sleep", CANCELLED], {}, Limits(60)))
        async with asyncio.timeout(10):
            while not sleeping(CANCELLED):
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not sleeping(CANCELLED)


def test_a_daemon_that_dies_takes_it_along() -> None:
    script = (
        "import asyncio\nfrom modelsync.edges.gates.cage import *\n"
        f"asyncio.run(run(['/bin/sleep', '{ORPHANED}'], {{}}, Limits(60)))"
    )
    daemon = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: sleeping(ORPHANED), "the program to run")
    daemon.kill()
    daemon.wait()
    until(lambda: not sleeping(ORPHANED), "the program to end with its daemon")
