"""ONNX models through onnxruntime's sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelsync.serve.datatypes import BYTES, DATATYPES, Array
from modelsync.serve.faults import BadTensor, InferenceFailed
from modelsync.serve.specs import ANY, Signature, TensorSpec
from modelsync.serve.tensors import Tensor, made

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    **{f"tensor({kind}{bits})": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
"""onnxruntime's names of element types and the protocol's. Source: onnx.proto, TensorProto.DataType."""


class OnnxAdapter:
    """Calls ``session.run`` with tensors cast to what the graph declares, where that loses nothing.

    Args:
        name: the model's, for errors.
        model: loaded; only asked for its inputs and outputs, not kept.
    """

    def __init__(self, name: str, model: Any) -> None:
        self._name = name
        session = _session(model)
        inputs = tuple(_spec(each) for each in session.get_inputs())
        # Sequences and maps (a classifier exported with ZipMap) have no form in the protocol.
        outputs = tuple(_spec(each) for each in session.get_outputs() if each.type in _DATATYPES)
        batches = bool(inputs) and all(spec.shape[:1] == (ANY,) for spec in (*inputs, *outputs))
        self.signature = Signature("onnxruntime_onnx", inputs, outputs, batches=batches)

    @staticmethod
    def fits(model: Any) -> bool:
        return hasattr(_session(model), "get_inputs")

    def run(self, model: Any, inputs: Sequence[Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """As ``adapters.Adapter``."""
        specs = {spec.name: spec for spec in self.signature.inputs}
        feeds = {tensor.name: _fed(tensor, specs[tensor.name]) for tensor in inputs}
        try:
            values = _session(model).run(list(wanted), feeds)
        except Exception as error:
            # onnxruntime's own InvalidArgument: the shapes of several inputs do not fit each other.
            if type(error).__name__ == "InvalidArgument":
                raise BadTensor(tensor=inputs[0].name, reason=f"the model refuses it: {str(error)[:300]}") from error
            raise InferenceFailed(model=self._name, reason=f"{type(error).__name__}: {str(error)[:300]}") from error
        return [made(name, value) for name, value in zip(wanted, values, strict=True)]


def _session(model: Any) -> Any:
    """onnxruntime's session: the client's loader puts a ``predict`` around it, an application's own may not."""
    return getattr(model, "session", model)


def _spec(argument: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) and size >= 0 else ANY for size in argument.shape or ())
    return TensorSpec(argument.name, _DATATYPES.get(argument.type, "FP32"), shape)


def _fed(tensor: Tensor, spec: TensorSpec) -> Array:
    if spec.datatype == BYTES.name:
        flat = [each.decode(errors="replace") if isinstance(each, bytes) else each for each in tensor.array.flat]
        return np.array(flat, dtype=object).reshape(tensor.array.shape)
    target = DATATYPES[spec.datatype].wire
    assert target is not None
    if tensor.array.dtype != target and not np.can_cast(tensor.array.dtype, target, "same_kind"):
        raise BadTensor(tensor=tensor.name, reason=f"datatype {tensor.datatype} where the model takes {spec.datatype}")
    return tensor.array.astype(target, copy=False)
