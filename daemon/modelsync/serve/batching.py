"""Requests that come close together, run as one call over all their rows: optional, model by model.

A batch is closed when it is full or when its first request has waited for as long as is allowed, whichever is first.
Where nothing may wait, that is when the loop has read all that has come: under load it is many, else one.
If the joint call is refused, each request is run by itself, so that one with bad rows fails alone.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from modelsync.serve.settings import Batching
from modelsync.serve.tensors import Tensor

Run = Callable[[Sequence[Tensor]], Awaitable[list[Tensor]]]
"""Infers from inputs; the same for all requests of one key."""


def rows_of(inputs: Sequence[Tensor]) -> int:
    """How many rows a request has; 1 where its tensors do not agree on that."""
    counts = {tensor.array.shape[0] if tensor.array.ndim else 1 for tensor in inputs}
    return max(1, counts.pop()) if len(counts) == 1 else 1


def key_of(inputs: Sequence[Tensor]) -> Hashable:
    """What requests must share so that their rows can stand below one another; None: never with another."""
    counts = {tensor.array.shape[0] if tensor.array.ndim else None for tensor in inputs}
    if len(counts) != 1 or counts <= {None, 0}:
        return None
    return tuple((tensor.name, tensor.datatype, tensor.array.shape[1:]) for tensor in inputs)


def joined(requests: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of several requests of one key, rows below rows."""
    columns = zip(*requests, strict=True)
    return [
        Tensor(column[0].name, column[0].datatype, np.concatenate([tensor.array for tensor in column]))
        for column in columns
    ]


def split(outputs: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]] | None:
    """Each request's rows of the joint outputs; None if the model did not answer row by row."""
    if any(tensor.array.ndim == 0 or tensor.array.shape[0] != sum(counts) for tensor in outputs):
        return None
    edges = np.cumsum([0, *counts]).tolist()
    return [
        [Tensor(tensor.name, tensor.datatype, tensor.array[start:end]) for tensor in outputs]
        for start, end in itertools.pairwise(edges)
    ]


@dataclass
class _Batch:
    run: Run
    members: list[tuple[Sequence[Tensor], int, asyncio.Future[list[Tensor]]]] = field(default_factory=list)
    rows: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """Gathers requests by key and runs each gathering as one."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, key: Hashable, settings: Batching, inputs: Sequence[Tensor], run: Run) -> list[Tensor]:
        """Infer from a request's inputs, alone or with others of the same key. Raises what ``run`` raises.

        Args:
            key: of the version, the outputs wanted and ``key_of``: what makes ``run`` the same.
        """
        rows = rows_of(inputs)
        batch = self._open.get(key)
        if batch is not None and batch.rows + rows > settings.rows:
            self._close(key)
            batch = None
        loop = asyncio.get_running_loop()
        if batch is None:
            batch = self._open[key] = _Batch(run)
            batch.timer = loop.call_later(settings.delay_s, self._close, key)
        answer: asyncio.Future[list[Tensor]] = loop.create_future()
        batch.members.append((inputs, rows, answer))
        batch.rows += rows
        if batch.rows >= settings.rows:
            self._close(key)
        return await answer

    def _close(self, key: Hashable) -> None:
        batch = self._open.pop(key)
        assert batch.timer is not None
        batch.timer.cancel()
        task = asyncio.get_running_loop().create_task(_answer(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _answer(batch: _Batch) -> None:
    members = [member for member in batch.members if not member[2].done()]  # those whose sender left are not run
    parts = await _together(batch.run, members) if len(members) > 1 else None
    if parts is not None:
        for (_, _, answer), outputs in zip(members, parts, strict=True):
            if not answer.done():
                answer.set_result(outputs)
        return
    await asyncio.gather(*(_alone(batch.run, inputs, answer) for inputs, _, answer in members))


async def _together(
    run: Run, members: Sequence[tuple[Sequence[Tensor], int, asyncio.Future[list[Tensor]]]]
) -> list[list[Tensor]] | None:
    try:
        outputs = await run(joined([inputs for inputs, _, _ in members]))
    except Exception:
        return None  # each is run by itself and learns its own error
    return split(outputs, [rows for _, rows, _ in members])


async def _alone(run: Run, inputs: Sequence[Tensor], answer: asyncio.Future[list[Tensor]]) -> None:
    try:
        outputs = await run(inputs)
    except Exception as error:
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(outputs)
