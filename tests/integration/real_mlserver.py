"""A real MLServer, in an environment of its own under .cache: its pins would not fit into ours."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.integration.daemons import free_port, until

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".cache" / "mlserver"
PACKAGES = ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "uvloop<0.22")
"""With a later uvloop it does not start."""
INSTALL_TIMEOUT_S = 400


class CannotInstall(Exception):
    """It cannot be had here; why, as pip says."""


def environment() -> Path:
    """The Python that has MLServer; installed once, some 50 s and 530 MB. Raises CannotInstall."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed"
    ENVIRONMENT.parent.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENT.parent / "mlserver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_text() == " ".join(PACKAGES):
            return python
        began_s = time.monotonic()
        print("installing MLServer into an environment of its own, once", file=sys.stderr)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
        ):
            _run(command)
        done.write_text(" ".join(PACKAGES))
        print(f"installed MLServer in {time.monotonic() - began_s:.0f} s", file=sys.stderr)
        return python


def _run(command: list[str]) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"not installed within {INSTALL_TIMEOUT_S} s") from error
    if ended.returncode != 0:
        raise CannotInstall((ended.stderr.strip().splitlines() or ["no reason given"])[-1])


class MlServer:
    """A context: one MLServer over one repository, on free ports."""

    def __init__(self, python: Path, repository: Path, log: Path, port: int) -> None:
        self._python, self._repository, self._log = python, repository, log
        self._ports = [port, free_port(), free_port()]
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MlServer:
        names = ("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT")
        ports = dict(zip(names, map(str, self._ports), strict=True))
        settings = {"MLSERVER_HOST": "127.0.0.1", "MLSERVER_PARALLEL_WORKERS": "1", "OMP_NUM_THREADS": "1", **ports}
        self._repository.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            command = [str(self._python), "-c", "from mlserver.cli import main; main()", "start", str(self._repository)]
            self._process = subprocess.Popen(
                command, env={**os.environ, **settings}, cwd=self._log.parent, stdout=log, stderr=log
            )
        until(self._answers, f"MLServer to answer; its log is {self._log}", 90)
        return self

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self._ports[0])) == 0

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
