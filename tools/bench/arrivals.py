"""Hears names being renamed into directories: the same clock and the same witness for every contender.

Run as a process of its own it prints one line for each, ``NANOSECONDS NUMBER NAME``: CLOCK_MONOTONIC, which all
processes share; which of the directories on its command line; and the name.
"""

from __future__ import annotations

import ctypes
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_IN_MOVED_TO = 0x80
_EVENT = struct.Struct("iIII")


def hear(directories: Sequence[str]) -> None:
    """Print until killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init()
    numbers = {
        libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_MOVED_TO): n for n, path in enumerate(directories)
    }
    if -1 in numbers:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    print("ready", flush=True)
    while True:
        data = os.read(descriptor, 65536)
        now_ns = time.monotonic_ns()
        while data:
            watch, _, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            print(now_ns, numbers[watch], name, flush=True)
            data = data[_EVENT.size + length :]


class Witness:
    """A context: the process that hears, and the wait for what it heard."""

    def __init__(self, *directories: Path) -> None:
        command = [sys.executable, "-I", "-S", __file__, *map(str, directories)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit("the witness did not start")
        self._heard: queue.SimpleQueue[tuple[int, int, str]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            time_ns, number, name = line.rstrip("\n").split(" ", 2)
            self._heard.put((int(time_ns), int(number), name))

    def forget(self) -> None:
        """Drop what was heard so far."""
        while not self._heard.empty():
            self._heard.get()

    def heard_ns(self, number: int, name: str, timeout_s: float) -> int:
        """When this name next came into directory ``number``. Whatever else is heard is dropped."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                heard = self._heard.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise SystemExit(f"waited {timeout_s:g} s in vain for {name} in directory {number}") from None
            if heard[1:] == (number, name):
                return heard[0]

    def heard_of_all_ns(self, directories: int, name: str, timeout_s: float) -> int:
        """When this name had come into each of the first so many directories: the time of the last of them."""
        first_ns: dict[int, int] = {}
        deadline_s = time.monotonic() + timeout_s
        while len(first_ns) < directories:
            try:
                time_ns, number, heard = self._heard.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                missing = sorted(set(range(directories)) - first_ns.keys())
                raise SystemExit(f"waited {timeout_s:g} s in vain for {name} in directories {missing}") from None
            if heard == name:
                first_ns.setdefault(number, time_ns)
        return max(first_ns.values())

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    hear(sys.argv[1:])
