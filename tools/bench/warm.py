"""Memory that is warm while a contender runs: the same for each, whatever the host of this virtual machine does.

A virtual machine's free memory is handed back to its host within seconds, and touching it again runs at a tenth of the
speed: what a contender writes into the page cache would cost it more or less by luck. Touching as much just before the
clock starts is not enough, since what was touched and freed is handed back in the middle of a run. So a process of its
own holds warm memory and lets go of it piece by piece, as the contender takes what is free.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator

PIECE_BYTES = 64 << 20
AHEAD_PIECES = 4
"""Let go of before the clock starts; what a contender takes is made up for within milliseconds."""
LOOK_S = 0.002


@contextlib.contextmanager
def warm(size_bytes: int) -> Iterator[None]:
    """While this lasts, about so many bytes of what is newly allocated are warm."""
    command = [sys.executable, "-I", "-S", __file__, str(size_bytes + (AHEAD_PIECES + 4) * PIECE_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit("the warm memory could not be had")
            yield
        finally:
            process.kill()


def feed(size_bytes: int) -> None:
    """Hold memory, say ``ready``, and let go of it as it is needed; until killed or empty."""
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # it works for microseconds, and late is too late
    held = [_touched() for _ in range(size_bytes // PIECE_BYTES)]
    for _ in range(AHEAD_PIECES):
        held.pop().close()
    wanted = _free_bytes()
    print("ready", flush=True)
    while held:
        lacking = wanted - _free_bytes()
        while held and lacking > 0:
            held.pop().close()
            lacking -= PIECE_BYTES
        time.sleep(LOOK_S)


def _touched() -> mmap.mmap:
    # Private and in huge pages: what such a page leaves behind is the next that the kernel hands out.
    memory = mmap.mmap(-1, PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, PIECE_BYTES, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def _free_bytes() -> int:
    with open("/proc/meminfo", "rb", buffering=0) as file:
        head = file.read(128)
    return int(head.partition(b"MemFree:")[2].split(None, 1)[0]) * 1024


if __name__ == "__main__":
    feed(int(sys.argv[1]))
