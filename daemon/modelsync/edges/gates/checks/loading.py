"""Loads a version as an application would, and compares what it answers to samples with what it should.

This runs the model's code, a pickle's among it: only in the cage, and only where the host's configuration asks for it.
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

from modelsync.edges.gates.checks.formats import Unfit

_LOADED = (".joblib", ".pkl", ".pickle", ".onnx", ".npz", ".npy", ".safetensors")


def check_load(tree: Path, inputs: str, expected: str, tolerance: float) -> None:
    """Load, and where there are samples, predict. Raises Unfit; anything that the model raises goes through."""
    paths = [path for path in sorted(tree.rglob("*")) if path.suffix.lower() in _LOADED and path.is_file()]
    samples = {tree / given for given in (inputs, expected) if given}  # they may lie beside the weights
    models = [_loaded(path) for path in paths if path not in samples]
    if not models:
        raise Unfit(f"nothing that can be loaded: {', '.join(_LOADED)}")
    if inputs:
        answers = [_answer(model, _sample(tree / inputs)) for model in models if _answers(model)]
        if not answers:
            raise Unfit("what was loaded does not predict; inputs are of no use to it")
        if expected:
            _compare(answers[0], _sample(tree / expected), tolerance)


def _loaded(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind == ".onnx":
        import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415

        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if kind in (".npz", ".npy"):
        import numpy as np  # noqa: PLC0415

        arrays = np.load(path, allow_pickle=False)
        return {name: arrays[name].sum() for name in arrays.files} if kind == ".npz" else arrays
    if kind == ".safetensors":
        return path  # its structure says all that loading would: no code, no checksum
    return _unpickled(path)


def _unpickled(path: Path) -> Any:
    try:
        import joblib  # noqa: PLC0415
    except ImportError:
        if path.suffix.lower() == ".joblib":
            raise Unfit("joblib is not installed beside modelsync; pip install 'modelsync[models]'") from None
        with path.open("rb") as file:
            return pickle.load(file)
    return joblib.load(path)


def _answers(model: Any) -> bool:
    return hasattr(model, "predict") or hasattr(model, "run")


def _answer(model: Any, sample: Any) -> Any:
    if hasattr(model, "predict"):
        return model.predict(sample)
    first = model.get_inputs()[0]
    return model.run(None, {first.name: sample})[0]


def _sample(path: Path) -> Any:
    import numpy as np  # noqa: PLC0415

    try:
        return np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise Unfit(f"the sample {path} cannot be read: {str(error)[:160]}") from error


def _compare(answer: Any, expected: Any, tolerance: float) -> None:
    import numpy as np  # noqa: PLC0415

    answer = np.asarray(answer)
    if answer.shape != expected.shape:
        raise Unfit(f"it answers with shape {answer.shape}, {expected.shape} is expected")
    for at, (given, wanted) in enumerate(zip(answer.ravel().tolist(), expected.ravel().tolist(), strict=True)):
        same = given == wanted
        if not same and isinstance(given, int | float) and isinstance(wanted, int | float):
            same = math.isclose(given, wanted, rel_tol=tolerance, abs_tol=tolerance)
        if not same:
            raise Unfit(f"its answer {at} is {given!r}, {wanted!r} is expected")
