"""Successive versions of models for the delta benchmark: synthetic edits, and models that are trained here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
from payload import write_random
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier

MIB = 1 << 20
BLOCK = 4 << 20


def changed_blocks(old: Path, new: Path) -> None:
    """1 % of the blocks of 1 MiB."""
    source, size = random.Random(2), old.stat().st_size
    chosen = set(source.sample(range(size // MIB), max(1, size // MIB // 100)))
    with old.open("rb") as before, new.open("wb") as after:
        for index in range(-(-size // MIB)):
            data = before.read(MIB)
            after.write(source.randbytes(len(data)) if index in chosen else data)


def inserted(old: Path, new: Path) -> None:
    """64 bytes at offset 1,000."""
    with old.open("rb") as before, new.open("wb") as after:
        after.write(before.read(1000) + random.Random(3).randbytes(64))
        while data := before.read(BLOCK):
            after.write(data)


def edited(root: Path, size_bytes: int, edit: Callable[[Path, Path], None]) -> Iterator[Path]:
    """Bytes that nothing can compress, edited once."""
    write_random(root / "before", size_bytes)
    yield root / "before"
    edit(root / "before", root / "after")
    yield root / "after"


def _safetensors(path: Path, tensors: dict[str, np.ndarray], note: str = "") -> None:
    """The format's own three parts: length of the head, head as JSON, the tensors one after another."""
    head, at = {"__metadata__": {"note": note}} if note else {}, 0
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "float16": "F16"}[str(tensor.dtype)]
        head[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def _layers(size_bytes: int) -> dict[str, np.ndarray]:
    source, count = np.random.default_rng(4), 16
    width = int((size_bytes / count / 2) ** 0.5)
    return {f"layer.{n}": source.normal(0, 0.02, (width, width)).astype(np.float16) for n in range(count)}


def one_tensor(root: Path, size_bytes: int) -> Iterator[Path]:
    """One tensor of 16 trained further, the head as it was."""
    tensors = _layers(size_bytes)
    for number in range(3):
        yield _written(root / f"one-{number}", lambda path: _safetensors(path, tensors))
        tensors[f"layer.{5 + number}"] = tensors[f"layer.{5 + number}"] + np.float16(0.01)


def new_head(root: Path, size_bytes: int) -> Iterator[Path]:
    """A body that stays, a classifier that grows a class each time; the head's text grows, so everything moves."""
    tensors, source = _layers(size_bytes), np.random.default_rng(5)
    for number in range(3):
        head = {"head": source.normal(0, 0.02, (512, 1000 + number)).astype(np.float32)}
        yield _written(
            root / f"head-{number}", lambda path, h=head, n=number: _safetensors(path, h | tensors, "tuned " * n)
        )


def retrained_forest(root: Path) -> Iterator[Path]:
    """A forest that is trained anew on more data: every tree differs."""
    yield from _trained(root, "forest", lambda n: RandomForestClassifier(300, random_state=0))


def grown_forest(root: Path) -> Iterator[Path]:
    """The same forest with 100 trees more each time (warm start)."""
    data, target = load_digits(return_X_y=True)
    forest = RandomForestClassifier(300, warm_start=True, random_state=0)
    for number in range(3):
        forest.set_params(n_estimators=300 + 100 * number).fit(data, target)
        yield _written(root / f"grown-{number}", lambda path: joblib.dump(forest, path))


def retrained_network(root: Path) -> Iterator[Path]:
    """A perceptron that goes on training: every weight differs."""
    yield from _trained(root, "network", lambda n: MLPClassifier((512, 512), max_iter=5 + n, tol=0, random_state=0))


def _trained(root: Path, name: str, make: Callable[[int], object]) -> Iterator[Path]:
    data, target = load_digits(return_X_y=True)
    for number in range(3):
        model = make(number)
        rows = len(data) - 200 + 100 * number
        model.fit(data[:rows], target[:rows])  # type: ignore[attr-defined]
        yield _written(root / f"{name}-{number}", lambda path, m=model: joblib.dump(m, path))


def _written(path: Path, write: Callable[[Path], object]) -> Path:
    write(path)
    return path
