"""What a single name in the models directory tells by itself: hidden, a marker, a model's file, a version's number.

This file alone knows suffixes and other people's naming habits. What the names mean together is `layout`'s question.
"""

from __future__ import annotations

from modelsync.core import ids
from modelsync.core.errors import BadName
from modelsync.core.ids import Version

_SUFFIXES = (
    *("joblib", "pkl", "pickle", "dill", "skops", "npz", "npy", "safetensors", "onnx", "pmml", "gguf", "ggml", "bin"),
    *("ubj", "xgb", "json", "txt", "lgb", "model", "cbm", "pt", "pth", "ckpt", "msgpack", "tflite", "h5", "hdf5"),
    *("keras", "pb", "mlmodel", "engine", "plan", "tar.gz", "tgz", "tar", "zip"),
)
MODEL_SUFFIXES = frozenset(_SUFFIXES)
"""How a file at the top of the models directory must end to be a model by itself (upper case counts as well)."""

DOCUMENTS = frozenset({"readme", "license", "licence", "notice", "changelog", "requirements", "authors", "copying"})
"""Texts that lie beside models. ``.txt`` and ``.json`` are also how LightGBM and XGBoost save, so the name decides."""

_TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".swp", ".swx", ".crdownload", ".filepart", ".download", "~")
MARKERS = frozenset({"_SUCCESS", ".complete"})
"""Files that a writer makes last, to say that the rest is there (Hadoop's committers; DESIGN, section 3)."""


def is_ignored(name: str) -> bool:
    """Whether one name (not a path) is of something hidden, unfinished or the file system's own: not even refused."""
    return name.startswith(".") or name.lower().endswith(_TEMPORARY) or name == "lost+found"


def is_marker(path: str) -> bool:
    """Whether a path's last part is a marker's name."""
    return path.rpartition("/")[2] in MARKERS


def model_of(name: str) -> str | None:
    """The model that a single file's name stands for; None where the suffix is not a model's."""
    stem, _, suffix = name.rpartition(".")
    if stem.lower().endswith(".tar"):
        stem, suffix = stem[:-4], f"tar.{suffix}"
    return stem if stem and suffix.lower() in MODEL_SUFFIXES else None


def shown(path: str) -> str:
    """A path that a terminal, a log and JSON can take: control characters and undecodable bytes are escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def as_number(name: str) -> Version | None:
    """A directory's name as a version; None unless it is the number's one canonical text."""
    try:
        return ids.version(name)
    except BadName:
        return None
