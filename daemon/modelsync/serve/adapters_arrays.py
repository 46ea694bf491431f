"""Models that are arrays: .npy, .npz, safetensors. A request reads them, whole or by rows, as a table of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelsync.serve.datatypes import Array, datatype_of
from modelsync.serve.faults import BadTensor
from modelsync.serve.specs import ANY, Signature, TensorSpec
from modelsync.serve.tensors import Tensor, made

ROWS = "rows"
"""The one input, which may be left out: which rows of the first dimension to return, in which order."""
ONLY = "array"
"""What the array of a .npy file is called, which has no name of its own."""


def arrays_of(model: Any) -> Mapping[str, Any] | None:
    """The arrays of a model by name; None if it is not made of arrays. Nothing is read from disk for it."""
    if isinstance(model, np.ndarray):
        return {ONLY: model}
    if isinstance(model, Mapping) and all(isinstance(name, str) for name in model):
        return model
    return None


class ArraysAdapter:
    """Returns arrays, or the rows of them that a request names.

    Args:
        name: the model's, for errors.
        model: loaded; only looked at, not kept.
    """

    def __init__(self, name: str, model: Any) -> None:
        self._name = name
        arrays = arrays_of(model)
        assert arrays is not None
        outputs = [TensorSpec(key, datatype_of(value.dtype) or "", value.shape) for key, value in arrays.items()]
        self.signature = Signature(
            platform="numpy",
            inputs=(TensorSpec(ROWS, "INT64", (ANY,)),),
            outputs=tuple(spec for spec in outputs if spec.datatype),
            optional_inputs=True,
        )

    def run(self, model: Any, inputs: Sequence[Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """As ``adapters.Adapter``."""
        arrays = arrays_of(model)
        assert arrays is not None
        rows = _rows(inputs[0]) if inputs else None
        return [made(name, arrays[name] if rows is None else _picked(name, arrays[name], rows)) for name in wanted]


def _rows(tensor: Tensor) -> Array:
    if tensor.array.dtype.kind not in "iu":
        raise BadTensor(tensor=tensor.name, reason=f"datatype {tensor.datatype} where whole numbers name rows")
    return tensor.array.reshape(-1)


def _picked(name: str, array: Array, rows: Array) -> Array:
    count = array.shape[0] if array.ndim else 0
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= count):
        raise BadTensor(tensor=ROWS, reason=f"names a row that {name!r}, which has {count}, does not have")
    return array[rows]
