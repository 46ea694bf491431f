"""Several processes that answer on one port: their parent starts them, watches over them, and ends them.

The parent binds the port and the workers, forked from it, accept from its queue: a connection that comes while a worker
dies waits for another instead of being reset, and a second server on the same port is refused, which SO_REUSEPORT would
let in unseen. It loads nothing and has no other threads, so a worker that died is replaced by forking again. Whatever
concerns all workers (``fellows``) goes over a socket that each has in a private directory, made before any is forked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from modelsync.core.errors import CannotListen, ModelsyncError
from modelsync.edges.host.systemd import SystemdNotifier, watchdog_interval_s
from modelsync.serve.settings import ServeSettings

READY, ALIVE = b"r", b"."
"""What a worker writes to its parent: once when it is ready, and each BEAT_S from the loop that answers requests."""
BEAT_S = 1.0
LOOK_S = 0.5
"""Between two looks at what the workers write."""
BACKLOG = 1024
_SHORT_S = 5.0
"""A worker that lived for less than this is replaced after a pause, twice as long each time, at most _PAUSE_S."""
_PAUSE_S = 10.0
_END_S = 10.0
"""Beyond the time for running requests, until a worker that should end is killed."""
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """What one worker has of its parent; the same for all that follow one another in it."""

    number: int
    listening: tuple[socket.socket, ...]
    """Bound to the port, shared by all."""
    own: socket.socket
    """Where its fellows ask it."""
    directory: Path
    """Holds the sockets, and what all must know of (``fellows``)."""
    workers: int
    parent: int
    """A pipe that ends when the parent does."""
    beats: int
    """A pipe to the parent."""
    first: bool
    """Not the successor of one that died: it listens before what is preloaded is there, as a single server does."""

    def socket_of(self, number: int) -> Path:
        return self.directory / f"worker-{number}"


@dataclass(slots=True)
class _Worker:
    number: int
    own: socket.socket
    pid: int = 0
    beats: int = -1
    began_s: float = 0.0
    heard_s: float = 0.0
    ready: bool = False
    starts: int = 0
    pause_s: float = 0.0
    due_s: float = 0.0
    """When to start it, while it does not run."""


@dataclass(slots=True)
class Workers:
    """The parent.

    Args:
        run: what a worker does until it is told to end; in a process of its own.
    """

    settings: ServeSettings
    run: Callable[[Place], None]
    _workers: list[_Worker] = field(default_factory=list)
    _listening: tuple[socket.socket, ...] = ()
    _parent: tuple[int, int] = (-1, -1)
    _stops: bool = False
    _told_ready: bool = False

    def serve(self) -> None:
        """Until SIGTERM or SIGINT; then every worker answers what is under way. Raises CannotListen."""
        notifier = SystemdNotifier()
        directory = Path(tempfile.mkdtemp(prefix="modelsync-serve-"))
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._listening = listening(self.settings.host, self.settings.port)
            self._parent = os.pipe()
            self._workers = [
                _Worker(number, _own_socket(directory / f"worker-{number}")) for number in range(self.settings.workers)
            ]
            address = f"{self.settings.host}:{self._listening[0].getsockname()[1]}"
            _log.info("server.started", address=address, live=str(self.settings.live_dir), workers=len(self._workers))
            self._watch(notifier, directory, address)
            notifier.stopping("answering what is under way")
            self._end()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            shutil.rmtree(directory, ignore_errors=True)
        _log.info("server.stopped")

    # --- while it runs ----------------------------------------------------------------------------------------------

    def _watch(self, notifier: SystemdNotifier, directory: Path, address: str) -> None:
        watchdog_s = watchdog_interval_s()
        while True:
            for worker in self._workers:
                if not worker.pid and time.monotonic() >= worker.due_s:
                    self._start(worker, directory)
            told = signal.sigtimedwait(_SIGNALS, LOOK_S)
            if told is not None and told.si_signo != signal.SIGCHLD:
                return
            self._reap()
            for worker in self._workers:
                self._hear(worker, watchdog_s)
            if not self._told_ready and all(worker.ready for worker in self._workers):
                self._told_ready = True
                notifier.ready(f"serving {self.settings.live_dir} at {address} with {len(self._workers)} workers")
            notifier.watchdog()

    def _start(self, worker: _Worker, directory: Path) -> None:
        beats, told = os.pipe()
        os.set_blocking(beats, False)
        place = Place(
            worker.number,
            self._listening,
            worker.own,
            directory,
            len(self._workers),
            self._parent[0],
            told,
            first=not worker.starts,
        )
        pid = os.fork()
        if not pid:
            self._be(place, beats)
        os.close(told)
        worker.pid, worker.beats, worker.ready = pid, beats, False
        worker.starts += 1
        worker.began_s = worker.heard_s = time.monotonic()
        _log.info("worker.started", worker=worker.number, pid=pid)

    def _be(self, place: Place, beats: int) -> None:
        """In the child, which never returns."""
        code = 70
        try:
            os.close(self._parent[1])
            os.close(beats)
            for worker in self._workers:
                if worker.number != place.number:
                    worker.own.close()
                if worker.beats >= 0:
                    os.close(worker.beats)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self.run(place)
            code = 0
        except ModelsyncError as error:
            _log.error("worker.failed", worker=place.number, error=str(error))
            code = error.exit_code
        except BaseException:
            _log.exception("worker.failed", worker=place.number)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid and (ended := os.waitpid(worker.pid, os.WNOHANG))[0]:
                self._ended(worker, ended[1])

    def _ended(self, worker: _Worker, status: int) -> None:
        lived_s = time.monotonic() - worker.began_s
        worker.pause_s = min(_PAUSE_S, max(0.1, worker.pause_s * 2)) if lived_s < _SHORT_S else 0.0
        worker.due_s = time.monotonic() + worker.pause_s
        os.close(worker.beats)
        pid, worker.pid, worker.beats, worker.ready = worker.pid, 0, -1, False
        if not self._stops:
            code = os.waitstatus_to_exitcode(status)
            _log.warning(
                "worker.ended",
                worker=worker.number,
                pid=pid,
                how=f"exit {code}" if code >= 0 else f"signal {-code}",
                lived_s=round(lived_s, 1),
                next=f"another is started in {worker.pause_s:g} s",
            )

    def _hear(self, worker: _Worker, watchdog_s: float | None) -> None:
        """Read its beats; one whose loop hangs for as long as systemd would let it is killed, and replaced."""
        if not worker.pid:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(worker.beats, 4096):
                worker.heard_s = time.monotonic()
                worker.ready = worker.ready or READY in data
        silent_s = time.monotonic() - worker.heard_s
        if watchdog_s is not None and silent_s > 2 * watchdog_s:
            _log.error("worker.hung", worker=worker.number, pid=worker.pid, silent_s=round(silent_s, 1), next="killed")
            os.kill(worker.pid, signal.SIGKILL)
            worker.heard_s = time.monotonic()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._stops = True
        for each in self._listening:
            each.close()
        self._tell(signal.SIGTERM)
        deadline_s = time.monotonic() + self.settings.drain_s + _END_S
        while any(worker.pid for worker in self._workers):
            signal.sigtimedwait({signal.SIGCHLD}, LOOK_S)
            self._reap()
            if time.monotonic() > deadline_s:
                self._tell(signal.SIGKILL)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)


def listening(host: str, port: int) -> tuple[socket.socket, ...]:
    """The port, on every address that the host's name has. Raises CannotListen."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            made = socket.create_server(address[:2], family=family, backlog=BACKLOG)
            made.setblocking(False)
            sockets.append(made)
    except OSError as error:
        for each in sockets:
            each.close()
        raise CannotListen(address=f"{host}:{port}", reason=error.strerror or str(error)) from error
    return tuple(sockets)


def _own_socket(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    made.listen(BACKLOG)
    made.setblocking(False)
    return made
