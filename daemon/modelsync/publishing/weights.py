"""Models as files: one writer for each format, into a directory that is still nobody's.

This file alone imports the libraries that write weights, each when it is asked for. Joblib is left uncompressed, since
only then can a reader map the arrays instead of copying them; so are .npz archives.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelsync.core.errors import BadName, LibraryMissing, NotAModel

FORMATS = ("joblib", "skops", "safetensors", "npz", "onnx", "lgb", "ubj")
INDEX = "model.safetensors.index.json"
"""The name under which Hugging Face's libraries look for the list of shards."""


def write(model: Any, format_: str, directory: Path, name: str, shard_bytes: int | None) -> Path:
    """Write a model; returns the file, or the directory where it became several.

    Args:
        name: of a single file, before its suffix.
        shard_bytes: of arrays in safetensors: begin another file above this size.
    Raises:
        BadName: no such format. LibraryMissing: what writes it is not installed.
        NotAModel: the model cannot be written in this format.
    """
    writer = _WRITERS.get(format_)
    if writer is None:
        raise BadName(kind="format", value=format_, rule=f"one of {', '.join(FORMATS)}")
    if format_ in ("safetensors", "npz"):
        model = arrays_of(model, format_)
        if shard_bytes is not None and format_ == "safetensors":
            return _write_shards(model, directory, shard_bytes)
    if shard_bytes is not None:
        raise NotAModel(path=name, reason="only arrays in safetensors can be written in shards")
    path = directory / f"{name}.{format_}"
    writer(model, path)
    return path


def default_format(model: Any) -> str:
    """What needs no pickle, where there is one; otherwise joblib.

    Arrays become safetensors (.npz, where that is not installed), boosters files of their own, ONNX stays what it is.
    """
    if is_arrays(model):
        return "safetensors" if importlib.util.find_spec("safetensors") else "npz"
    if isinstance(model, bytes | bytearray) or _is_proto(model):
        return "onnx"
    return _BOOSTERS.get((type(model).__module__.partition(".")[0], type(model).__name__), "joblib")


def is_arrays(model: Any) -> bool:
    """Whether it is a mapping of text to NumPy arrays, and not empty."""
    return (
        isinstance(model, Mapping)
        and bool(model)
        and all(isinstance(key, str) and _is_array(value) for key, value in model.items())
    )


def arrays_of(model: Any, format_: str) -> dict[str, Any]:
    """The model as named arrays. Raises NotAModel."""
    if not is_arrays(model):
        raise NotAModel(path=format_, reason="this format holds a mapping of names to NumPy arrays, and nothing else")
    return dict(model)


def _is_array(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "shape") and hasattr(value, "tobytes")


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LibraryMissing(library=name.partition(".")[0], extra=extra) from error


def _joblib(model: Any, path: Path) -> None:
    joblib = _library("joblib", "models")
    with _refusing(path):
        joblib.dump(model, path, compress=0)


def _skops(model: Any, path: Path) -> None:
    skops = _library("skops.io", "models")
    with _refusing(path):
        skops.dump(model, path)


def _safetensors(arrays: Mapping[str, Any], path: Path) -> None:
    save_file = _library("safetensors.numpy", "models").save_file
    numpy = _library("numpy", "models")
    with _refusing(path):
        # It writes memory as it lies, so a transposed view would come back as something else.
        save_file({name: numpy.asarray(array, order="C") for name, array in arrays.items()}, path)


def _npz(arrays: Mapping[str, Any], path: Path) -> None:
    numpy = _library("numpy", "models")
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise NotAModel(path=name, reason="an array of Python objects would be a pickle; give it a numeric dtype")
    with _refusing(path):
        numpy.savez(path, **arrays)


def _onnx(model: Any, path: Path) -> None:
    data = model if isinstance(model, bytes | bytearray) else None
    if data is None and _is_proto(model):
        data = model.SerializeToString()
    if not data:
        reason = "onnx takes a ModelProto or its bytes; convert an estimator first, for example with skl2onnx"
        raise NotAModel(path=type(model).__name__, reason=reason)
    path.write_bytes(data)


def _is_proto(model: Any) -> bool:
    return hasattr(model, "SerializeToString") and hasattr(model, "graph")


_BOOSTERS = {("lightgbm", "Booster"): "lgb", ("xgboost", "Booster"): "ubj"}


def _booster(model: Any, path: Path) -> None:
    booster = getattr(model, "booster_", None) or getattr(model, "get_booster", lambda: model)()  # of an estimator
    suffix = _BOOSTERS.get((type(booster).__module__.partition(".")[0], type(booster).__name__))
    if suffix != path.suffix[1:]:
        reason = "lgb takes a Booster or an estimator of LightGBM, ubj one of XGBoost"
        raise NotAModel(path=type(model).__name__, reason=reason)
    with _refusing(path):
        booster.save_model(str(path))


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "joblib": _joblib,
    "skops": _skops,
    "safetensors": _safetensors,
    "npz": _npz,
    "onnx": _onnx,
    "lgb": _booster,
    "ubj": _booster,
}


class _refusing:
    """What a library raises over a model that it cannot write, in our words; a full disk stays what it is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            reason = f"it cannot be written so: {type(error).__name__}: {str(error)[:300]}"
            raise NotAModel(path=self._path.name, reason=reason) from error


# --- shards ----------------------------------------------------------------------------------------------------------


def _write_shards(arrays: Mapping[str, Any], directory: Path, shard_bytes: int) -> Path:
    """Several files and the index that says which array lies where."""
    if shard_bytes <= 0:
        raise BadName(kind="shard size", value=str(shard_bytes), rule="a number of bytes above 0")
    shards = list(_shards(arrays, shard_bytes))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _safetensors({name: arrays[name] for name in shard}, directory / file)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(int(array.nbytes) for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return directory


def _shards(arrays: Mapping[str, Any], shard_bytes: int) -> Iterator[list[str]]:
    """Names in their order, cut where the next array would not fit; one that is larger has a file of its own."""
    names: list[str] = []
    size_bytes = 0
    for name, array in arrays.items():
        if names and size_bytes + array.nbytes > shard_bytes:
            yield names
            names, size_bytes = [], 0
        names.append(name)
        size_bytes += array.nbytes
    yield names
