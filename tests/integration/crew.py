"""Three daemons that lose their primary, their Redis or their time, and are found whole again by the next test."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.terms import QUICK_LEASE, Ledger, in_step, primary_of

NAMES = ("alpha", "beta", "gamma")


class Crew(Fleet):
    """Three daemons that every test finds whole and in step."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ledger = Ledger()
        for name in NAMES:
            self.add(name, QUICK_LEASE, wait=name == NAMES[0])

    def mend(self) -> None:
        self.valkey.start()
        for daemon in self.daemons:
            if daemon.process is None or daemon.process.poll() is not None:
                daemon.start()
            daemon.signal(signal.SIGCONT)
        until(lambda: in_step(self.daemons), "a fleet in step", 30)

    def primary(self) -> Daemon:
        return primary_of(self.daemons)

    def others(self, *without: Daemon) -> list[Daemon]:
        return [daemon for daemon in self.daemons if daemon not in without]

    def epoch(self) -> int:
        return int(self.daemons[0].status()["epoch"])

    def by_name(self, name: str) -> Daemon:
        return next(daemon for daemon in self.daemons if daemon.name == name)


def live(daemon: Daemon, model: str, data: bytes) -> bool:
    tree = daemon.tree(model)
    return tree is not None and (tree / f"{model}.bin").read_bytes() == data


def await_live(daemons: list[Daemon], model: str, data: bytes) -> None:
    for daemon in daemons:
        until(lambda d=daemon: live(d, model, data), f"{model} on {daemon.name}")
