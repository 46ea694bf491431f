"""modelsync as a contender: a fleet of two. The replica is stopped (SIGSTOP) while the primary takes the version in.

The clock runs from SIGCONT until `current` is switched: hearing of it, reading the catalog, the manifest, the transfer,
each chunk's digest and the file's, every fsync and the switch are part of it.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from arrivals import Witness
from payload import bytes_below

from fleet import Fleet, until

MODEL = "large"
PATIENCE_S = 300.0


class Ours:
    """A fleet of its own for each run: one that has seen these bytes under any name would pull nothing."""

    needs: tuple[str, ...] = ()
    verified = "BLAKE3 by chunk and whole"
    durable = "fsync"
    trees = True

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fleet: Fleet | None = None
        self._witness: Witness | None = None

    def prepare(self, source: Path, old: Path | None) -> None:
        self._fleet = fleet = Fleet("alpha", "beta", root=self._root).__enter__()
        (fleet.replica.live / MODEL).mkdir(parents=True, exist_ok=True)
        if old is not None:
            self._publish(old)
            until(lambda: fleet.replica.current(MODEL), "the old version", PATIENCE_S)
        self._witness = Witness(fleet.replica.live / MODEL).__enter__()
        os.kill(fleet.replica.pid, signal.SIGSTOP)
        self._publish(source)
        for daemon in fleet.daemons:
            daemon.forget_peak()
        self._witness.forget()

    def _publish(self, source: Path) -> None:
        assert self._fleet is not None
        primary, ready = self._fleet.primary, self._fleet.root / "ready"
        before = primary.current(MODEL)
        if source.is_dir():
            shutil.copytree(source, ready)
            if before:
                (primary.models / MODEL).rename(self._fleet.root / "gone")
            ready.rename(primary.models / MODEL)
        else:
            shutil.copyfile(source, ready)
            ready.rename(primary.models / f"{MODEL}.bin")
        until(lambda: primary.current(MODEL) != before, "the primary to have it", PATIENCE_S)

    def fetch(self) -> None:
        assert self._fleet is not None and self._witness is not None
        os.kill(self._fleet.replica.pid, signal.SIGCONT)
        self._witness.heard_ns(0, "current", PATIENCE_S)

    def peaks(self) -> list[int]:
        """The most that primary and replica had resident since ``prepare``, in bytes."""
        assert self._fleet is not None
        return [daemon.memory_bytes("VmHWM") for daemon in self._fleet.daemons]

    def clear(self) -> int:
        assert self._fleet is not None and self._witness is not None
        size_bytes = bytes_below((self._fleet.replica.live / MODEL / "current").resolve())
        self._witness.__exit__()
        # Its directory goes away with it: what one run removes is not in the way of the next, which has its own.
        self._fleet.__exit__(None)
        self._fleet = self._witness = None
        return size_bytes

    def stop(self) -> None:
        if self._fleet is not None:
            self.clear()
