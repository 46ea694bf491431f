"""Models that predict from a table: scikit-learn's estimators and pipelines, LightGBM's and XGBoost's boosters.

A request gives the table as one tensor of shape [rows, columns] or as one tensor a column, named as the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelsync.serve.datatypes import BYTES, Array, datatype_of
from modelsync.serve.faults import BadRequest, BadTensor, InferenceFailed
from modelsync.serve.specs import ANY, Signature, TensorSpec, from_metadata
from modelsync.serve.tensors import Tensor, made

METHODS = ("predict", "predict_proba", "decision_function", "transform")
"""What can be asked for by name, where the model has it."""
_USUAL = ("predict", "predict_proba")
"""What a request gets that names no outputs, and a model without either gets all it has."""


class EstimatorAdapter:
    """Calls ``predict`` and its like.

    Args:
        name: the model's, for errors.
        model: loaded; only looked at, not kept.
        metadata: ``feature_names``, ``inputs`` and ``outputs`` of the manifest where its publisher wrote them.
    """

    def __init__(self, name: str, model: Any, metadata: Mapping[str, Any]) -> None:
        self._name = name
        self._features = _feature_names(model, metadata)
        described = _outputs(model, [method for method in METHODS if _has(model, method)])
        published = {spec.name: spec for spec in from_metadata(metadata.get("outputs"))}
        usual = [spec for spec in described if spec.name in (published or _USUAL)] or described
        inputs = from_metadata(metadata.get("inputs")) or (_input(model),)
        self.signature = Signature(
            platform=_platform(model),
            inputs=inputs,
            outputs=tuple(published.get(spec.name, spec) for spec in usual),
            more=tuple(spec.name for spec in described if spec not in usual),
            batches=True,
            columns=True,
        )

    @staticmethod
    def fits(model: Any) -> bool:
        return any(_has(model, method) for method in METHODS)

    def run(self, model: Any, inputs: Sequence[Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """As ``adapters.Adapter``."""
        table = self._table(inputs)
        try:
            return [made(method, getattr(model, method)(table)) for method in wanted]
        except (ValueError, TypeError) as error:
            # Estimators check what they are given with these two; a fault in the model itself looks no different.
            raise BadTensor(tensor=inputs[0].name, reason=f"the model refuses it: {_first_line(error)}") from error
        except BadTensor:
            raise
        except Exception as error:
            raise InferenceFailed(model=self._name, reason=f"{type(error).__name__}: {_first_line(error)}") from error

    def _table(self, inputs: Sequence[Tensor]) -> Array:
        if not inputs:
            raise BadRequest(reason="the request has no inputs")
        if len(inputs) == 1 and (len(self._features) != 1 or inputs[0].array.ndim != 1):
            return _texts(inputs[0])
        by_name = {tensor.name: tensor for tensor in inputs}
        ordered = [by_name[name] for name in self._features] if set(self._features) == set(by_name) else list(inputs)
        rows = {tensor.array.shape[0] if tensor.array.ndim else 1 for tensor in ordered}
        if len(rows) != 1:
            raise BadRequest(reason=f"the columns have different numbers of rows: {sorted(rows)}")
        columns = [_texts(tensor).reshape(-1, 1) for tensor in ordered]
        mixed = len({tensor.datatype == BYTES.name for tensor in ordered}) == 2
        return np.concatenate([column.astype(object) for column in columns] if mixed else columns, axis=1)


def _texts(tensor: Tensor) -> Array:
    """BYTES as str, which is what vectorisers and encoders were fitted on."""
    if tensor.datatype != BYTES.name:
        return tensor.array
    try:
        flat = [each.decode() if isinstance(each, bytes) else each for each in tensor.array.flat]
    except UnicodeDecodeError as error:
        raise BadTensor(tensor=tensor.name, reason="holds bytes that are not UTF-8") from error
    texts = np.empty(len(flat), dtype=object)
    texts[:] = flat
    return texts.reshape(tensor.array.shape)


def _has(model: Any, method: str) -> bool:
    # scikit-learn hides methods that a model's parameters rule out behind descriptors that raise AttributeError.
    return callable(getattr(model, method, None))


def _inner(model: Any) -> Any:
    """XGBoost's booster, which the client's loader puts a ``predict`` of arrays around; any other model itself."""
    return getattr(model, "booster", model)


def _feature_names(model: Any, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    names = metadata.get("feature_names")
    if isinstance(names, list) and names:
        return tuple(str(name) for name in names)
    own = getattr(model, "feature_names_in_", None)
    return () if own is None else tuple(str(name) for name in own)


def _input(model: Any) -> TensorSpec:
    count = _feature_count(model)
    if count is None:
        # A pipeline that begins with a vectoriser takes texts; nothing else leaves its number of columns open.
        steps = getattr(model, "steps", None)
        first = steps[0][1] if steps else model
        if hasattr(first, "vocabulary_") or type(first).__name__ == "HashingVectorizer":
            return TensorSpec("input", BYTES.name, (ANY,))
    return TensorSpec("input", "FP64", (ANY, ANY if count is None else count))


def _feature_count(model: Any) -> int | None:
    for name in ("n_features_in_", "num_feature", "num_features"):  # scikit-learn, LightGBM, XGBoost
        try:
            found = getattr(_inner(model), name)
            return int(found() if callable(found) else found)
        except Exception:  # noqa: S112  whatever a library raises here means "not this one"
            continue
    return None


def _outputs(model: Any, methods: Sequence[str]) -> list[TensorSpec]:
    classes = getattr(model, "classes_", None)
    labels = np.asarray(classes) if classes is not None and not isinstance(classes, list) else None
    kinds = {
        "predict": (datatype_of(labels.dtype) or "FP64") if labels is not None else "FP64",
        "transform": "FP64",
    }
    widths = {"predict": (), "predict_proba": (len(labels) if labels is not None else ANY,), "transform": (ANY,)}
    if labels is not None and len(labels) > 2:
        widths["decision_function"] = (len(labels),)
    return [TensorSpec(name, kinds.get(name, "FP64"), (ANY, *widths.get(name, ()))) for name in methods]


def _platform(model: Any) -> str:
    package = type(_inner(model)).__module__.partition(".")[0]
    return {"sklearn": "scikit-learn"}.get(package, package)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
