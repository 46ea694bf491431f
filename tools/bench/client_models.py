"""Models for the client's benchmarks, laid out as a daemon does; and what memory processes take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.livedir import LiveDir

MIB = 1 << 20
__all__ = ["MIB", "LiveDir", "arrays", "constant", "drop_caches", "forest", "pss_bytes", "rss_bytes", "spawn"]


def arrays(path: Path, size_bytes: int, parts: int = 8) -> Path:
    """A joblib file of a dictionary of arrays."""
    random = numpy.random.default_rng(7)
    each = size_bytes // parts // 8
    joblib.dump({f"layer{number}": random.standard_normal(each) for number in range(parts)}, path)
    return path


def forest(path: Path, size_bytes: int) -> Path:
    """A joblib file of a random forest of about this size: noise makes its trees grow."""
    rows, labels = make_classification(20_000, 20, flip_y=0.4, random_state=7)
    trees = 4
    while True:
        joblib.dump(RandomForestClassifier(trees, n_jobs=1, random_state=7).fit(rows, labels), path)
        if path.stat().st_size >= size_bytes * 0.9:
            return path
        trees = max(trees + 1, int(trees * size_bytes / path.stat().st_size))


def constant(path: Path, value: float) -> Path:
    """A small scikit-learn model that always answers ``value``."""
    rows = numpy.zeros((4, 3))
    joblib.dump(LinearRegression().fit(rows, numpy.full(4, float(value))), path)
    return path


def drop_caches(root: Path) -> None:
    """Have the kernel forget the pages of every file below."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _field(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def pss_bytes(pid: int) -> int:
    return _field(pid, "Pss")


def rss_bytes(pid: int) -> int:
    return _field(pid, "Rss")


def spawn(program: str, *words: object) -> subprocess.Popen[str]:
    """A Python of its own that imports what this one can."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'daemon'}:{root}:{Path(__file__).parent}"}
    command: list[Any] = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
