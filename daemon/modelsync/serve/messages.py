"""Inference requests and answers as bytes: the JSON document and, behind it, binary tensors. Pure.

This file alone knows the documents' keys. Sizes are checked against the body before anything is cut from it.
Source: Open Inference Protocol, "Inference"; the binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from modelsync.serve import tensors
from modelsync.serve.faults import BadRequest, BadTensor
from modelsync.serve.tensors import Tensor

LENGTH_HEADER = "Inference-Header-Content-Length"
MAX_JSON_BYTES = 16 << 20
"""A parsed list takes up to eight times its text; larger tensors travel as binary data, at a tenth of the work."""
MAX_TENSORS = 4096
"""Columns of a wide table, each a tensor of its own, with room to spare."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request to infer, checked as far as that can be without the model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    """Empty: all that the model has."""
    id: str | None = None
    binary: Mapping[str, bool] = field(default_factory=dict)
    """Output by output, where the request says it."""
    binary_by_default: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer's body. ``header_bytes`` is None for one that is JSON as a whole."""

    body: bytes
    header_bytes: int | None


# --- requests --------------------------------------------------------------------------------------------------------


def decode(body: bytes | bytearray, header_length: str | None) -> InferRequest:
    """Parse a request's body.

    Args:
        body: all of it, at most the server's limit.
        header_length: the value of Inference-Header-Content-Length; None if the body is one JSON document.
    Raises:
        BadRequest, BadTensor: it is not what the protocol gives.
    """
    view = memoryview(body)
    size = len(body) if header_length is None else _header_bytes(header_length, len(body))
    document = json_object(view[:size])
    tail = view[size:]
    inputs, used = _inputs(document.get("inputs"), tail)
    if used != len(tail):
        raise BadRequest(reason=f"{len(tail) - used} bytes follow the last binary tensor of the request")
    outputs, binary = _outputs(document.get("outputs"))
    parameters = _parameters(document, "the request")
    given = document.get("id")
    if given is not None and not isinstance(given, str):
        raise BadRequest(reason="id is not a text")
    return InferRequest(inputs, outputs, given, binary, _flag(parameters, "binary_data_output", "the request"))


def json_object(data: memoryview | bytes | bytearray) -> dict[str, Any]:
    """Parse a document that must be one object. Raises BadRequest."""
    if len(data) > MAX_JSON_BYTES:
        raise BadRequest(reason=f"the JSON is larger than {MAX_JSON_BYTES} bytes; send large tensors as binary data")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(reason=f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise BadRequest(reason="the body is not a JSON object")
    return document


def _header_bytes(text: str, body_bytes: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise BadRequest(reason=f"{LENGTH_HEADER} is not a number of bytes")
    size = int(text)
    if size > body_bytes:
        raise BadRequest(reason=f"{LENGTH_HEADER} is {size} and the body has {body_bytes} bytes")
    return size


def _inputs(items: object, tail: memoryview) -> tuple[tuple[Tensor, ...], int]:
    """The tensors, and how many bytes of binary data they used."""
    found: dict[str, Tensor] = {}
    at = 0
    for item in _records(items if items is not None else [], "inputs"):
        name = _name(item, "an input")
        if name in found:
            raise BadTensor(tensor=name, reason="stands twice among the inputs")
        found[name], at = _input(name, item, tail, at)
    return tuple(found.values()), at


def _input(name: str, item: dict[str, Any], tail: memoryview, at: int) -> tuple[Tensor, int]:
    datatype = tensors.datatype_named(name, item.get("datatype"))
    shape = tensors.checked_shape(name, item.get("shape"))
    parameters = _parameters(item, f"tensor {name!r}")
    if "shared_memory_region" in parameters:
        raise BadTensor(tensor=name, reason="shared memory is not offered; send the data")
    if "binary_data_size" not in parameters:
        if "data" not in item:
            raise BadTensor(tensor=name, reason="has neither data nor a binary_data_size")
        return tensors.from_json(name, datatype, shape, item["data"]), at
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise BadTensor(tensor=name, reason="binary_data_size is not a number of bytes")
    if "data" in item:
        raise BadTensor(tensor=name, reason="has both data and a binary_data_size")
    if size > len(tail) - at:
        reason = f"binary_data_size is {size} and {len(tail) - at} bytes of binary data are left in the body"
        raise BadTensor(tensor=name, reason=reason)
    return tensors.from_bytes(name, datatype, shape, tail[at : at + size]), at + size


def _outputs(items: object) -> tuple[tuple[str, ...], dict[str, bool]]:
    names: list[str] = []
    binary: dict[str, bool] = {}
    for item in _records(items if items is not None else [], "outputs"):
        name = _name(item, "an output")
        parameters = _parameters(item, f"output {name!r}")
        if "shared_memory_region" in parameters or parameters.get("classification"):
            raise BadTensor(tensor=name, reason="shared memory and classification are not offered")
        if name in names:
            raise BadTensor(tensor=name, reason="stands twice among the outputs")
        names.append(name)
        if "binary_data" in parameters:
            binary[name] = _flag(parameters, "binary_data", f"output {name!r}")
    return tuple(names), binary


def _records(items: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(items, list) or len(items) > MAX_TENSORS or not all(isinstance(each, dict) for each in items):
        raise BadRequest(reason=f"{what} is not a list of at most {MAX_TENSORS} objects")
    return items


def _name(item: Mapping[str, Any], what: str) -> str:
    name = item.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 256:
        raise BadRequest(reason=f"{what} has no name of 1 to 256 characters")
    return name


def _parameters(item: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or any(isinstance(each, list | dict) for each in parameters.values()):
        raise BadRequest(reason=f"the parameters of {what} are not an object of plain values")
    return parameters


def _flag(parameters: Mapping[str, Any], key: str, what: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise BadRequest(reason=f"{key} of {what} is neither true nor false")
    return value


# --- answers ---------------------------------------------------------------------------------------------------------


def encode(request: InferRequest, model: str, version: str, outputs: Sequence[Tensor]) -> Encoded:
    """The answer's body, each output as binary data or JSON, as the request wants it.

    Raises:
        BadTensor: an output has no form in JSON.
    """
    tails: list[bytes] = []
    records = [_encode_output(request, tensor, tails) for tensor in outputs]
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": records}
    if request.id is not None:
        document["id"] = request.id
    head = json_bytes(document)
    if not tails:
        return Encoded(head, None)
    return Encoded(b"".join((head, *tails)), len(head))


def _encode_output(request: InferRequest, tensor: Tensor, tails: list[bytes]) -> dict[str, Any]:
    record: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
    if request.binary.get(tensor.name, request.binary_by_default):
        data = tensors.to_bytes(tensor)
        tails.append(data)
        record["parameters"] = {"binary_data_size": len(data)}
    else:
        record["data"] = tensors.to_json(tensor)
    return record


def json_bytes(document: object) -> bytes:
    """Any of our documents as JSON; floats that are not numbers become null."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
