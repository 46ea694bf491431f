"""The notification protocol of systemd (sd_notify(3)) over its datagram socket; nothing happens without systemd.

It must not know when the daemon is ready or alive: the caller says so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

_MAX_STATUS_CHARACTERS = 400


class SystemdNotifier:
    """Tells systemd about this process. A message that cannot be delivered is dropped: systemd's watchdog judges.

    Args:
        environ: where NOTIFY_SOCKET is looked up, once.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL byte of the abstract name space (unix(7)).
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if self._address.startswith(("/", "\0")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self, status: str = "") -> None:
        """Started, or done reloading."""
        self._send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(*_status(text))

    def reloading(self) -> None:
        """The configuration is being read again; ``ready`` must follow. The time is what Type=notify-reload asks."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """Shutting down."""
        self._send("STOPPING=1", *_status(status))

    def watchdog(self) -> None:
        """Still alive. To be sent from the loop that does the work, never from a timer of its own."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Give the socket back; later calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None and lines:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)


def watchdog_interval_s(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """How often to call ``watchdog``: half of what systemd allows (sd_watchdog_enabled(3)).

    Returns:
        Seconds; None if systemd does not watch this very process.
    """
    usec = environ.get("WATCHDOG_USEC", "")
    watched = environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0:
        return None
    if watched and watched != str(os.getpid() if pid is None else pid):
        return None
    return int(usec) / 2_000_000


def _status(text: str) -> tuple[str, ...]:
    """A line feed would begin another assignment, so everything unprintable becomes a space."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_STATUS_CHARACTERS])
    return (f"STATUS={line}",) if line else ()
