"""The inference protocol's codec over whole tables: what is taken, what is refused and how, what is answered."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsync.serve import messages, tensors
from modelsync.serve.datatypes import DATATYPES
from modelsync.serve.faults import BadRequest, BadTensor, InferenceFault
from modelsync.serve.messages import InferRequest
from modelsync.serve.tensors import Tensor


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def tensor(datatype: str, shape: list[int], data: Any, name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def binary(datatype: str, shape: list[int], size_bytes: Any, name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size_bytes}}


def with_tail(head: bytes, tail: bytes) -> tuple[bytes, str]:
    return head + tail, str(len(head))


TAKEN: dict[str, tuple[dict[str, Any], np.ndarray[Any, Any]]] = {
    "flat": (tensor("FP32", [2, 2], [1, 2, 3, 4.5]), np.array([[1, 2], [3, 4.5]], np.float32)),
    "nested": (tensor("INT8", [2, 2], [[1, 2], [-128, 127]]), np.array([[1, 2], [-128, 127]], np.int8)),
    "nested deeper": (tensor("UINT8", [1, 2, 2], [[[1, 2], [3, 255]]]), np.array([[[1, 2], [3, 255]]], np.uint8)),
    "a column": (tensor("INT64", [2, 1], [[1], [2]]), np.array([[1], [2]])),
    "the largest": (tensor("UINT64", [1], [2**64 - 1]), np.array([2**64 - 1], np.uint64)),
    "the smallest": (tensor("INT64", [1], [-(2**63)]), np.array([-(2**63)])),
    "truth": (tensor("BOOL", [2], [True, False]), np.array([True, False])),
    "null is not a number": (tensor("FP64", [2], [None, 1]), np.array([np.nan, 1])),
    "texts": (tensor("BYTES", [2], ["a", "ü"]), np.array(["a", "ü"], object)),
    "a scalar": (tensor("FP64", [], [7]), np.array(7.0)),
    "none": (tensor("FP32", [0, 4], []), np.zeros((0, 4), np.float32)),
    "halves": (tensor("FP16", [1], [0.5]), np.array([0.5], np.float16)),
    "bfloat": (tensor("BF16", [1], [1.5]), np.array([1.5], np.float32)),
}


@pytest.mark.parametrize("case", TAKEN, ids=str)
def test_json_tensors_that_are_taken(case: str) -> None:
    item, expected = TAKEN[case]
    (found,) = messages.decode(body(item), None).inputs
    assert found.array.dtype == expected.dtype
    assert found.array.shape == expected.shape
    np.testing.assert_array_equal(found.array, expected)


REFUSED: dict[str, tuple[Any, str]] = {
    "too few": (tensor("FP32", [2, 2], [1, 2, 3]), "shape [2, 2] is 4 elements and data has 3"),
    "too many": (tensor("FP32", [1], [1, 2]), "1 elements and data has 2"),
    "another nesting": (tensor("FP32", [2, 2], [[1, 2, 3, 4]]), "nested data does not have the shape"),
    "ragged": (tensor("FP32", [2, 2], [[1, 2], [3]]), "nested data does not have the shape"),
    "half nested": (tensor("FP32", [2, 2], [[1, 2], 3]), "nested data does not have the shape"),
    "nested too deeply": (tensor("FP32", [1], [[[[[1]]]]]), "nested data does not have the shape"),
    "a fraction for a whole number": (tensor("INT32", [1], [1.5]), "data holds float, which is not INT32"),
    "truth for a number": (tensor("FP32", [2], [1, True]), "data holds bool, which is not FP32"),
    "a number for truth": (tensor("BOOL", [1], [1]), "data holds int, which is not BOOL"),
    "a text for a number": (tensor("FP64", [1], ["1"]), "data holds str, which is not FP64"),
    "a number for a text": (tensor("BYTES", [1], [1]), "data holds int, which is not BYTES"),
    "null for a whole number": (tensor("INT8", [1], [None]), "data holds null, which is not INT8"),
    "an object": (tensor("FP32", [1], [{}]), "data holds dict"),
    "out of range": (tensor("INT8", [2], [1, 128]), "128 is out of the range of INT8"),
    "below zero": (tensor("UINT16", [1], [-1]), "-1 is out of the range of UINT16"),
    "beyond 64 bits": (tensor("INT64", [1], [2**63]), "out of the range of INT64"),
    "far beyond 64 bits": (tensor("INT64", [1], [10**30]), "which is not INT64"),
    "too large a float": (tensor("FP32", [1], [1e39]), "out of the range of FP32"),
    "too large a half": (tensor("FP16", [1], [70000]), "out of the range of FP16"),
    "a shape of fractions": (tensor("FP32", [1.0], [1]), "each dimension is a whole number"),
    "a negative shape": (tensor("FP32", [-1], [1]), "each dimension is a whole number"),
    "a shape of truth": (tensor("FP32", [True], [1]), "each dimension is a whole number"),
    "a shape too large": (tensor("FP32", [1 << 30, 1 << 30], [1]), "more elements than any body could carry"),
    "too many dimensions": (tensor("FP32", [1] * 17, [1]), "at most 16"),
    "no shape": ({"name": "x", "datatype": "FP32", "data": [1]}, "shape is not a list"),
    "no data": ({"name": "x", "datatype": "FP32", "shape": [1]}, "neither data nor a binary_data_size"),
    "data that is no list": (tensor("FP32", [1], 1), "data is not a list"),
    "an unknown type": (tensor("FP8", [1], [1]), "datatype 'FP8' is none of BOOL"),
    "no type": ({"name": "x", "shape": [1], "data": [1]}, "datatype 'None' is none of"),
    "shared memory": (
        {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"shared_memory_region": "r"}},
        "shared memory is not offered",
    ),
    "binary data that is not there": (binary("FP32", [1], 4), "binary_data_size is 4 and 0 bytes"),
    "a negative size": (binary("FP32", [1], -4), "not a number of bytes"),
    "a size that is a text": (binary("FP32", [1], "4"), "not a number of bytes"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_refused_tensor_is_named(case: str) -> None:
    item, reason = REFUSED[case]
    with pytest.raises(BadTensor, match="tensor 'x': ") as refused:
        messages.decode(body(item), None)
    assert reason in str(refused.value)
    assert refused.value.status == 400


MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "no JSON": (b"{", "not JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', "not JSON"),
    "NaN": (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', "not JSON"),
    "infinity": (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [-Infinity]}]}', "not JSON"),
    "deep": (b'{"inputs": ' + b"[" * 1_000_000, "not JSON"),
    "deep and whole": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "inputs no list": (b'{"inputs": {}}', "inputs is not a list"),
    "an input no object": (b'{"inputs": [1]}', "inputs is not a list"),
    "a nameless input": (b'{"inputs": [{}]}', "no name"),
    "outputs no list": (b'{"outputs": 1}', "outputs is not a list"),
    "nested parameters": (b'{"parameters": {"a": {}}}', "not an object of plain values"),
    "parameters no object": (b'{"parameters": []}', "not an object of plain values"),
    "an id that is a number": (b'{"id": 1}', "id is not a text"),
    "a flag that is a number": (b'{"parameters": {"binary_data_output": 1}}', "neither true nor false"),
}


@pytest.mark.parametrize("case", MALFORMED, ids=str)
def test_a_malformed_request_says_why(case: str) -> None:
    data, reason = MALFORMED[case]
    with pytest.raises(BadRequest) as refused:
        messages.decode(data, None)
    assert reason in str(refused.value)


@pytest.mark.parametrize("header", ["", "-1", "1.0", "abc", "9" * 13, "100000", "\u0661"])
def test_a_header_length_that_lies(header: str) -> None:
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        messages.decode(body(), header)


def test_a_header_length_that_cuts_the_json() -> None:
    with pytest.raises(BadRequest, match="not JSON"):
        messages.decode(body(tensor("FP32", [1], [1])), "10")


def test_a_json_larger_than_is_parsed() -> None:
    with pytest.raises(BadRequest, match="send large tensors as binary data"):
        messages.decode(b" " * (messages.MAX_JSON_BYTES + 1), None)


def test_binary_tensors_follow_one_another() -> None:
    first, second = np.arange(6, dtype="<f4").reshape(2, 3), np.array([True, False])
    head = body(binary("FP32", [2, 3], 24, "a"), tensor("INT8", [1], [5], "j"), binary("BOOL", [2], 2, "b"))
    data, length = with_tail(head, first.tobytes() + second.tobytes())
    a, j, b = messages.decode(bytearray(data), length).inputs
    np.testing.assert_array_equal(a.array, first)
    np.testing.assert_array_equal(b.array, second)
    assert j.array.tolist() == [5]
    for each in (a, b):  # compiled code wants its memory so
        assert each.array.flags.aligned
        assert each.array.flags.writeable


@pytest.mark.parametrize("cut", [1, 4, 23])
def test_a_truncated_binary_tensor(cut: int) -> None:
    data, length = with_tail(body(binary("FP32", [2, 3], 24)), bytes(24 - cut))
    with pytest.raises(BadTensor, match=rf"tensor 'x': binary_data_size is 24 and {24 - cut} bytes"):
        messages.decode(data, length)


def test_a_binary_tensor_of_another_size_than_its_shape() -> None:
    data, length = with_tail(body(binary("FP64", [2], 8)), bytes(8))
    with pytest.raises(BadTensor, match=r"shape \[2\] of FP64 is 16 bytes and its binary data has 8"):
        messages.decode(data, length)


def test_bytes_that_nobody_claims() -> None:
    data, length = with_tail(body(binary("FP32", [1], 4)), bytes(5))
    with pytest.raises(BadRequest, match="1 bytes follow"):
        messages.decode(data, length)


def test_a_bool_byte_that_is_neither() -> None:
    data, length = with_tail(body(binary("BOOL", [2], 2)), b"\x00\x07")
    assert messages.decode(data, length).inputs[0].array.tolist() == [False, True]


BYTES_TAILS = {
    "a length beyond the end": (1, struct.pack("<I", 10) + b"abc", "element 0 reaches beyond"),
    "a length cut short": (2, struct.pack("<I", 1) + b"a" + b"\x01\x00\x00", "element 1 reaches beyond"),
    "something behind": (1, struct.pack("<I", 1) + b"ab", "1 bytes follow"),
    "a huge length": (1, b"\xff\xff\xff\xff", "reaches beyond"),
    "many elements in few bytes": (1 << 30, b"\x00" * 4, "need"),
}


@pytest.mark.parametrize("case", BYTES_TAILS, ids=str)
def test_bytes_elements_that_lie(case: str) -> None:
    count, tail, reason = BYTES_TAILS[case]
    data, length = with_tail(body(binary("BYTES", [count], len(tail))), tail)
    with pytest.raises(BadTensor, match=reason):
        messages.decode(data, length)


def test_a_name_that_stands_twice() -> None:
    with pytest.raises(BadTensor, match="stands twice"):
        messages.decode(body(tensor("FP32", [1], [1]), tensor("FP32", [1], [1])), None)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), header=st.one_of(st.none(), st.text("0123456789", max_size=4)))
def test_any_bytes_end_in_a_refusal_of_ours(data: bytes, header: str | None) -> None:
    try:
        messages.decode(data, header)
    except InferenceFault as fault:
        assert fault.status == 400


# --- answers ---------------------------------------------------------------------------------------------------------


def answered(request: InferRequest, *outputs: Tensor) -> dict[str, Any]:
    encoded = messages.encode(request, "m", "3", outputs)
    assert encoded.header_bytes is None
    document: dict[str, Any] = json.loads(encoded.body)
    return document


def test_an_answer_in_json() -> None:
    out = tensors.made("y", np.array([[1, 2]], np.int64))
    document = answered(InferRequest((), id="q"), out)
    assert document == {
        "model_name": "m",
        "model_version": "3",
        "id": "q",
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}],
    }


def test_an_answer_in_both_forms() -> None:
    request = InferRequest((), binary={"a": True, "b": False}, binary_by_default=True)
    outputs = [tensors.made(name, np.array([1.5], np.float32)) for name in "abc"]
    encoded = messages.encode(request, "m", "1", outputs)
    assert encoded.header_bytes is not None
    records = json.loads(encoded.body[: encoded.header_bytes])["outputs"]
    assert [record.get("parameters") for record in records] == [{"binary_data_size": 4}, None, {"binary_data_size": 4}]
    assert records[1]["data"] == [1.5]
    assert encoded.body[encoded.header_bytes :] == np.array([1.5, 1.5], "<f4").tobytes()


def test_not_a_number_is_null_and_infinity_is_refused() -> None:
    assert answered(InferRequest(()), tensors.made("y", [np.nan, 1.5]))["outputs"][0]["data"] == [None, 1.5]
    with pytest.raises(BadTensor, match="'y': holds infinity"):
        answered(InferRequest(()), tensors.made("y", [np.inf]))
    encoded = messages.encode(InferRequest((), binary_by_default=True), "m", "1", [tensors.made("y", [np.inf])])
    assert np.isinf(np.frombuffer(encoded.body[encoded.header_bytes :], "<f8")).all()


def test_texts_in_both_forms() -> None:
    out = tensors.made("y", np.array(["ab", "ü"]))
    assert answered(InferRequest(()), out)["outputs"][0]["data"] == ["ab", "ü"]
    assert tensors.to_bytes(out) == b"\x02\x00\x00\x00ab\x02\x00\x00\x00\xc3\xbc"
    with pytest.raises(BadTensor, match="not UTF-8"):
        answered(InferRequest(()), tensors.made("y", np.array([b"\xff"], object)))


@pytest.mark.parametrize("value", [[{}], np.array([1j]), np.array(["2026-01-01"], "M8[D]"), [[1], [1, 2]]], ids=str)
def test_what_is_no_tensor_is_not_answered(value: Any) -> None:
    with pytest.raises(BadTensor, match="the model"):
        tensors.made("y", value)


@pytest.mark.parametrize("name", [name for name, each in DATATYPES.items() if each.wire is not None and name != "BF16"])
def test_every_type_survives_both_ways(name: str) -> None:
    array = np.arange(4).astype(DATATYPES[name].wire).reshape(2, 2)
    out = tensors.made("x", array)
    assert out.datatype == name
    tail = tensors.to_bytes(out)
    data, length = with_tail(body(binary(name, [2, 2], len(tail))), tail)
    np.testing.assert_array_equal(messages.decode(data, length).inputs[0].array, array)
    document = answered(InferRequest(()), out)["outputs"][0]
    again = messages.decode(body({**document, "name": "x"}), None).inputs[0]
    np.testing.assert_array_equal(again.array, array)
    assert again.array.dtype == array.dtype


def test_foreign_byte_order_and_strides_are_put_right() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert tensors.to_bytes(tensors.made("x", array)) == np.ascontiguousarray(array.astype("<i4")).tobytes()
