"""Models to ask: regression trees of very different sizes, each in two variants that answer the same row differently.

The second variant takes turns with the first when a model is swapped, so whoever knows a version's number knows what it
must answer; an answer that fits no version was mixed from two, or made up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from drive import Question
from sklearn.tree import ExtraTreeRegressor

FEATURES = 8
SMALLEST_ROWS, LARGEST_ROWS = 500, 40_000
"""A tree has about two nodes a row: 100 KB to 8 MB."""


@dataclass(frozen=True)
class Variants:
    """One model's two weights on disk."""

    question: Question
    paths: tuple[Path, Path]
    answers: tuple[float, float]

    @property
    def size_bytes(self) -> int:
        return max(path.stat().st_size for path in self.paths)


def train(count: int, seed: int, directory: Path) -> list[Variants]:
    """Fit them all; sizes are drawn so that popular models are not always small."""
    dice, table = random.Random(seed), np.random.default_rng(seed)
    rows = table.random((LARGEST_ROWS, FEATURES))
    made = []
    for number in range(count):
        some = int(SMALLEST_ROWS * (LARGEST_ROWS / SMALLEST_ROWS) ** dice.random())
        made.append(_variants(f"model-{number:02d}", rows[:some], table, directory))
    return made


def _variants(name: str, rows: np.ndarray, table: np.random.Generator, directory: Path) -> Variants:
    row = table.random(FEATURES)
    paths, answers = [], []
    for variant in "ab":
        tree = ExtraTreeRegressor(random_state=1).fit(rows, table.random(len(rows)))
        path = directory / variant / f"{name}.joblib"
        path.parent.mkdir(exist_ok=True)
        joblib.dump(tree, path)
        paths.append(path)
        answers.append(float(tree.predict([row])[0]))
    return Variants(Question(name, tuple(map(float, row))), (paths[0], paths[1]), (answers[0], answers[1]))
