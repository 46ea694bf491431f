"""What a model takes and gives: the tensors of its metadata, and the check of a request against them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelsync.serve.datatypes import BYTES, DATATYPES
from modelsync.serve.faults import BadRequest, BadTensor
from modelsync.serve.tensors import Tensor

ANY = -1
"""A dimension that each request chooses; the protocol's own mark."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as the model's metadata shows it."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's tensors, and how strictly a request must fit them."""

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    more: tuple[str, ...] = ()
    """Outputs that a request gets only by naming them."""
    batches: bool = False
    """Rows of several requests may be run as one: the first dimension of every tensor is the row."""
    optional_inputs: bool = False
    columns: bool = False
    """A table: either one tensor that holds all columns, whatever its name, or one tensor a column."""

    def wanted(self, names: Sequence[str]) -> tuple[str, ...]:
        """The outputs to compute: those asked for, or all listed. Raises BadTensor for one that is unknown."""
        listed = tuple(spec.name for spec in self.outputs)
        for name in names:
            if name not in listed and name not in self.more:
                raise BadTensor(tensor=name, reason=f"the model's outputs are {_listed((*listed, *self.more))}")
        return tuple(names) or listed

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Raises BadTensor or BadRequest if a request's inputs are not what the model takes."""
        if self.columns and len(inputs) == 1 and len(self.inputs) != 1:
            return self._check_table(inputs[0])
        if self.columns and len(inputs) == 1:
            return _check_tensor(inputs[0], self.inputs[0])
        given = {tensor.name for tensor in inputs}
        specs = {spec.name: spec for spec in self.inputs}
        missing = [spec.name for spec in self.inputs if spec.name not in given]
        for tensor in inputs:
            if tensor.name not in specs:
                raise BadTensor(tensor=tensor.name, reason=f"the model's inputs are {_listed(specs)}")
            _check_tensor(tensor, specs[tensor.name])
        if missing and not self.optional_inputs:
            raise BadRequest(reason=f"inputs {_listed(missing)} of the model are missing")
        return None

    def _check_table(self, tensor: Tensor) -> None:
        whole = TensorSpec(tensor.name, tensor.datatype, (ANY, len(self.inputs)))
        _check_tensor(tensor, whole)


def _check_tensor(tensor: Tensor, spec: TensorSpec) -> None:
    shape = tensor.array.shape
    fits = len(shape) == len(spec.shape) and all(
        wanted in (ANY, size) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    # A column may come as [n] or as [n, 1].
    if not fits and not (spec.shape in ((ANY,), (ANY, 1)) and (len(shape) == 1 or shape[1:] == (1,))):
        raise BadTensor(tensor=tensor.name, reason=f"shape {list(shape)} where the model takes {list(spec.shape)}")
    if (tensor.datatype == BYTES.name) != (spec.datatype == BYTES.name):
        raise BadTensor(tensor=tensor.name, reason=f"datatype {tensor.datatype} where the model takes {spec.datatype}")


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "") or "none"


def from_metadata(items: object) -> tuple[TensorSpec, ...]:
    """Specs that a publisher wrote into the manifest; nothing if they are not of the agreed form."""
    if not isinstance(items, list):
        return ()
    specs = [_spec(item) for item in items]
    return tuple(spec for spec in specs if spec is not None) if None not in specs else ()


def _spec(item: object) -> TensorSpec | None:
    if not isinstance(item, Mapping):
        return None
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
    good_shape = isinstance(shape, list) and all(type(size) is int and size >= ANY for size in shape)
    if not isinstance(name, str) or not name or datatype not in DATATYPES or not good_shape:
        return None
    assert isinstance(shape, list)
    return TensorSpec(name, str(datatype), tuple(shape))
