"""A load beside requests: how it works and sleeps, and how a large model is freed."""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from modelsync.client import taking_apart
from modelsync.client.entry import Entry
from modelsync.client.loaders.boosters import LightGbmLoader, XgboostLoader
from modelsync.client.loaders.contract import LoadContext
from modelsync.client.loaders.pickles import JoblibLoader, PickleLoader
from modelsync.client.pacing import ASKED_S, LONGEST_S, SLICE_S, UNWAITED_REST, WAITED_REST, Pace
from modelsync.client.taking_apart import LARGE_BYTES, Remains, parts_of

PIECE_S = SLICE_S / 4


class Work:
    """A load under clocks of its own: ``step`` is a piece of work, sleeping passes the time."""

    def __init__(self, rest: float) -> None:
        self.now_s, self.worked_s = 100.0, 3.0
        self.asked = 7
        self.slept: list[float] = []
        self.pace = Pace(lambda: self.asked, rest, lambda: self.now_s, lambda: self.worked_s, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def step(self, seconds: float = PIECE_S) -> None:
        self.now_s += seconds
        self.worked_s += seconds
        self.pace.stand_back()


def test_beside_nobody_a_load_never_sleeps() -> None:
    work = Work(WAITED_REST)
    for _ in range(10_000):
        work.step()
    assert work.slept == []


@pytest.mark.parametrize("rest", [WAITED_REST, UNWAITED_REST])
def test_beside_requests_it_sleeps_after_each_slice_and_takes_so_many_times_as_long(rest: float) -> None:
    work = Work(rest)
    worked_s = 0.0
    while worked_s < 1.0:
        work.asked += 1
        work.step()
        worked_s += PIECE_S
    assert sum(work.slept) == pytest.approx(rest * worked_s, rel=0.02)
    assert max(work.slept) <= rest * 2 * SLICE_S, "each sleep is that of one slice"


def test_a_second_after_the_last_request_it_sleeps_no_more() -> None:
    work = Work(WAITED_REST)
    work.asked += 1
    ends_s = work.now_s + ASKED_S
    while work.now_s < ends_s + 1:
        work.step()
    slept = len(work.slept)
    assert slept > 0
    for _ in range(1000):
        work.step()
    assert len(work.slept) == slept


def test_a_piece_that_took_long_is_not_slept_off_in_full() -> None:
    """A library that took a minute under Python's lock: nobody is helped by minutes of sleep."""
    work = Work(WAITED_REST)
    work.asked += 1
    work.step(60)
    assert work.slept == [LONGEST_S * WAITED_REST]


def test_waiting_is_no_work() -> None:
    """For a peer that sends a shard, or for the lock that requests have: nothing is to be made good."""
    work = Work(WAITED_REST)
    for _ in range(100):
        work.asked += 1
        work.now_s += 10
        work.pace.stand_back()
    assert work.slept == []


def counted(context: LoadContext) -> list[int]:
    """Counts how often a load stands back."""
    times = [0]

    def stand_back() -> None:
        times[0] += 1

    context.stand_back = stand_back
    return times


@pytest.mark.parametrize("how", ["mapped", "compressed", "nested", "pickle"])
def test_large_files_stand_back_often_enough(tmp_path: Path, how: str) -> None:
    """Each format's library builds a thousand small objects here: they may not be built at one go."""
    trees: Any = [{"nodes": np.arange(400.0) + number, "name": f"tree {number}"} for number in range(1000)]
    if how == "nested":  # gradient boosting keeps its trees in an array of objects, a pickle within the file
        nested = np.empty(1000, dtype=object)
        nested[:] = trees
        trees = nested
    name = "m.pkl" if how == "pickle" else "m.joblib"
    if how == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(trees))
    else:
        joblib.dump(trees, tmp_path / name, compress=("zlib", 1) if how == "compressed" else 0)
    context = LoadContext("m", 1, {}, {name: os.stat(tmp_path / name).st_size})
    times = counted(context)
    loaded: Any = (PickleLoader() if how == "pickle" else JoblibLoader()).load(tmp_path, context)
    assert [each["name"] for each in loaded] == [f"tree {number}" for number in range(1000)]
    assert all(np.array_equal(each["nodes"], np.arange(400.0) + number) for number, each in enumerate(loaded))
    assert times[0] >= 1000 if how == "mapped" else context.files[name] >> 16


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_boosters_are_looked_through_tree_by_tree(tmp_path: Path, library: str) -> None:
    module = pytest.importorskip(library)
    rows, labels = np.arange(100.0).reshape(50, 2), np.arange(50) % 2
    if library == "lightgbm":
        options = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 1, "objective": "binary"}
        name, booster = "m.lgb", module.train(options, module.Dataset(rows, labels), 40)
    else:
        name, booster = "m.ubj", module.train({"nthread": 1}, module.DMatrix(rows, labels), 40)
    booster.save_model(tmp_path / name)
    context = LoadContext("m", 1, {}, {name: os.stat(tmp_path / name).st_size})
    times = counted(context)
    loader = LightGbmLoader() if library == "lightgbm" else XgboostLoader()
    loaded: Any = loader.load(tmp_path, context)
    assert len(loaded.predict(rows)) == 50
    assert times[0] >= 2 * 40


