"""The metadata of a version that is published from Python: what it is, what made it, what it takes and gives.

This file alone decides the keys. modelsync-serve reads ``inputs``, ``outputs`` and ``format``; people read the rest.

    class framework versions params feature_names classes inputs outputs format size_bytes training

A key whose value nobody knows is left out. What the caller says wins over what was found.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

from modelsync.core.errors import NotAModel
from modelsync.core.sources.names import model_of
from modelsync.publishing import parameters, schema

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}
"""Top-level modules that a package of another name brings."""
_ALSO = {
    "joblib": ("joblib", "numpy"),
    "skops": ("skops", "numpy"),
    "safetensors": ("safetensors", "numpy"),
    "npz": ("numpy",),
    "onnx": ("onnx",),
}
"""What reads a format again, beside the model's own framework."""


def describe_estimator(estimator: Any, format_: str) -> dict[str, Any]:
    """Everything but the size, which is known once it is written."""
    if isinstance(estimator, bytes | bytearray):
        return {"format": format_}
    module = type(estimator).__module__.partition(".")[0]
    framework = _DISTRIBUTIONS.get(module, module)
    found: dict[str, Any] = {
        "class": parameters.class_name(estimator),
        "framework": framework,
        "versions": _versions(framework, *_frameworks_within(estimator), *_ALSO.get(format_, ())),
        "params": parameters.parameters_of(estimator),
        "format": format_,
        **_schema(estimator),
    }
    return {key: value for key, value in found.items() if value not in ({}, None)}


def describe_arrays(arrays: Mapping[str, Any], format_: str) -> dict[str, Any]:
    """Of a model that is nothing but named arrays."""
    return {
        "framework": "numpy",
        "versions": _versions(*_ALSO.get(format_, ()), "numpy"),
        "format": format_,
        **schema.of_arrays(arrays),
    }


def describe_path(path: Path) -> dict[str, Any]:
    """Of files that something else wrote: little is known."""
    suffix = path.name.rpartition(".")[2].lower() if path.is_file() and model_of(path.name) else "directory"
    return {"format": suffix}


def completed(
    found: Mapping[str, Any], size_bytes: int, training: Mapping[str, Any] | None, said: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The metadata to publish.

    Args:
        training: about the training: rows, scores, where the data came from; any JSON.
        said: the caller's own keys, which replace what was found.
    Raises:
        NotAModel: ``training`` or ``said`` is not a mapping with text for keys.
    """
    own = {**(said or {}), **({"training": training} if training is not None else {})}
    if not all(isinstance(key, str) for key in own):
        raise NotAModel(path="metadata", reason="its keys must be text")
    return {**found, "size_bytes": size_bytes, **parameters.Describer().value(own)}


def _schema(estimator: Any) -> dict[str, Any]:
    try:
        return schema.of_estimator(estimator)
    except Exception:  # a stranger's attributes: the model is published without
        return {}


def _frameworks_within(estimator: Any) -> set[str]:
    """Of a pipeline: what its steps come from."""
    try:
        values = estimator.get_params().values()
        modules = {type(value).__module__.partition(".")[0] for value in values if hasattr(value, "get_params")}
    except Exception:
        return set()
    return {_DISTRIBUTIONS.get(module, module) for module in modules}


def _versions(*names: str) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in sorted(set(names)):
        try:
            versions[name] = distributions.version(name)
        except (distributions.PackageNotFoundError, ValueError):
            continue
    return versions
