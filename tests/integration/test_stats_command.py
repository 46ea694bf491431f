"""``modelsync stats`` of a real modelsync-serve that was asked things, and of what is none."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import free_port
from tests.integration.serving import ROWS, Serve, fp64, iris, put_joblib, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serve]:
    live = tmp_path / "live"
    for name in ("iris", "other"):
        put_joblib(live, name, iris())
    with serving(live, "--trust-pickle", "all") as running:
        for _ in range(20):
            running.triton.infer("iris", [fp64(ROWS)])
        running.triton.infer("other", [fp64(ROWS)])
        yield running


def stats(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelsync.cli", "stats", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_table_json_and_curves(server: Serve, tmp_path: Path) -> None:
    done = stats("--url", server.url, "--plot", str(tmp_path / "curves.png"))
    assert done.returncode == 0, done.stderr
    heading, first, *_ = done.stdout.splitlines()
    assert heading.split()[:3] == ["MODEL", "VERSION", "REQUESTS"]
    assert first.split()[:4] == ["iris", "0", "20", "95.0"]  # one of the twenty waited for the load
    latencies = first.partition(" %")[2].split()[3:7]  # after loads and what one took
    assert [unit in ("ms", "µs", "s") for unit in latencies[1::2]] == [True, True], first
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads(stats("--url", server.url, "--json").stdout)
    assert document["models"]["iris"]["0"]["requests"] == 20
    assert (
        0 < document["models"]["iris"]["0"]["latency_s"]["p50"] <= document["models"]["iris"]["0"]["latency_s"]["p99"]
    )
    assert sum(step["requests"] for step in document["timeseries"]["iris"]) == 20


def test_what_cannot_be_done_says_so(server: Serve, tmp_path: Path) -> None:
    assert stats("--url", server.url, "--plot", str(tmp_path / "curves.gif")).returncode == 2
    unheard = stats("--url", f"http://127.0.0.1:{free_port()}")
    assert unheard.returncode == 5 and unheard.stderr.count("\n") == 1
    assert stats("--url", server.url, "--step", "7").returncode == 2
    refused = stats("--url", server.url, "--step", "100000")
    assert refused.returncode == 5 and "step_s is a multiple of 10 from 10 to 86400" in refused.stderr


class Liar(http.server.BaseHTTPRequestHandler):
    """Answers everything with JSON that is no statistics."""

    def do_GET(self) -> None:
        body = b'{"models": {"iris": 7}, "timeseries": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None: ...


def test_a_stranger_s_answer_is_refused() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Liar) as liar:
        threading.Thread(target=liar.serve_forever, daemon=True).start()
        done = stats("--url", f"http://127.0.0.1:{liar.server_port}")
        liar.shutdown()
    assert done.returncode == 4 and "/stats" in done.stderr and "Traceback" not in done.stderr
