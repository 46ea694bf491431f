"""One tensor: from JSON or from bytes to an array, and back. Pure; every size is checked before memory is taken.

What is wrong names the tensor. JSON has no NaN: null stands for it in both directions, in floating-point tensors
only, and infinity has no form there at all (decisions/, "inference over HTTP").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from modelsync.serve.datatypes import BF16, BYTES, DATATYPES, Array, Datatype, datatype_of, widened_bf16
from modelsync.serve.faults import BadTensor

MAX_DIMENSIONS = 16
"""NumPy takes 64, no model more than a handful; it bounds how deep nested data is followed."""
MAX_ELEMENTS = 1 << 40
"""Above every body that could carry them; it keeps products of hostile shapes small."""
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array and the protocol's datatype of it. BYTES are object arrays of bytes or str."""

    name: str
    datatype: str
    array: Array


# --- in --------------------------------------------------------------------------------------------------------------


def datatype_named(tensor: str, name: object) -> Datatype:
    """Raises BadTensor for a type that the protocol does not have."""
    found = DATATYPES.get(name) if isinstance(name, str) else None
    if found is None:
        raise BadTensor(tensor=tensor, reason=f"datatype {str(name)[:40]!r} is none of {', '.join(DATATYPES)}")
    return found


def checked_shape(tensor: str, shape: object) -> tuple[int, ...]:
    """Raises BadTensor unless these are dimensions whose product is a number of elements."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise BadTensor(tensor=tensor, reason=f"shape is not a list of at most {MAX_DIMENSIONS} whole numbers")
    if any(type(size) is not int or not 0 <= size <= MAX_ELEMENTS for size in shape):
        raise BadTensor(tensor=tensor, reason=f"shape {str(shape)[:80]}: each dimension is a whole number, 0 or more")
    if math.prod(shape) > MAX_ELEMENTS:
        raise BadTensor(tensor=tensor, reason=f"shape {shape} has more elements than any body could carry")
    return tuple(shape)


def from_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: object) -> Tensor:
    """An input tensor whose data stands in the JSON document, flat in row-major order or nested as its shape.

    Raises:
        BadTensor: the number, nesting, types or ranges of the elements do not fit.
    """
    if not isinstance(data, list):
        raise BadTensor(tensor=name, reason="data is not a list")
    flat = _flattened(name, shape, data)
    count = math.prod(shape)
    if len(flat) != count:
        raise BadTensor(tensor=name, reason=f"shape {list(shape)} is {count} elements and data has {len(flat)}")
    odd = set(map(type, flat)) - datatype.json_types
    if odd:
        kinds = ", ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in odd))
        raise BadTensor(tensor=name, reason=f"data holds {kinds}, which is not {datatype.name}")
    return Tensor(name, datatype.name, _array(name, datatype, flat).reshape(shape))


def _flattened(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """Follow nesting level by level, each as long as its dimension: the work is bounded by the body."""
    level, depth = data, 0
    while level and type(level[0]) is list:
        depth += 1
        width = shape[depth] if depth < len(shape) else None
        if set(map(type, level)) != {list} or width is None or set(map(len, level)) != {width}:
            raise BadTensor(tensor=name, reason=f"nested data does not have the shape {list(shape)}")
        level = list(chain.from_iterable(level))
    if depth and (depth != len(shape) - 1 or len(data) != shape[0]):
        raise BadTensor(tensor=name, reason=f"nested data does not have the shape {list(shape)}")
    return level


def _array(name: str, datatype: Datatype, flat: list[Any]) -> Array:
    if datatype is BYTES:
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return array
    assert datatype.wire is not None
    if datatype.wire.kind == "f" or datatype is BF16:
        return _floats(name, datatype, flat)
    if flat and datatype.wire.kind in "iu":
        limits = np.iinfo(datatype.wire)
        low, high = min(flat), max(flat)
        if low < limits.min or high > limits.max:
            worst = low if low < limits.min else high
            raise BadTensor(tensor=name, reason=f"{str(worst)[:40]} is out of the range of {datatype.name}")
    return np.array(flat, dtype=datatype.wire)


def _floats(name: str, datatype: Datatype, flat: list[Any]) -> Array:
    target = np.dtype("<f4") if datatype is BF16 else datatype.wire
    try:
        wide = np.array(flat, dtype="<f8")  # None becomes NaN
    except OverflowError:
        raise BadTensor(tensor=name, reason=f"a number is out of the range of {datatype.name}") from None
    with np.errstate(over="ignore"):
        array = wide.astype(target)
    if np.isinf(array).any():
        raise BadTensor(tensor=name, reason=f"a number is out of the range of {datatype.name}")
    return array


def from_bytes(name: str, datatype: Datatype, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """An input tensor whose elements lie in the body, little endian and row-major.

    Compiled code may want its arrays aligned and writable; those that lie otherwise in the body are copied.


    Raises:
        BadTensor: the number of bytes is not that of the shape, or a BYTES element lies about its length.
    """
    count = math.prod(shape)
    if datatype is BYTES:
        return Tensor(name, datatype.name, _byte_strings(name, count, data).reshape(shape))
    expected = count * datatype.itemsize_bytes
    if len(data) != expected:
        reason = f"shape {list(shape)} of {datatype.name} is {expected} bytes and its binary data has {len(data)}"
        raise BadTensor(tensor=name, reason=reason)
    array: Array = np.frombuffer(data, dtype=datatype.wire)
    if datatype is BF16:
        array = widened_bf16(array)
    elif datatype.name == "BOOL":
        array = np.frombuffer(data, dtype=np.uint8) != 0  # a byte of 2 as a bool is undefined behaviour in NumPy
    return Tensor(name, datatype.name, np.require(array, requirements=["A", "W"]).reshape(shape))


def _byte_strings(name: str, count: int, data: memoryview) -> Array:
    """Elements as a length of four bytes and that many bytes."""
    if count * _LENGTH.size > len(data):
        reason = f"{count} BYTES elements need {count * _LENGTH.size} bytes or more and its binary data has {len(data)}"
        raise BadTensor(tensor=name, reason=reason)
    elements: list[bytes] = []
    at = 0
    for _ in range(count):
        end = at + _LENGTH.size
        end += _LENGTH.unpack_from(data, at)[0] if end <= len(data) else len(data)
        if end > len(data):
            raise BadTensor(tensor=name, reason=f"BYTES element {len(elements)} reaches beyond the binary data")
        elements.append(bytes(data[at + _LENGTH.size : end]))
        at = end
    if at != len(data):
        raise BadTensor(tensor=name, reason=f"{len(data) - at} bytes follow the last BYTES element")
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array


# --- out -------------------------------------------------------------------------------------------------------------


def made(name: str, value: object) -> Tensor:
    """What a model returned, as a tensor.

    Raises:
        BadTensor: it is no array, or of a type that the protocol does not have.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged lists
        raise BadTensor(tensor=name, reason=f"the model's answer is no array: {error}") from error
    datatype = datatype_of(array.dtype)
    if datatype is None:
        raise BadTensor(tensor=name, reason=f"the model answers {array.dtype}, which the protocol has no type for")
    if datatype == BYTES.name:
        array = array.astype(object, copy=False)
        if not all(isinstance(each, str | bytes) for each in array.flat):
            raise BadTensor(tensor=name, reason="the model answers objects that are neither numbers nor texts")
    return Tensor(name, datatype, array)


