"""The formats that are known, and which of them a version is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelsync.client.loaders.arrays import NpyLoader, NpzLoader, ShardedArraysLoader
from modelsync.client.loaders.boosters import LightGbmLoader, XgboostLoader
from modelsync.client.loaders.contract import LoadContext, Loader
from modelsync.client.loaders.directory import DirectoryLoader
from modelsync.client.loaders.onnx import OnnxLoader
from modelsync.client.loaders.pickles import JoblibLoader, PickleLoader
from modelsync.client.loaders.skops import SkopsLoader
from modelsync.client.loaders.tensors import SafetensorsLoader, ShardedTensorsLoader

KNOWN: tuple[Loader, ...] = (
    ShardedTensorsLoader(),
    SafetensorsLoader(),
    OnnxLoader(),
    SkopsLoader(),
    XgboostLoader(),
    LightGbmLoader(),
    JoblibLoader(),
    PickleLoader(),
    NpzLoader(),
    NpyLoader(),
    ShardedArraysLoader(),
    DirectoryLoader(),
)
"""In the order in which they are asked: the more special first, a plain directory last."""


def choose(own: Sequence[Loader], path: Path, context: LoadContext) -> Loader:
    """The loader of a version: the application's own are asked first, a plain directory takes what is left."""
    return next(loader for loader in (*own, *KNOWN) if loader.matches(path, context))
