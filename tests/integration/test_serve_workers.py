"""Several workers on one port: what a client sees of them, one that dies, and the end of all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.serving import ROWS, Serve, fp64, iris, put_joblib, serving, wait_until
from tritonclient.utils import InferenceServerException

WORKERS = 3


@pytest.fixture
def live(tmp_path: Path) -> Path:
    put_joblib(tmp_path / "live", "iris", iris())
    put_joblib(tmp_path / "live", "other", iris())
    return tmp_path / "live"


@pytest.fixture
def server(live: Path) -> Iterator[Serve]:
    with serving(live, "--trust-pickle", "all", "--workers", str(WORKERS)) as running:
        wait_until(lambda: len(workers(running)) == WORKERS, "the workers do not run")
        yield running


def workers(server: Serve) -> set[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return {int(pid) for pid in children}


def everywhere(server: Serve, ask: Any, times: int = 40) -> list[Any]:
    """Ask over many connections, so that every worker is asked: one of them has none with odds of (2/3)^40."""
    return [ask(server.triton) for _ in range(times)]


def test_an_unmodified_client_sees_one_server(server: Serve) -> None:
    rows = [fp64(ROWS)]
    client = server.triton
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("iris")
    assert client.get_server_metadata()["name"] == "modelsync-serve"
    assert client.get_model_metadata("iris")["name"] == "iris"
    expected = iris().predict(ROWS).tolist()
    answers = everywhere(server, lambda each: each.infer("iris", rows).as_numpy("predict").tolist())
    assert answers == [expected] * 40
    client.load_model("other")
    ready = everywhere(
        server, lambda each: {m["name"] for m in each.get_model_repository_index() if m["state"] == "READY"}
    )
    assert all("other" in each for each in ready)


def test_an_unload_and_a_load_reach_every_worker_and_those_that_come_later(server: Serve) -> None:
    rows = [fp64(ROWS[:1])]

    def outcome(client: Any) -> str:
        try:
            client.infer("iris", rows)
        except InferenceServerException as error:
            return str(error.status())
        return "200"

    server.triton.unload_model("iris")
    assert set(everywhere(server, outcome)) == {"404"}
    killed = kill_one(server)
    wait_until(lambda: len(workers(server) - {killed}) == WORKERS, "no other was started")
    wait_until(lambda: server.get("/stats").json["server"]["workers"] == WORKERS, "it does not answer")
    assert set(everywhere(server, outcome)) == {"404"}, "its successor knows"
    server.triton.load_model("iris")
    assert set(everywhere(server, outcome)) == {"200"}
    loads = server.get("/stats").json["models"]["iris"]
    assert sum(line["loads"] for line in loads.values()) >= WORKERS, "a load by order is one in each"


def kill_one(server: Serve) -> int:
    pid = min(workers(server))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in workers(server), "it was not reaped")
    return pid


def test_counts_are_of_all_workers(server: Serve) -> None:
    rows = [fp64(ROWS[:1])]
    everywhere(server, lambda client: client.infer("iris", rows))
    for _ in range(10):
        stats = server.get("/stats").json
        assert stats["requests"]["iris"] == {"200": 40}
        assert stats["server"]["workers"] == WORKERS
        assert sum(step["requests"] for step in stats["timeseries"]["iris"]) == 40
        by_worker = {
            sample.labels["worker"]: sample.value
            for family in text_string_to_metric_families(server.get("/metrics").body.decode())
            for sample in family.samples
            if sample.name == "modelsync_serve_requests_total" and sample.labels["model"] == "iris"
        }
        assert sum(by_worker.values()) == 40
        assert 1 < len(by_worker) <= WORKERS


def test_a_worker_that_dies_is_replaced_and_named_and_others_answer_meanwhile(server: Serve) -> None:
    rows = [fp64(ROWS[:1])]
    killed = kill_one(server)
    everywhere(server, lambda client: client.infer("iris", rows))
    wait_until(lambda: len(workers(server) - {killed}) == WORKERS, "no other was started")
    log = server.log.read_text()
    assert "worker.ended" in log and str(killed) in log and "signal 9" in log


def test_workers_end_with_their_parent_even_if_it_is_killed(live: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "modelsync.serve", "--live", str(live), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
    server = Serve(process, f"127.0.0.1:{port}", live)
    try:
        wait_until(lambda: _ready(server), "it is not ready")
        pids = workers(server)
        assert len(pids) == 2
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "orphans are left")


def _ready(server: Serve) -> bool:
    try:
        return server.get("/v2/health/ready").status == 200
    except OSError:
        return False


def test_sigterm_answers_what_is_under_way_in_every_worker_and_ends_with_nought(live: Path, tmp_path: Path) -> None:
    with serving(live, "--trust-pickle", "all", "--workers", "2") as server:
        pids = workers(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert "worker.ended" not in server.log.read_text(), "that they end is what was ordered"


def test_a_second_server_on_the_port_is_refused(server: Serve, live: Path) -> None:
    command = [sys.executable, "-m", "modelsync.serve", "--live", str(live), "--listen", server.host]
    for workers_ in ("1", "2"):
        again = subprocess.run(
            [*command, "--workers", workers_], capture_output=True, text=True, timeout=60, check=False
        )
        assert again.returncode != 0
        assert "in use" in again.stderr


@pytest.mark.parametrize("number", ["0", "-1", "257"])
def test_a_number_of_workers_that_cannot_be_is_refused(live: Path, number: str) -> None:
    command = [sys.executable, "-m", "modelsync.serve", "--live", str(live), "--workers", number]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 3
    assert "--workers" in refused.stderr


def test_a_connection_during_a_restart_waits_instead_of_being_refused(server: Serve) -> None:
    for pid in workers(server):
        os.kill(pid, signal.SIGKILL)
    began_s = time.monotonic()
    assert server.get("/v2/health/live").status == 200
    assert time.monotonic() - began_s < 30
