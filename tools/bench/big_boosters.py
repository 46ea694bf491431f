"""Boosters and ONNX models of any size: a few trees are trained and written many times over."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy

ROWS, FEATURES = 20_000, 20
_MARKERS = {"i1": b"i", "u1": b"U", "i2": b"I", "i4": b"l", "i8": b"L", "f4": b"d", "f8": b"D"}


def _noise() -> tuple[Any, Any]:
    random = numpy.random.default_rng(7)
    return random.standard_normal((ROWS, FEATURES), dtype="f4"), random.integers(0, 2, ROWS)


def xgboost_file(path: Path, size_bytes: int) -> Path:
    """XGBoost's UBJSON."""
    import xgboost  # noqa: PLC0415  each of these libraries takes a while to import

    from modelsync.client.loaders import ubjson  # noqa: PLC0415

    rows, labels = _noise()
    options = {"max_depth": 11, "min_child_weight": 0, "reg_lambda": 0.01, "objective": "binary:logistic"}
    document = ubjson.decode(bytes(xgboost.train(options, xgboost.DMatrix(rows, labels), 4).save_raw("ubj")))
    model = document["learner"]["gradient_booster"]["model"]
    trees = model["trees"]
    count = size_bytes * len(trees) // sum(len(_ubjson(tree)) for tree in trees)
    model["trees"] = [{**trees[number % len(trees)], "id": number} for number in range(count)]
    model["gbtree_model_param"]["num_trees"] = str(count)
    model["tree_info"] = [0] * count
    model["iteration_indptr"] = list(range(count + 1))
    path.write_bytes(_ubjson(document))
    return path


def _ubjson(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b"".join(_text(name) + _ubjson(each) for name, each in value.items()) + b"}"
    if isinstance(value, list):
        return b"[#" + _count(len(value)) + b"".join(map(_ubjson, value))
    if isinstance(value, numpy.ndarray):
        big_endian = value.astype(value.dtype.newbyteorder(">"))
        return b"[$" + _MARKERS[value.dtype.str[1:]] + b"#" + _count(value.size) + big_endian.tobytes()
    if isinstance(value, str):
        return b"S" + _text(value)
    return _count(value) if isinstance(value, int) else b"d" + struct.pack(">f", value)


def _count(value: int) -> bytes:
    return b"L" + struct.pack(">q", value)


def _text(value: str) -> bytes:
    return _count(len(value.encode())) + value.encode()


def lightgbm_file(path: Path, size_bytes: int) -> Path:
    """LightGBM's text."""
    import lightgbm  # noqa: PLC0415

    rows, labels = _noise()
    options = {"num_leaves": 2000, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0, "objective": "binary"}
    booster = lightgbm.train({**options, "verbose": -1}, lightgbm.Dataset(rows, labels), 4)
    head, rest = booster.model_to_string().split("\nTree=0\n", 1)
    body, tail = rest.split("end of trees", 1)
    trees = re.split(r"(?m)^Tree=\d+\n", body)
    count = size_bytes * len(trees) // len(body)
    parts = [f"Tree={number}\n{trees[number % len(trees)]}" for number in range(count)]
    head = re.sub("tree_sizes=.*", f"tree_sizes={' '.join(str(len(part)) for part in parts)}", head)
    path.write_text(head + "\n" + "".join(parts) + "end of trees" + tail)
    return path


def onnx_file(path: Path, size_bytes: int) -> Path:
    """Layers of 1,024 by 1,024."""
    import onnx  # noqa: PLC0415
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    random = numpy.random.default_rng(7)
    count = size_bytes >> 22
    weights = [
        numpy_helper.from_array(random.standard_normal((1024, 1024), dtype="f4"), f"w{number}")
        for number in range(count)
    ]
    nodes = [helper.make_node("MatMul", [f"x{number}", f"w{number}"], [f"x{number + 1}"]) for number in range(count)]
    ends = [helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, ["rows", 1024]) for number in (0, count)]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
