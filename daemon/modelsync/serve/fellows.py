"""What concerns all workers of one port: loads and unloads by order, the index, counts. One of them was asked.

It does its own part and then asks each of the others, over sockets that only this user reaches (``workers``); what
comes by such a socket is done by one and asked of nobody else. What was unloaded by order is also marked by a file, so
that a worker that is started afterwards knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import structlog
from aiohttp import web

from modelsync.serve.faults import ModelUnavailable
from modelsync.serve.workers import Place

ORDER_S = 600.0
"""For a load, which may read hundreds of gigabytes; whoever asked may give up before."""
TELL_S = 2.0
"""For counts: a worker that does not answer is left out."""
_log = structlog.get_logger()


class Fellows:
    """The other workers; none if there is no place among workers."""

    def __init__(self, place: Place | None) -> None:
        self._place = place
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    @property
    def number(self) -> int | None:
        return self._place.number if self._place is not None else None

    @property
    def withdrawn(self) -> set[str]:
        """Models that were unloaded by order, before this worker began."""
        marks = self._marks
        return {each.name for each in marks.iterdir()} if marks is not None and marks.is_dir() else set()

    def mark(self, name: str, *, withdrawn: bool) -> None:
        """Have workers that are started later know what was ordered.

        Args:
            name: checked; it is a file's name.
        """
        marks = self._marks
        if marks is None:
            return
        marks.mkdir(exist_ok=True)
        if withdrawn:
            (marks / name).touch()
        else:
            (marks / name).unlink(missing_ok=True)

    async def order(self, request: web.Request, name: str) -> None:
        """Have all others do what this request orders. Raises ModelUnavailable: one of them cannot.

        One after another: a load takes the processor from requests, and the others answer them meanwhile.
        """
        for number in self._others(request):
            try:
                async with self._session(number).post(
                    request.rel_url, data=b"{}", timeout=aiohttp.ClientTimeout(total=ORDER_S)
                ) as response:
                    document = orjson.loads(await response.read())
            except (aiohttp.ClientError, OSError) as error:
                # It has ended. The one that takes its place finds the mark, and loads what it is asked for.
                _log.warning("worker.not_told", worker=number, model=name, error=str(error), next="its successor knows")
                continue
            except TimeoutError as error:
                raise ModelUnavailable(model=name, reason=f"worker {number} does not answer") from error
            if response.status != 200:
                raise ModelUnavailable(model=name, reason=f"worker {number}: {document.get('error')}")

    async def told(self, request: web.Request, method: str = "GET") -> dict[int, bytes]:
        """What the others answer to the same question, by their numbers; those that do not answer are left out."""
        numbers = self._others(request)
        answers = await asyncio.gather(*(self._asked(number, request, method) for number in numbers))
        return {number: answer for number, answer in zip(numbers, answers, strict=True) if answer is not None}

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def _asked(self, number: int, request: web.Request, method: str) -> bytes | None:
        timeout = aiohttp.ClientTimeout(total=TELL_S)
        data = b"{}" if method == "POST" else None
        try:
            async with self._session(number).request(method, request.rel_url, data=data, timeout=timeout) as response:
                return await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    def _others(self, request: web.Request) -> list[int]:
        if self._place is None or isinstance(request.get_extra_info("sockname"), (str, bytes)):
            return []  # it came by a worker's socket: whose it is has asked the others
        return [number for number in range(self._place.workers) if number != self._place.number]

    def _session(self, number: int) -> aiohttp.ClientSession:
        assert self._place is not None
        if number not in self._sessions:
            connector = aiohttp.UnixConnector(path=str(self._place.socket_of(number)), force_close=True)
            self._sessions[number] = aiohttp.ClientSession("http://worker", connector=connector)
        return self._sessions[number]

    @property
    def _marks(self) -> Path | None:
        return self._place.directory / "withdrawn" if self._place is not None else None


def best(listings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """One line of the index of all workers' lines for a model: ready if one has it in memory."""
    return next((each for each in listings if each["state"] == "READY"), listings[0])
