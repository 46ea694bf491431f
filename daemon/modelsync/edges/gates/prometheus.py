"""Asks Prometheus one instant query. https://prometheus.io/docs/prometheus/latest/querying/api/, "Instant queries"."""

from __future__ import annotations

import json
import math
from typing import Any

import aiohttp

from modelsync.core.errors import MalformedMessage, PeerRefused, PeerUnavailable
from modelsync.core.rollout.record import Gate

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 4 << 20


class Prometheus:
    """Implements ports.HealthGate; a connection for each question, of which there are few."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def worst(self, gate: Gate) -> float | None:
        """The largest value of the query's result; None for an empty one.

        A value that is no number (NaN, as 0/0 gives) is no data. Raises PeerUnavailable, PeerRefused, MalformedMessage.
        """
        url = gate.url.rstrip("/") + "/api/v1/query"
        headers = {"Accept-Encoding": "identity"}  # and nothing is unpacked: a small answer could be a large one
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout, auto_decompress=False, headers=headers) as session,
                session.post(url, data={"query": gate.query}, allow_redirects=False) as answer,
            ):
                body = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while not answer.content.at_eof() and len(body) <= MAX_ANSWER_BYTES:
                    body += await answer.content.read(MAX_ANSWER_BYTES + 1 - len(body))
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise PeerUnavailable(peer=gate.url, reason=str(error) or type(error).__name__) from error
        if answer.status != 200:
            raise PeerRefused(peer=gate.url, status=answer.status, reason=body[:200].decode(errors="replace"))
        return worst_value(body)


def worst_value(body: bytes) -> float | None:
    """The largest number in an answer, vector or scalar. Raises MalformedMessage."""
    if len(body) > MAX_ANSWER_BYTES:
        raise MalformedMessage(what="answer of Prometheus", reason=f"more than {MAX_ANSWER_BYTES} bytes")
    try:
        value = json.loads(body)
        if value["status"] != "success":
            raise ValueError(f"status {value['status']!r}")
        numbers = [float(text) for text in _samples(value["data"])]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise MalformedMessage(what="answer of Prometheus", reason=str(error)[:200]) from error
    return max((number for number in numbers if not math.isnan(number)), default=None)


def _samples(data: Any) -> list[str]:
    """The values' texts: of a scalar ``[time, text]``, of a vector one such pair for each series."""
    if data["resultType"] == "scalar":
        return [data["result"][1]]
    if data["resultType"] == "vector":
        return [series["value"][1] for series in data["result"]]
    raise ValueError(f"a result of type {data['resultType']!r}: an instant query of numbers is needed")
