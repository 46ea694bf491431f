"""A real modelsync-serve over a live directory of the test's own, and models to put there."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import tritonclient.http as triton
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from tests.integration.daemons import free_port

ROWS, LABELS = load_iris(return_X_y=True)
DEADLINE_S = 30.0


def iris(seed: int = 0) -> LogisticRegression:
    return LogisticRegression(max_iter=300, random_state=seed).fit(ROWS, LABELS)


def put(live: Path, name: str, version: str, write: Callable[[Path], Any]) -> None:
    """Lay a version out as a plain live directory has it, and switch to it in one step."""
    directory = live / name / version
    directory.mkdir(parents=True)
    write(directory)
    link = live / name / f".{version}"
    link.symlink_to(version)
    os.rename(link, live / name / "current")


def put_joblib(live: Path, name: str, model: object, version: str = "v1") -> None:
    put(live, name, version, lambda directory: joblib.dump(model, directory / "model.joblib"))


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The protocol's error; the answer must be nothing else."""
        document = self.json
        assert list(document) == ["error"], document
        return str(document["error"])


@dataclass
class Serve:
    """One running server."""

    process: subprocess.Popen[bytes]
    host: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def triton(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.host, concurrency=4)

    def ask(self, method: str, path: str, data: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, timeout=DEADLINE_S)
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, path: str, document: Any) -> Answer:
        return self.ask("POST", path, document if isinstance(document, bytes) else json.dumps(document))

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


@contextmanager
def serving(live: Path, *options: str, environ: dict[str, str] | None = None) -> Iterator[Serve]:
    """Start the command that users start, wait until it is ready, and stop it as systemd does."""
    live.mkdir(exist_ok=True)
    host = f"127.0.0.1:{free_port()}"
    log = live.parent / f"serve-{host.rpartition(':')[2]}.log"
    command = [sys.executable, "-m", "modelsync.serve", "--live", str(live), "--listen", host, *options]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, **(environ or {})})
    server = Serve(process, host, log)
    try:
        wait_until(lambda: _answers(server), f"the server is not ready: {log}")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()
    assert "request.failed" not in log.read_text(), log.read_text()


def _answers(server: Serve) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    try:
        return server.get("/v2/health/ready").status == 200
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s, otherwise
        time.sleep(0.02)


def fp64(array: Any, name: str = "input", *, binary: bool = True) -> triton.InferInput:
    array = np.asarray(array, np.float64)
    tensor = triton.InferInput(name, list(array.shape), "FP64")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor
