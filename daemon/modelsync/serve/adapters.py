"""From a loaded model, of whatever library, to tensors in and tensors out.

This file alone decides which family a model belongs to. An adapter holds no model: it is made once a version and is
handed the leased model with each call, so that nothing here keeps evicted weights in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from modelsync.serve.adapters_arrays import ArraysAdapter, arrays_of
from modelsync.serve.adapters_estimators import EstimatorAdapter
from modelsync.serve.adapters_onnx import OnnxAdapter
from modelsync.serve.faults import ModelUnavailable
from modelsync.serve.specs import Signature
from modelsync.serve.tensors import Tensor


class Adapter(Protocol):
    """How one version of a model is called."""

    signature: Signature

    def run(self, model: Any, inputs: Sequence[Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """Infer. Blocks.

        Args:
            model: what the client leased, of the version that this adapter was made for.
            inputs: as the request has them, checked against ``signature``.
            wanted: names of outputs, all of them in ``signature``.
        Raises:
            BadTensor: the model refuses what it was given, or its answer is no tensor.
            InferenceFailed: it raised something else.
        """
        ...


def adapter_for(name: str, model: Any, metadata: Mapping[str, Any]) -> Adapter:
    """The adapter of a model that was just loaded.

    Args:
        name: the model's, for errors.
        model: what its loader returned.
        metadata: the manifest's; inputs and outputs that it names win over what the model tells of itself.
    Raises:
        ModelUnavailable: nothing here knows how to call it.
    """
    if OnnxAdapter.fits(model):
        return OnnxAdapter(name, model)
    if EstimatorAdapter.fits(model):
        return EstimatorAdapter(name, model, metadata)
    if arrays_of(model) is not None:
        return ArraysAdapter(name, model)
    raise ModelUnavailable(
        model=name,
        reason=f"it loads as {type(model).__module__}.{type(model).__qualname__}, which has neither predict nor arrays",
    )
