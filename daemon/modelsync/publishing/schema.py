"""What goes into a fitted estimator and what comes out, in the terms of the Open Inference Protocol.

This file alone reads the attributes that fitting leaves behind (``n_features_in_``, ``classes_``, …). It calls no
method of the estimator: a schema must not cost a prediction, and half of them would refuse an invented row.
Source: Open Inference Protocol 2, "Tensor data types"; scikit-learn's developer guide, "Estimated attributes".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelsync.publishing.parameters import Describer

_BY_KIND = {"b": "BOOL", "i": "INT", "u": "UINT", "f": "FP"}
_WIDTHS = {"INT": (1, 2, 4, 8), "UINT": (1, 2, 4, 8), "FP": (2, 4, 8)}
MAX_NAMES = 5000
"""Feature names and classes beyond it are left out: the metadata of a text model must stay readable."""

Tensor = dict[str, Any]


def datatype(dtype: Any) -> str:
    """A NumPy dtype in the protocol's words; text, objects and what it has no word for are BYTES."""
    kind = _BY_KIND.get(getattr(dtype, "kind", ""))
    if kind is None or kind == "BOOL":
        return kind or "BYTES"
    size_bytes = int(getattr(dtype, "itemsize", 0))
    return f"{kind}{8 * size_bytes}" if size_bytes in _WIDTHS[kind] else "BYTES"


def of_estimator(estimator: Any) -> dict[str, Any]:
    """``feature_names``, ``classes``, ``inputs`` and ``outputs``, each where the estimator tells it."""
    schema: dict[str, Any] = {}
    names = _names(_get(estimator, "feature_names_in_"))
    if names is not None:
        schema["feature_names"] = names
    classes = _names(_get(estimator, "classes_"))
    if classes is not None:
        schema["classes"] = classes
    inputs, outputs = _inputs(estimator), _outputs(estimator)
    if inputs:
        schema["inputs"] = inputs
    if outputs:
        schema["outputs"] = outputs
    return schema


def of_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A model that is nothing but named arrays gives them out."""
    some = list(arrays.items())[:MAX_NAMES]
    return {
        "outputs": [
            {"name": name, "datatype": datatype(array.dtype), "shape": [int(size) for size in array.shape]}
            for name, array in some
        ]
    }


def _get(estimator: Any, name: str) -> Any:
    """An attribute, or None: scikit-learn's are properties, which may raise anything on what is not fitted."""
    try:
        return getattr(estimator, name, None)
    except Exception:
        return None


def _names(value: Any) -> list[Any] | None:
    """A list of names or classes; of a classifier with several outputs, a list of lists."""
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, list) or not 0 < len(values) <= MAX_NAMES:
        return None
    plain = [item.tolist() if hasattr(item, "tolist") else item for item in values]
    described: list[Any] = [
        [Describer().value(part) for part in item[:MAX_NAMES]] if isinstance(item, list) else Describer().value(item)
        for item in plain
    ]
    return described


def _inputs(estimator: Any) -> list[Tensor]:
    count = _get(estimator, "n_features_in_")
    try:
        features = int(count)
    except (TypeError, ValueError):
        return []
    return [{"name": "input", "datatype": "FP64", "shape": [-1, features]}]


def _outputs(estimator: Any) -> list[Tensor]:
    if hasattr(estimator, "predict"):
        return [_predicted(estimator), *_probabilities(estimator)]
    if hasattr(estimator, "transform"):
        return [{"name": "transform", "datatype": "FP64", "shape": [-1, -1]}]
    return []


def _predicted(estimator: Any) -> Tensor:
    labels = _get(estimator, "classes_")
    if labels is None:
        labels = _get(estimator, "labels_")  # a clusterer's answers are of the kind that it gave its own rows
    if isinstance(labels, list) and labels:
        labels = labels[0]
    kind = datatype(labels.dtype) if hasattr(labels, "dtype") else "FP64"
    outputs = _output_count(estimator)
    return {"name": "predict", "datatype": kind, "shape": [-1, outputs] if outputs > 1 else [-1]}


def _output_count(estimator: Any) -> int:
    count = _get(estimator, "n_outputs_")
    if isinstance(count, int):
        return count
    coefficients = _get(estimator, "coef_") if _get(estimator, "classes_") is None else None
    shape: tuple[int, ...] = getattr(coefficients, "shape", ())
    return int(shape[0]) if len(shape) == 2 else 1


def _probabilities(estimator: Any) -> list[Tensor]:
    classes = _get(estimator, "classes_")
    if classes is None or isinstance(classes, list) or not _offers(estimator, "predict_proba"):
        return []
    return [{"name": "predict_proba", "datatype": "FP64", "shape": [-1, len(classes)]}]


def _offers(estimator: Any, method: str) -> bool:
    return callable(_get(estimator, method))
