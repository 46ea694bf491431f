"""A real MLServer beside a real daemon: it notices each version, answers throughout, and keeps the old one where the
new one cannot be loaded."""

from __future__ import annotations

import io
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
from sklearn.dummy import DummyRegressor
from tests.integration.daemons import Daemon, Fleet, free_port, until
from tests.integration.real_mlserver import CannotInstall, MlServer, environment

pytestmark = pytest.mark.timeout(600)  # where it is installed for this test
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [0.0]}]}).encode()
UPDATES = 4
PATIENCE_S = 120
"""Loading the libraries once may take most of it on a busy machine."""


@pytest.fixture(scope="session")
def python() -> Path:
    try:
        return environment()
    except CannotInstall as why:
        pytest.skip(f"MLServer cannot be installed here: {why}")


@pytest.fixture
def served(python: Path, tmp_path: Path) -> Iterator[tuple[Fleet, Daemon, str]]:
    port, fleet = free_port(), Fleet(tmp_path)
    url = f"http://127.0.0.1:{port}"
    sections = (
        f'[model.m]\nviews = ["mlserver"]\nhooks = [{{ kind = "mlserver", url = "{url}", timeout_s = 120 }}]\n'
        f'health = {{ url = "{url}/v2/models/m/ready", ready_s = 60 }}\n'
    )
    try:
        daemon = fleet.add("alpha", sections)
        with MlServer(python, daemon.views / "mlserver", tmp_path / "mlserver.log", port):
            yield fleet, daemon, url
    finally:
        fleet.close()


def model(value: float) -> bytes:
    """Weights that answer with one number, which names the version."""
    data = io.BytesIO()
    joblib.dump(DummyRegressor(strategy="constant", constant=value).fit([[0.0]], [0.0]), data)
    return data.getvalue()


def answer(url: str) -> float:
    request = urllib.request.Request(f"{url}/v2/models/m/infer", BODY, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return float(json.load(response)["outputs"][0]["data"][0])


class Client:
    """Asks without a pause, and remembers what went wrong."""

    def __init__(self, url: str) -> None:
        self.url, self.answers, self.failed = url, [0.0], list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(15)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(answer(self.url))
            except (OSError, ValueError) as error:
                self.failed.append(repr(error))


def test_it_notices_answers_throughout_and_keeps_what_works(served: tuple[Fleet, Daemon, str]) -> None:
    fleet, daemon, url = served
    daemon.put("m.joblib", model(1.0))
    until(lambda: daemon.status()["nodes"][0]["models"].get("m", {}).get("state") == "active", "version 1", PATIENCE_S)
    with Client(url) as client:
        for number in range(2, 2 + UPDATES):
            daemon.put("m.joblib", model(float(number)))
            until(lambda n=number: client.answers[-1] == n, f"answers of version {number}", PATIENCE_S)
        daemon.put("m.joblib", b"no model at all")
        line = until(
            lambda: daemon.status()["nodes"][0]["models"]["m"].get("rejected", {}).get(str(2 + UPDATES)),
            "what it cannot load to be turned down",
            PATIENCE_S,
        )
        assert "mlserver" in line
        until(lambda: daemon.active("m") == 1 + UPDATES, "the version before to be active", PATIENCE_S)
        fleet.run("rollback", "m", "2")
        until(lambda: client.answers[-1] == 2.0, "answers of version 2 after a rollback", PATIENCE_S)
    assert client.failed == []
    first_of_each = list(dict.fromkeys(client.answers[1:]))
    assert first_of_each == [float(number) for number in range(1, 2 + UPDATES)], "each version in its turn, none mixed"
