"""How a server's process tells that it is ready and that its loop turns: systemd and the log, or its parent."""

from __future__ import annotations

import contextlib
import os
from typing import Protocol

import structlog

from modelsync.edges.host.systemd import SystemdNotifier, watchdog_interval_s
from modelsync.serve.settings import ServeSettings
from modelsync.serve.workers import ALIVE, BEAT_S, READY


class Beats(Protocol):
    """Whoever judges whether this process lives."""

    @property
    def interval_s(self) -> float | None:
        """Between two beats; None: nobody listens."""

    def ready(self, port: int) -> None: ...

    def beat(self) -> None: ...

    def stopping(self) -> None: ...

    def stopped(self) -> None: ...


class Alone:
    """Of a server that is one process: systemd, and the log."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings, self._notifier, self._log = settings, SystemdNotifier(), structlog.get_logger()
        interval_s = watchdog_interval_s()
        self.interval_s = interval_s / 2 if interval_s is not None else None

    def ready(self, port: int) -> None:
        address, live = f"{self._settings.host}:{port}", str(self._settings.live_dir)
        self._log.info("server.started", address=address, live=live)
        self._notifier.ready(f"serving {live} at {address}")

    def beat(self) -> None:
        self._notifier.watchdog()

    def stopping(self) -> None:
        self._notifier.stopping("answering what is under way")

    def stopped(self) -> None:
        self._log.info("server.stopped")


class Told:
    """Of a worker: its parent, which tells them.

    Args:
        pipe: to the parent.
    """

    interval_s: float | None = BEAT_S

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self, port: int) -> None:
        self._tell(READY)

    def beat(self) -> None:
        self._tell(ALIVE)

    def stopping(self) -> None:
        """The parent said so."""

    def stopped(self) -> None:
        """The parent sees it."""

    def _tell(self, what: bytes) -> None:
        with contextlib.suppress(OSError):  # the parent has gone, which ends this worker by itself
            os.write(self._pipe, what)