def to_bytes(tensor: Tensor) -> bytes:
    """The elements as the binary tensor extension has them."""
    if tensor.datatype != BYTES.name:
        wire = DATATYPES[tensor.datatype].wire
        return np.ascontiguousarray(tensor.array, dtype=wire).tobytes()
    parts: list[bytes] = []
    for element in tensor.array.ravel():
        data = _encoded(element)
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def to_json(tensor: Tensor) -> Array | list[Any]:
    """The elements, flat, in a form whose JSON is right: NaN as null, bytes as the text that they are.

    Raises:
        BadTensor: infinity, or bytes that are not UTF-8: neither has a form in JSON.
    """
    array = tensor.array.reshape(-1)
    if tensor.datatype == BYTES.name:
        return _texts(tensor.name, array)
    if array.dtype.kind != "f":
        return np.ascontiguousarray(array)
    finite = np.isfinite(array)
    if finite.all():
        return array.tolist() if array.dtype == np.float16 else np.ascontiguousarray(array)
    if np.isinf(array).any():
        raise BadTensor(tensor=tensor.name, reason="holds infinity, which JSON does not have; ask for binary data")
    return [value if good else None for value, good in zip(array.tolist(), finite.tolist(), strict=True)]


def _texts(name: str, elements: Sequence[object] | Array) -> list[str]:
    try:
        return [each.decode() if isinstance(each, bytes) else str(each) for each in elements]
    except UnicodeDecodeError:
        raise BadTensor(tensor=name, reason="holds bytes that are not UTF-8; ask for binary data") from None


def _encoded(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode(errors="surrogatepass")
