"""Requests that fail at a real MLServer while modelsync updates the model that it serves.

A primary publishes one version after another by rename; its view and its hook let MLServer load each. Meanwhile clients
ask without a pause. Every answer names the version by its value, so an answer of a version that is neither the old nor
the new one counts as failed, too. Beside it, for comparison: MLServer's own way with numbered versions.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import joblib
from report import Bar, Result, arguments, finish, percentile, table
from sklearn.dummy import DummyRegressor

from fleet import Fleet, until

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from tests.integration.daemons import free_port  # noqa: E402  # the checkout is no package
from tests.integration.real_mlserver import MlServer, environment  # noqa: E402

MODEL = "constant"
BODY = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [0.0]}]}
CLIENTS = 4


@dataclass
class Load:
    """Clients that ask without a pause, and what they were answered."""

    url: str
    allowed: set[float] = field(default_factory=set)
    """Values that are right just now."""
    answers: int = 0
    failed: list[str] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)
    last: float = 0.0

    async def client(self, session: aiohttp.ClientSession) -> None:
        while True:
            started_s = time.monotonic()
            try:
                async with session.post(f"{self.url}/v2/models/{MODEL}/infer", json=BODY) as response:
                    data = await response.read()
                self._judge(response.status, data)
            except (aiohttp.ClientError, OSError) as error:
                self.failed.append(repr(error))
            self.times_ms.append(1000 * (time.monotonic() - started_s))

    def _judge(self, status: int, data: bytes) -> None:
        self.answers += 1
        if status != 200:
            self.failed.append(f"{status}: {data[:120]!r}")
            return
        self.last = float(json.loads(data)["outputs"][0]["data"][0])
        if self.last not in self.allowed:
            self.failed.append(f"answered {self.last}, right were {sorted(self.allowed)}")


async def wait(condition: Any, what: str, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"waited {timeout_s:g} s in vain for {what}")
        await asyncio.sleep(0.01)


def save(number: int, path: Path) -> None:
    joblib.dump(DummyRegressor(strategy="constant", constant=float(number)).fit([[0.0]], [0.0]), path)


async def ours(fleet: Fleet, load: Load, updates: int) -> None:
    """One rename an update; the next begins when the answers are the new version's."""
    for number in range(2, updates + 2):
        ready = fleet.root / "ready"
        save(number, ready)
        load.allowed = {float(number - 1), float(number)}
        ready.rename(fleet.primary.models / f"{MODEL}.joblib")
        await wait(lambda number=number: load.last == number, f"answers of version {number}")
        await asyncio.sleep(0.2)
        load.allowed = {float(number)}
        await asyncio.sleep(0.2)


async def versioned(url: str, repository: Path, load: Load, updates: int) -> None:
    """MLServer's own way: a new version beside the old one, then the old one goes."""
    async with aiohttp.ClientSession() as session:
        for number in range(2, updates + 2):
            load.allowed = {float(number - 1), float(number)}
            place(repository, number)
            await session.post(f"{url}/v2/repository/models/{MODEL}/load")
            shutil.rmtree(repository / str(number - 1))
            await session.post(f"{url}/v2/repository/models/{MODEL}/load")
            await wait(lambda number=number: load.last == number, f"answers of version {number}")
            await asyncio.sleep(0.4)


def place(repository: Path, number: int) -> None:
    """A version of MLServer's own layout, put there by one rename."""
    beside = repository.parent / "beside"
    beside.mkdir(parents=True)
    save(number, beside / "model.joblib")
    settings = {
        "name": MODEL,
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": str(number)},
    }
    (beside / "model-settings.json").write_text(json.dumps(settings))
    repository.mkdir(exist_ok=True)
    beside.rename(repository / str(number))


async def under_load(url: str, work: Any) -> Load:
    load = Load(url, {1.0})
    async with aiohttp.ClientSession() as session:
        clients = [asyncio.create_task(load.client(session)) for _ in range(CLIENTS)]
        await wait(lambda: load.last == 1.0, "the first answers")
        load.failed.clear()
        await work(load)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return load


def measure_ours(python: Path, updates: int, out: Path) -> Load:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    sections = (
        f'[model.{MODEL}]\nviews = ["mlserver"]\nhooks = [{{ kind = "mlserver", url = "{url}" }}]\n'
        f'health = {{ url = "{url}/v2/models/{MODEL}/ready", ready_s = 10 }}\n'
    )
    with (
        Fleet("alpha", sections=sections, root=out / "work") as fleet,
        MlServer(python, fleet.primary.root / "views" / "mlserver", fleet.root / "mlserver.log", port),
    ):
        save(1, fleet.root / "ready")
        (fleet.root / "ready").rename(fleet.primary.models / f"{MODEL}.joblib")
        until(lambda: fleet.primary.current(MODEL), "version 1")
        return asyncio.run(under_load(url, lambda load: ours(fleet, load, updates)))


def measure_versioned(python: Path, updates: int, out: Path) -> Load:
    root = out / "work" / f"versioned-{os.getpid()}"
    root.mkdir(parents=True)
    repository = root / "repository"
    place(repository, 1)
    try:
        with MlServer(python, repository, root / "mlserver.log", free_port()) as server:
            return asyncio.run(under_load(server.url, lambda load: versioned(server.url, repository, load, updates)))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main() -> int:
    parser = arguments("mlserver", __doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--beside", type=int, default=3, metavar="UPDATES", help="of MLServer's own way; 0: none")
    options = parser.parse_args()
    python = environment()
    loads = {"modelsync": (options.updates, measure_ours(python, options.updates, options.out))}
    if options.beside:
        loads["MLServer's own versions"] = (options.beside, measure_versioned(python, options.beside, options.out))
    rows = [
        (name, str(updates), str(load.answers), str(len(load.failed)), f"{percentile(load.times_ms, 0.5):.1f}",
         f"{percentile(load.times_ms, 0.99):.1f}", f"{max(load.times_ms):.1f}")
        for name, (updates, load) in loads.items()
    ]  # fmt: skip
    table(("", "updates", "answers", "failed", "p50 ms", "p99 ms", "max ms"), rows)
    ours_load = loads["modelsync"][1]
    for fault in ours_load.failed[:5]:
        print(f"failed: {fault}")
    bars = [Bar(f"requests that failed over {options.updates} updates", float(len(ours_load.failed)), 0, "")]
    figures = {name: {"updates": n, "answers": x.answers, "failed": len(x.failed)} for name, (n, x) in loads.items()}
    return 0 if finish(Result("mlserver", bars, figures), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
