"""Partitioned mode on eight real hosts: balance, a ninth host, a dead one."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from report import Bar, Result

from fleet import Daemon, Fleet, until
from modelsync.client import Client
from modelsync.core.errors import ModelsyncError

NODES = tuple(f"node-{number}" for number in range(1, 9))
MODELS, COPIES = 100, 2
REPLACE_S = 12.0
RATE_BYTES_PER_S = 4 << 20
ROW_BYTES = 512
LOAD_S = 40.0
"""How long models are asked for around a kill."""


def names(count: int) -> list[str]:
    return [f"model-{number}" for number in range(count)]


# --- eight hosts -----------------------------------------------------------------------------------------------------


def sections(rate_bytes_per_s: int) -> str:
    return (
        f'[storage]\nmode = "partitioned"\ncopies = {COPIES}\nreplace_after_s = {REPLACE_S}\nmoves = 8\n'
        f"[transfer]\nrate_limit_bytes_per_s = {rate_bytes_per_s}\n"
    )


def run(size_bytes: int, result: Result) -> None:
    """A hundred models on eight hosts; a ninth joins; one dies and all is copied again; another dies under load."""
    ports = {name: _free_port() for name in (*NODES, "node-9")}
    said = {name: f'serve_url = "http://127.0.0.1:{port}"\n' for name, port in ports.items()}
    with Fleet(*NODES, sections=sections(0), node=said) as fleet:
        for name in names(MODELS):
            _publish(fleet, name, size_bytes)
        until(lambda: _is_redundant(fleet.primary, ()), "all models on two hosts each", 300)
        _balance(fleet, result)
        _ninth(fleet, size_bytes, result)
        for daemon in fleet.daemons:
            daemon.rewrite(sections(RATE_BYTES_PER_S))
        _recover(fleet, size_bytes, result)
        _under_load(fleet, ports, size_bytes, result)


def _publish(fleet: Fleet, name: str, size_bytes: int) -> None:
    """An array of rows of random bytes, so that it can be downloaded, loaded and asked for predictions."""
    import numpy as np  # noqa: PLC0415

    beside = fleet.root / "beside.npy"
    array = np.frombuffer(os.urandom(size_bytes), dtype=np.float64).reshape(-1, ROW_BYTES // 8)
    np.save(beside, np.nan_to_num(array))
    beside.rename(fleet.primary.models / f"{name}.npy")


def placement(daemon: Daemon, *, whole: bool = True) -> dict[str, list[str]]:
    """Owners by model; ``whole``: only of models that all their owners hold."""
    lines = daemon.status().get("placement", {})
    return {name: line.get("owners", []) for name, line in lines.items() if not (whole and line.get("trouble"))}


def _is_redundant(daemon: Daemon, dead: tuple[str, ...]) -> bool:
    placed = placement(daemon)
    return len(placed) == MODELS and all(not set(dead) & set(each) for each in placed.values())


def _balance(fleet: Fleet, result: Result) -> None:
    placed = placement(fleet.primary)
    loads = {name: sum(name in owners for owners in placed.values()) for name in NODES}
    busiest = max(loads.values()) / (MODELS * COPIES / len(NODES))
    print(f"copies by host: {', '.join(map(str, loads.values()))}; busiest over mean {busiest:.2f}", flush=True)
    result.bars.append(Bar("busiest over mean", busiest, 1.25, ""))


def _ninth(fleet: Fleet, size_bytes: int, result: Result) -> None:
    before = placement(fleet.primary)
    fleet.add("node-9")
    moved_before = _received(fleet)
    until(lambda: _is_settled(fleet.primary, "node-9"), "the ninth host to have its share", 120)
    after = placement(fleet.primary)
    moved = sum(len(set(after[name]) - set(before[name])) for name in after)
    wire = (_received(fleet) - moved_before) / (MODELS * COPIES * size_bytes)
    print(f"a ninth: {moved} of {MODELS * COPIES} copies moved; {wire:.4f} of all bytes crossed the wire", flush=True)
    result.bars.append(Bar("moved for a ninth", moved / (MODELS * COPIES), 1.2 / 9, "of all bytes"))
    result.figures["ninth"] = {"moved": moved, "wire_share": wire}


def _is_settled(daemon: Daemon, newest: str) -> bool:
    """Whether the newest host has about its share, and nothing is on its way: not for one look, but for five."""
    for _ in range(5):
        placed = placement(daemon)
        share = sum(newest in owners for owners in placed.values())
        if len(placed) < MODELS or share < 0.85 * MODELS * COPIES / 9 or daemon.status().get("placement_plan"):
            return False
        time.sleep(0.5)
    return True


def _received(fleet: Fleet) -> int:
    """Bytes that pulls of whole versions have received so far, by the daemons' logs."""
    logs = (daemon.log.read_text() for daemon in fleet.daemons)
    return sum(
        int(count)
        for log in logs
        for count in re.findall(r'"wire_bytes": ?(\d+)|wire_bytes=(\d+)', log)
        for count in count
        if count
    )


