"""One request to infer, from its decoded form to its outputs: check it, and run it, alone or in a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from modelsync.client import switching
from modelsync.serve.batching import Batcher, key_of, rows_of
from modelsync.serve.lanes import Lanes
from modelsync.serve.messages import InferRequest
from modelsync.serve.settings import ServeSettings
from modelsync.serve.shelf import Leased
from modelsync.serve.tensors import Tensor


class Engine:
    """Infers with leased versions.

    Args:
        settings: threads, queue, batching.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._batcher = Batcher()
        self.lanes = Lanes(settings.threads, settings.queue, switching.loading)

    async def infer(self, name: str, leased: Leased, request: InferRequest) -> list[Tensor]:
        """The outputs of a leased version; the lease must outlive this.

        Raises:
            InferenceFault: with the protocol's status.
        """
        signature = leased.adapter.signature
        signature.check(request.inputs)
        wanted = signature.wanted(request.outputs)
        run = partial(self._run, name, leased, wanted)
        batching = self._settings.batching_of(name)
        key = key_of(request.inputs) if batching.rows > 1 and signature.batches else None
        if key is None or rows_of(request.inputs) >= batching.rows:
            return await run(request.inputs)
        joint = (name, leased.version, leased.digest, wanted, key)
        return await self._batcher.run(joint, batching, request.inputs, run)

    async def _run(self, name: str, leased: Leased, wanted: Sequence[str], inputs: Sequence[Tensor]) -> list[Tensor]:
        call = partial(leased.adapter.run, leased.model, inputs, wanted)
        return await self.lanes.run(name, rows_of(inputs), call)

    async def close(self) -> None:
        """Wait for what is running."""
        await asyncio.to_thread(self.lanes.close)
