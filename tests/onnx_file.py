"""A small ONNX model, encoded by hand (onnx.proto3): no test needs the package that makes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _value_info(name: str, columns: int) -> bytes:
    shape = _bytes(1, _bytes(2, "rows")) + _bytes(1, _number(1, columns))
    tensor_type = _number(1, 1) + _bytes(2, shape)  # 1: FLOAT
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor_type))


def linear(weights: Sequence[float]) -> bytes:
    """``y = x @ weights`` for rows of ``len(weights)`` floats: input ``x``, output ``y``, one column."""
    initializer = (
        _number(1, len(weights))
        + _number(1, 1)
        + _number(2, 1)
        + _bytes(8, "w")
        + _bytes(9, struct.pack(f"<{len(weights)}f", *weights))
    )
    node = _bytes(1, "x") + _bytes(1, "w") + _bytes(2, "y") + _bytes(4, "MatMul")
    inputs, outputs = _value_info("x", len(weights)), _value_info("y", 1)
    graph = _bytes(1, node) + _bytes(2, "linear") + _bytes(5, initializer) + _bytes(11, inputs) + _bytes(12, outputs)
    opset = _bytes(1, "") + _number(2, 13)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, opset)