def test_a_file_is_read_in_pieces(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "m").write_bytes(data)
    context = LoadContext("m", 1, {}, {"m": len(data)})
    times = counted(context)
    assert context.read(tmp_path / "m") == data
    assert times[0] >= 3, "a piece is a MiB"
    (tmp_path / "m").write_bytes(b"")
    assert context.read(tmp_path / "m") == b""


class Tree:
    def __init__(self) -> None:
        self.nodes = np.zeros(10)


class Forest:
    def __init__(self, trees: int) -> None:
        self.estimators_ = [Tree() for _ in range(trees)]
        self.name = "forest"


def entry_of(model: Any, size_bytes: int = LARGE_BYTES) -> Entry:
    return Entry(None, model, len, None, size_bytes)


def test_a_large_model_goes_at_once_and_its_trees_one_by_one() -> None:
    entry = entry_of(Forest(100))
    forest, trees = weakref.ref(entry.model), [weakref.ref(tree) for tree in entry.model.estimators_]
    remains = Remains(entry)
    del entry
    assert forest() is None
    left = []
    remains.free(lambda: left.append([tree() is not None for tree in trees]))
    steps = [gone for gone, before in zip(left[1:], left, strict=False) if gone != before]
    assert steps == [[True] * kept + [False] * (100 - kept) for kept in range(99, -1, -1)], (
        "one tree at a time, backwards"
    )


def test_a_version_in_use_loses_nothing_and_is_freed_bit_by_bit_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    freed_on = []
    free, ended = taking_apart.free, threading.Event()

    def noted(parts: list[Any], stand_back: Any) -> None:
        free(parts, stand_back)
        freed_on.append(threading.current_thread().name)
        ended.set()

    monkeypatch.setattr(taking_apart, "free", noted)
    used = entry_of(Forest(50))
    trees = [weakref.ref(tree) for tree in used.model.estimators_]
    Remains(used).free(lambda: None)
    assert all(tree() is not None for tree in trees)
    del used
    assert ended.wait(30)
    assert not any(tree() is not None for tree in trees)
    assert freed_on == ["modelsync-free"], "not on the thread of the request that used it last"


def test_small_models_are_not_looked_at() -> None:
    class Touchy:
        @property
        def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
            raise AssertionError("looked at")

    Remains(entry_of(Touchy(), LARGE_BYTES - 1)).free(lambda: None)
    assert parts_of(Touchy()) == [], "what an attribute raises is the model's own affair"


def test_parts_are_bounded_and_cycles_end() -> None:
    wide: list[Any] = [[number] for number in range(100_000)]
    wide.append(wide)
    assert len(parts_of(wide)) == 2000
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    assert len(parts_of(deep)) == 500


def test_what_loads_when_it_is_looked_at_is_not_loaded() -> None:
    class Lazy(dict[str, Any]):
        def values(self) -> Any:
            raise AssertionError("asked for its values")

        def __iter__(self) -> Any:
            raise AssertionError("gone through")

    assert parts_of({"lazy": Lazy(shard=[1])})[:-1] == [[1]]
