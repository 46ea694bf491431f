"""What requests for other models feel of a load in modelsync-serve: a forest and a mapped file of 220 MB each.

A small scikit-learn model is asked over one kept connection every 2 ms, each request timed from when it was due, so
that a stall counts for all that it delays. Turn by turn: half a second in which nothing is loaded, then a load of the
big model and the 0.2 s after it, in which the garbage of the load would be collected. Likewise for a forest that is
there already and is switched to another version: the old one answers meanwhile, and is freed afterwards. Files of
XGBoost, LightGBM and ONNX, which their libraries load in one call, by themselves (``formats``).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from big_boosters import lightgbm_file, onnx_file, xgboost_file
from client_models import MIB, LiveDir, arrays, constant, forest
from report import Bar, percentile, table

BIG_BYTES = 220 * MIB
PACE_S = 0.002
QUIET_S = 0.5
AFTER_S = 0.2
SWAP_S = 1.5
"""A switch, the load that it brings about and the end of the version before, with room to spare."""
LOADS = 10
FORMAT_LOADS = 4
"""They take seconds, and so are as many requests."""
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [0.0, 0.0, 0.0]}]}).encode()
REQUEST = b"POST /v2/models/small/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def measure(root: Path, options: Any) -> tuple[list[Bar], dict[str, Any]]:
    directory = LiveDir(root)
    versions = []
    for name, write in (("forest", forest), ("arrays", arrays)):
        source = write(root / f"{name}.joblib", BIG_BYTES)
        versions.append([directory.publish(name, source, metadata={"copy": number}) for number in range(2)])
        source.unlink()
    with _serving(root, directory) as port:
        found = {f"220 MB of {name} load": _beside(port, name) for name in ("forest", "arrays")}
        found["a forest of 220 MB is switched"] = _switched(port, "forest", directory, versions[0])
    return _told(found, LOADS)


def measure_formats(root: Path, options: Any) -> tuple[list[Bar], dict[str, Any]]:
    directory = LiveDir(root)
    written = {"xgboost": (xgboost_file, "ubj"), "lightgbm": (lightgbm_file, "lgb"), "onnx": (onnx_file, "onnx")}
    for name, (write, suffix) in written.items():
        source = write(root / f"{name}.{suffix}", BIG_BYTES)
        directory.publish(name, source)
        source.unlink()
    with _serving(root, directory) as port:
        found = {f"220 MB of {name} load": _beside(port, name, FORMAT_LOADS) for name in written}
    return _told(found, FORMAT_LOADS)


@contextlib.contextmanager
def _serving(root: Path, directory: LiveDir) -> Iterator[int]:
    directory.publish("small", constant(root / "small.joblib", 1))
    port = _free_port()
    command = [sys.executable, "-m", "modelsync.serve", "--live", str(directory.live), "--trust-pickle", "all"]
    process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}", "--log-level", "warning"])
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _told(found: dict[str, dict[str, list[float]]], loads: int) -> tuple[list[Bar], dict[str, Any]]:
    print(f"a small model, asked every {PACE_S * 1e3:.0f} ms over HTTP; {loads} loads of each model of 220 MB\n")
    rows = []
    bars = []
    for name, figures in found.items():
        for what in ("quiet", "beside"):
            ms = figures[what]
            shown = (f"{percentile(ms, share):.2f}" for share in (0.5, 0.9, 0.99, 1.0))
            rows.append((f"{what}: {name}", str(len(ms)), *shown))
        slower = percentile(figures["beside"], 0.99) / percentile(figures["quiet"], 0.99)
        bars.append(Bar(f"p99 of another model while {name} / without", slower, 2, "x"))
    table(("", "requests", "p50 ms", "p90 ms", "p99 ms", "max ms"), rows)
    return bars, dict(found)


def _beside(port: int, name: str, loads: int = LOADS) -> dict[str, list[float]]:
    _ask(port, "small", "load")
    _ask(port, name, "load")  # the libraries, and the files into the page cache
    quiet_ms: list[float] = []
    beside_ms: list[float] = []
    with _connected(port) as connection:
        for _ in range(loads):
            _ask(port, name, "unload")
            quiet_ms += _pings(connection, _for(QUIET_S))
            load = threading.Thread(target=_ask, args=(port, name, "load"))
            load.start()
            beside_ms += _pings(connection, load.is_alive)
            beside_ms += _pings(connection, _for(AFTER_S))
    return {"quiet": quiet_ms, "beside": beside_ms}


def _switched(port: int, name: str, directory: LiveDir, versions: list[Any]) -> dict[str, list[float]]:
    _ask(port, name, "load")
    quiet_ms: list[float] = []
    beside_ms: list[float] = []
    with _connected(port) as connection:
        for turn in range(LOADS):
            quiet_ms += _pings(connection, _for(QUIET_S))
            directory.activate(name, versions[turn % 2])
            beside_ms += _pings(connection, _for(SWAP_S))
    return {"quiet": quiet_ms, "beside": beside_ms}


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _for(seconds: float) -> Callable[[], bool]:
    end_s = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end_s


def _pings(connection: socket.socket, going_on: Callable[[], bool]) -> list[float]:
    times_ms, due_s = [], time.perf_counter()
    while going_on():
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        started_s = max(due_s, time.perf_counter() if wait_s > 0 else due_s)
        connection.sendall(REQUEST)
        answer = connection.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"refused: {answer!r}")
        times_ms.append((time.perf_counter() - started_s) * 1e3)
        due_s += PACE_S
    return times_ms


def _ask(port: int, model: str, verb: str) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", f"/v2/repository/models/{model}/{verb}", b"{}")
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                return
            raise SystemExit(f"{verb} of {model}: {response.status}")
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
