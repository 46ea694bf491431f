"""modelsync-serve beside MLServer, and beside its own loads.

``mlserver``: the same scikit-learn model, the same client, turn by turn, on the same cores. How many requests a second
each answers and at which 99th percentile; and how many requests fail while the model is updated fifty times under load
(a switched link for ours, new files and a load by the repository API for MLServer). MLServer lives in an environment of
its own, .cache/mlserver, which is made the first time. It runs with its worker process, without, and without but
joining requests. Like is measured against like: ours against the fastest of MLServer's that joins none, ours that joins
those that have come anyway (batch_delay_s = 0) against MLServer's that joins. Ours with two workers is shown.

``loads``, ``formats``: see serve_beside.py.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import joblib
import numpy as np
import serve_beside
from report import DEFAULT_OUT, Bar, Result, arguments, finish, ratio, table
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).resolve().parents[2]
MLSERVER = ROOT / ".cache" / "mlserver"
PACKAGES = ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "uvloop<0.22")  # newer uvloop has no loop where it looks
NAME = "bench"
FEATURES = 20
READY_S = 90.0
UPDATES = 50


@dataclass
class Server:
    """One running contender."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    directory: Path
    runs: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, path: str, body: bytes = b"") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status

    def wait(self) -> None:
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                if self.ask("GET", f"/v2/models/{NAME}/ready") == 200:
                    return
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended: see {self.directory}/log")
            time.sleep(0.2)
        raise SystemExit(f"{self.name} was not ready within {READY_S:g} s: see {self.directory}/log")

    @property
    def rates(self) -> list[float]:
        return [run["statuses"].get("200", 0) / run["seconds"] for run in self.runs]

    @property
    def p99s(self) -> list[float]:
        return [run["p99_ms"] for run in self.runs]

    @property
    def failed(self) -> int:
        return sum(count for run in self.runs for status, count in run["statuses"].items() if status != "200")


def trained(seed: int) -> Any:
    rows, labels = make_classification(2000, FEATURES, random_state=seed)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(name: str, directory: Path, port: int, command: list[str], environ: dict[str, str]) -> Iterator[Server]:
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, stdout=log, stderr=log, env={**os.environ, **environ}, start_new_session=True
        )
    try:
        server = Server(name, port, process, directory)
        server.wait()
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # MLServer's workers outlive it now and then
        process.wait()


def ours(work: Path, *, joined: bool = False, workers: int = 1) -> contextlib.AbstractContextManager[Server]:
    directory = work / f"ours-{workers}{'-joined' if joined else ''}"
    live = directory / "live"
    live.mkdir(parents=True)
    update_ours(live, 0)
    port = free_port()
    command = [sys.executable, "-m", "modelsync.serve", "--live", str(live), "--listen", f"127.0.0.1:{port}"]
    command += ["--trust-pickle", "all", "--preload", "*", "--workers", str(workers)]
    if joined:
        config = directory / "modelsync.toml"
        fleet = '[fleet]\nname = "bench"\nredis = "embedded"\n'
        config.write_text(f"{fleet}[serve]\nbatch_rows = 64\nbatch_delay_s = 0\n")
        command += ["--config", str(config)]
    name = f"modelsync-serve{', two workers' if workers == 2 else ''}{', joining' if joined else ''}"
    return running(name, directory, port, command, {})


def update_ours(live: Path, number: int) -> None:
    directory = live / NAME / f"v{number}"
    directory.mkdir(parents=True)
    joblib.dump(trained(number), directory / "model.joblib")
    link = live / NAME / "next"
    link.symlink_to(directory.name)
    link.rename(live / NAME / "current")


