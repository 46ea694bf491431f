"""Sends each request when it is due, whatever has become of those before it, and records what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from plan import Arrival, Plan
from record import Record

from modelsync import Client, Handle

TIMEOUT_S = 10.0
MAX_RUNNING = 4000
"""Requests under way at once; one that is due above it counts as failed: it must not wait unseen."""


@dataclass(frozen=True)
class Question:
    """What is asked of one model, always the same."""

    name: str
    row: tuple[float, ...]


class Failed(Exception):
    """A request was answered with a refusal, or not in the agreed form."""


class Sender(Protocol):
    """Asks a model; returns its version and its one number."""

    async def ask(self, question: Question) -> tuple[int, float]: ...

    async def stats(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


class HttpSender:
    """An inference server by the Open Inference Protocol."""

    def __init__(self, url: str, questions: Sequence[Question]) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        )
        self._bodies = {question.name: _body(question.row) for question in questions}

    async def ask(self, question: Question) -> tuple[int, float]:
        url = f"{self._url}/v2/models/{question.name}/infer"
        headers = {"Content-Type": "application/json"}
        async with self._session.post(url, data=self._bodies[question.name], headers=headers) as response:
            text = await response.read()
            if response.status != 200:
                raise Failed(f"{response.status} {text[:200]!r}")
        answer = json.loads(text)
        return int(answer["model_version"]), float(answer["outputs"][0]["data"][0])

    async def stats(self) -> dict[str, Any]:
        async with self._session.get(f"{self._url}/stats") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def close(self) -> None:
        await self._session.close()


def _body(row: Sequence[float]) -> bytes:
    tensor = {"name": "input", "datatype": "FP64", "shape": [1, len(row)], "data": list(row)}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "predict"}]}).encode()


class ClientSender:
    """The client library in this very process: calls run in threads, as a web application's would."""

    def __init__(self, live: Path, budget_bytes: int, questions: Sequence[Question]) -> None:
        import numpy  # noqa: PLC0415  only this sender needs it

        self._client = Client(live, budget_bytes=budget_bytes, trust_pickle="all")
        self._threads = ThreadPoolExecutor(8)
        self._handles: dict[str, Handle] = {}
        self._rows = {question.name: numpy.array([question.row]) for question in questions}

    async def ask(self, question: Question) -> tuple[int, float]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, question.name)

    def _ask(self, name: str) -> tuple[int, float]:
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = self._client.load(name)
        with (lease := handle.lease()) as model:
            return lease.version, float(model.predict(self._rows[name])[0])

    async def stats(self) -> dict[str, Any]:
        return self._client.stats()

    async def close(self) -> None:
        self._threads.shutdown()
        self._client.close()


@dataclass(frozen=True)
class Sample:
    """The server's own counters at one moment, summed over its models."""

    at_s: float
    requests: int
    hits: int
    loads: int
    evictions: int
    load_s: float


class Run:
    """One plan, sent to one sender."""

    def __init__(self, plan: Plan, questions: Sequence[Question], sender: Sender) -> None:
        self._plan = plan
        self._questions = questions
        self._sender = sender
        self._running: set[asyncio.Task[None]] = set()
        self.record = Record()
        self.samples: list[Sample] = []
        self.started_s = 0.0
        self.worst_lag_s = 0.0
        """How late this generator itself was with a request; it is part of the latency that is told."""

    async def __call__(self) -> None:
        self.started_s = time.perf_counter()
        sampling = asyncio.create_task(self._sample_on())
        for arrival in self._plan.arrivals():
            pause_s = self.started_s + arrival.at_s - time.perf_counter()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            else:
                self.worst_lag_s = max(self.worst_lag_s, -pause_s)
                await asyncio.sleep(0)  # answers must be read even when this is late
            self._send(arrival)
        if self._running:
            await asyncio.wait(self._running, timeout=2 * TIMEOUT_S)
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        await self._sample()

    def _send(self, arrival: Arrival) -> None:
        self.record.ask(arrival.at_s, int(self._plan.hour(arrival.at_s)), arrival.model)
        if len(self._running) >= MAX_RUNNING:
            self.record.fail(arrival.at_s, "not sent", f"{MAX_RUNNING} requests are under way")
            return
        task = asyncio.create_task(self._one(arrival))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _one(self, arrival: Arrival) -> None:
        try:
            version, value = await self._sender.ask(self._questions[arrival.model])
        except TimeoutError:
            self.record.fail(arrival.at_s, "no answer in time", f"{TIMEOUT_S:g} s")
        except Failed as error:
            self.record.fail(arrival.at_s, f"status {str(error)[:3]}", str(error))
        except Exception as error:  # whatever it is, it is a failed request
            self.record.fail(arrival.at_s, type(error).__name__, str(error))
        else:
            latency_s = time.perf_counter() - self.started_s - arrival.at_s
            self.record.answered(arrival.at_s, latency_s, arrival.model, version, value)

    async def _sample_on(self) -> None:
        while True:
            await self._sample()
            await asyncio.sleep(1.0)

    async def _sample(self) -> None:
        try:
            document = await self._sender.stats()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        versions = [each for numbers in document["models"].values() for each in numbers.values()]
        self.samples.append(
            Sample(
                at_s=time.perf_counter() - self.started_s,
                requests=sum(each["requests"] for each in versions),
                hits=sum(each["hits"] for each in versions),
                loads=sum(each["loads"] for each in versions),
                evictions=sum(each["evictions"] for each in versions),
                load_s=sum(each["load"]["total_s"] for each in versions),
            )
        )