def _recover(fleet: Fleet, size_bytes: int, result: Result) -> None:
    """Nobody asks for anything meanwhile: what is read through would be there already when its turn comes."""
    dead, before = fleet.daemons[3], placement(fleet.primary)
    dead.kill()
    killed_s = time.monotonic()
    until(lambda: _replaced(fleet.primary, before, dead.name), "the dead host to be replaced", 180)
    replaced_s = time.monotonic()
    until(lambda: _is_redundant(fleet.primary, (dead.name,)), "two living copies of everything", 180)
    copied_s, after = time.monotonic() - replaced_s, placement(fleet.primary)
    given = [sum(node.name in set(after[name]) - set(before[name]) for name in after) for node in fleet.daemons]
    busiest_s, together_s = (count * size_bytes / RATE_BYTES_PER_S for count in (max(given), sum(given) / 8))
    lost = sum(dead.name in owners for owners in before.values())
    print(
        f"{lost} of {MODELS * COPIES} copies died; replaced after {replaced_s - killed_s:.1f} s; two copies of all "
        f"again {copied_s:.1f} s later; at the limit the host that was given most needs {busiest_s:.1f} s, all eight "
        f"evenly {together_s:.1f} s (given: {', '.join(map(str, given))})",
        flush=True,
    )
    result.figures["recover"] = {"copied_s": copied_s, "busiest_s": busiest_s, "together_s": together_s, "given": given}
    result.bars.append(Bar("redundancy back", copied_s / together_s, 1.5, "x what all links need together"))


def _replaced(primary: Daemon, before: dict[str, list[str]], dead: str) -> bool:
    """Whether another owner was written for anything that the dead one had."""
    now = placement(primary, whole=False)
    return any(dead in before[name] and dead not in owners for name, owners in now.items())


# --- a host dies under load ------------------------------------------------------------------------------------------


def _under_load(fleet: Fleet, ports: dict[str, int], size_bytes: int, result: Result) -> None:
    """All models are downloaded, loaded and asked for predictions of two hosts, while a third is killed."""
    dead = fleet.daemons[2]
    living = [daemon for daemon in fleet.daemons if daemon.process.poll() is None and daemon is not dead]
    servers = {daemon.name: _serve(daemon, ports[daemon.name]) for daemon in (*living, dead)}
    try:
        for name in servers:
            until(lambda name=name: _answers(ports[name]), f"the inference server of {name}", 60)
        over, counts = threading.Event(), {what: [0, 0] for what in ("downloads", "loads", "predictions")}
        asked = living[:2]
        jobs: list[tuple[str, Callable[[int], bool]]] = []
        for daemon in asked:
            jobs.append(("downloads", _downloads(daemon, size_bytes)))
            jobs.append(("loads", _loads(daemon)))
            jobs.append(("predictions", _predictions(ports[daemon.name])))
        threads = [threading.Thread(target=_repeat, args=(job, counts[what], over)) for what, job in jobs]
        for thread in threads:
            thread.start()
        time.sleep(LOAD_S / 4)
        dead.kill()
        servers[dead.name].kill()
        time.sleep(3 * LOAD_S / 4)
        over.set()
        for thread in threads:
            thread.join()
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    for what, (done, failed) in counts.items():
        print(f"a host died under load: {done} {what}, {failed} failed", flush=True)
        result.bars.append(Bar(f"failed {what} of models with a living copy", failed, 0, f"of {done}"))
    result.figures["under load"] = counts


def _serve(daemon: Daemon, port: int) -> subprocess.Popen[bytes]:
    words = [
        "--live",
        str(daemon.live),
        "--listen",
        f"127.0.0.1:{port}",
        "--daemon",
        daemon.url,
        "--log-level",
        "error",
    ]
    return subprocess.Popen([sys.executable, "-m", "modelsync.serve", *words], stdout=subprocess.DEVNULL)


def _repeat(job: Callable[[int], bool], counts: list[int], over: threading.Event) -> None:
    number = 0
    while not over.wait(0.05):
        number = (number + 37) % MODELS  # neighbours in the list are not neighbours in time
        counts[0] += 1
        counts[1] += not job(number)


def _downloads(daemon: Daemon, size_bytes: int) -> Callable[[int], bool]:
    return lambda number: len(download(daemon, f"model-{number}", ".npy")[0]) > size_bytes


def _loads(daemon: Daemon) -> Callable[[int], bool]:
    """Loads by a client that has to begin anew each time, whether its host holds the model or not."""
    client = Client(daemon.live, daemon_url=daemon.url, watch=False)

    def load(number: int) -> bool:
        name = f"model-{number}"
        try:
            with client.load(name).lease() as model:
                fine = bool(model.shape[1] == ROW_BYTES // 8)
            client.unload(name)
        except ModelsyncError as error:
            print(f"load of {name} on {daemon.name}: {error}", flush=True)
            return False
        return fine

    return load


def _predictions(port: int) -> Callable[[int], bool]:
    body = json.dumps({"inputs": [{"name": "rows", "datatype": "INT64", "shape": [2], "data": [0, 7]}]}).encode()

    def predict(number: int) -> bool:
        url = f"http://127.0.0.1:{port}/v2/models/model-{number}/infer"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)
                return bool(found["outputs"][0]["shape"] == [2, ROW_BYTES // 8])
        except (OSError, ValueError, KeyError) as error:
            print(f"prediction of model-{number}: {error}", flush=True)
            return False

    return predict


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/live", timeout=2):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def download(node: Daemon, name: str, suffix: str = ".bin") -> tuple[bytes | bytearray, float]:
    """The whole file, and the seconds until its first byte; empty where it failed."""
    parts = urlsplit(node.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=30)
    began_s = time.monotonic()
    try:
        connection.request("GET", f"/v1/models/{name}/versions/1/files/{name}{suffix}")
        answer = connection.getresponse()
        if answer.status != 200:
            print(f"download of {name} from {node.name}: {answer.status} {answer.read(300)!r}", flush=True)
            return b"", 0.0
        data = bytearray(answer.read(1))
        first_s = time.monotonic() - began_s
        while piece := answer.read(1 << 20):
            data += piece
    except (OSError, http.client.HTTPException) as error:
        print(f"download of {name} from {node.name}: {error!r}", flush=True)
        return b"", 0.0
    finally:
        connection.close()
    return data, first_s