def mlserver(work: Path, workers: int, *, joined: bool = False) -> contextlib.AbstractContextManager[Server]:
    make_mlserver()
    directory = work / f"mlserver-{workers}{'-joined' if joined else ''}"
    (directory / "model").mkdir(parents=True)
    ports = [free_port() for _ in range(3)]
    settings = {
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "host": "127.0.0.1",
        "parallel_workers": workers,
        "debug": False,
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    model = {"name": NAME, "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "./model.joblib"}}
    if joined:
        model |= {"max_batch_size": 64, "max_batch_time": 0.002}
    (directory / "model" / "model-settings.json").write_text(json.dumps(model))
    update_mlserver(directory, 0)
    name = f"MLServer, {'one worker' if workers else 'in process'}{', joining' if joined else ''}"
    command = [str(MLSERVER / "bin" / "mlserver"), "start", "."]
    return running(name, directory, ports[0], command, {"PATH": f"{MLSERVER}/bin:{os.environ['PATH']}"})


def update_mlserver(directory: Path, number: int) -> None:
    fresh = directory / "fresh.joblib"
    joblib.dump(trained(number), fresh)
    fresh.rename(directory / "model" / "model.joblib")


def make_mlserver() -> None:
    if (MLSERVER / "ready").exists():
        return
    print("making MLServer's environment in .cache/mlserver (a minute or two, once)", flush=True)
    shutil.rmtree(MLSERVER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", MLSERVER], check=True)
    pip = [MLSERVER / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES], check=True, stderr=subprocess.DEVNULL)
    (MLSERVER / "ready").touch()


def request(rows: int, *, binary: bool) -> tuple[dict[str, str], bytes]:
    values = np.random.default_rng(1).normal(size=(rows, FEATURES))
    tensor: dict[str, Any] = {"name": "input", "shape": [rows, FEATURES], "datatype": "FP64"}
    document: dict[str, Any] = {"inputs": [tensor], "outputs": [{"name": "predict"}]}
    if not binary:
        tensor["data"] = values.ravel().tolist()
        return {"Content-Type": "application/json"}, json.dumps(document).encode()
    tail = values.tobytes()
    tensor["parameters"] = {"binary_data_size": len(tail)}
    head = json.dumps(document).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return headers, head + tail


def load(
    server: Server, seconds: float, connections: int, asked: tuple[dict[str, str], bytes]
) -> subprocess.Popen[str]:
    headers, body = asked
    command = [sys.executable, str(Path(__file__).with_name("serve_load.py")), "127.0.0.1", str(server.port)]
    command += [f"/v2/models/{NAME}/infer", str(connections), str(seconds), json.dumps(headers)]
    return subprocess.Popen([*command, base64.b64encode(body).decode()], stdout=subprocess.PIPE, text=True)


def loaded(process: subprocess.Popen[str]) -> dict[str, Any]:
    text, _ = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit("the client failed")
    answer: dict[str, Any] = json.loads(text)
    return answer


def throughput(servers: list[Server], options: Any) -> None:
    asked = request(options.rows, binary=options.binary)
    for server in servers:
        loaded(load(server, 2, options.connections, asked))
    for _ in range(options.rounds):
        for server in servers:
            server.runs.append(loaded(load(server, options.seconds, options.connections, asked)))


def updated_under_load(server: Server, options: Any) -> dict[str, Any]:
    """Fifty updates, one every 0.3 s."""
    asked = request(options.rows, binary=options.binary)
    process = load(server, UPDATES * 0.3 + 3, max(2, options.connections // 4), asked)
    refused = 0
    time.sleep(1)
    for number in range(1, UPDATES + 1):
        began_s = time.monotonic()
        if server.name.startswith("MLServer"):
            update_mlserver(server.directory, number)
            refused += server.ask("POST", f"/v2/repository/models/{NAME}/load", b"{}") != 200
        else:
            update_ours(server.directory / "live", number)
        time.sleep(max(0.0, 0.3 - (time.monotonic() - began_s)))
    result = loaded(process)
    failed = sum(count for status, count in result["statuses"].items() if status != "200")
    return {"answered": result["statuses"].get("200", 0), "failed": failed, "loads_refused": refused, **result}


def measure_mlserver(work: Path, options: Any) -> tuple[list[Bar], dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        us, joining = stack.enter_context(ours(work)), stack.enter_context(ours(work, joined=True))
        pairs = [stack.enter_context(ours(work, joined=joined, workers=2)) for joined in (False, True)]
        theirs = [
            stack.enter_context(mlserver(work, workers, joined=joined))
            for workers, joined in ((1, False), (0, False), (0, True))
        ]
        servers = [us, joining, *pairs, *theirs]
        throughput(servers, options)
        updates = {server.name: updated_under_load(server, options) for server in (us, *theirs[:2])}
    best = max(theirs[:2], key=lambda server: median(server.rates))
    form = "binary tensors" if options.binary else "JSON"
    print(f"{options.rows} rows of {FEATURES} in {form}, {options.connections} connections, {os.cpu_count()} cores\n")
    rows = [
        (
            server.name,
            f"{median(server.rates):.0f}",
            f"{median(run['p50_ms'] for run in server.runs):.2f}",
            f"{median(server.p99s):.2f}",
            str(server.failed),
            _shown(updates.get(server.name)),
        )
        for server in servers
    ]
    table(("", "requests/s", "p50 ms", "p99 ms", "failed", f"failed in {UPDATES} updates"), rows)
    bars = [
        *_against(us, best),
        *_against(joining, theirs[2]),
        Bar(f"our requests that failed during {UPDATES} updates", updates[us.name]["failed"], 0, ""),
        Bar("our requests that failed at all", us.failed, 0, ""),
    ]
    return bars, {server.name: {"runs": server.runs, "updates": updates.get(server.name)} for server in servers}


def _against(us: Server, them: Server) -> list[Bar]:
    return [
        Bar(f"requests a second of {them.name} as a share of {us.name}'s", ratio(them.rates, us.rates), 1 / 1.5, "x"),
        Bar(f"p99 of {us.name} beside that of {them.name}", ratio(us.p99s, them.p99s), 1.0, "x"),
    ]


def _shown(updates: dict[str, Any] | None) -> str:
    return f"{updates['failed']} of {updates['answered']}" if updates else "not asked"


def measure(options: Any) -> Result:
    result = Result("serve")
    parts: dict[str, Callable[[Path, Any], tuple[list[Bar], dict[str, Any]]]] = {
        "mlserver": measure_mlserver,
        "loads": serve_beside.measure,
        "formats": serve_beside.measure_formats,
    }
    for name in options.part or parts:
        print(f"\n--- {name}", flush=True)
        work = options.out / f"work-serve-{name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        bars, result.figures[name] = parts[name](work, options)
        result.bars += bars
        shutil.rmtree(work, ignore_errors=True)
    return result


def main() -> int:
    parser = arguments("serve", __doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=["mlserver", "loads", "formats", []], help="all, if none")
    parser.add_argument("--seconds", type=float, default=8, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--binary", action="store_true", help="binary tensors instead of JSON")
    options = parser.parse_args()
    return 0 if finish(measure(options), options.out or DEFAULT_OUT) else 1


if __name__ == "__main__":
    sys.exit(main())
