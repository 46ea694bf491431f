"""What is looked for in LightGBM's and XGBoost's files before their libraries see them. Real models of each kind pass;
each kind of lie, any of which ends the process when the library is handed it, is refused."""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from modelsync.client.loaders import lightgbm_text, ubjson, xgboost_document

RANDOM = numpy.random.default_rng(7)
ROWS = RANDOM.normal(size=(300, 4))
ROWS[:, 1] = RANDOM.integers(0, 5, 300)
LABELS = (ROWS[:, 0] + (ROWS[:, 1] == 2) > 0).astype(int)
CLASSES = (ROWS[:, 1] % 3).astype(int)
LEAST = {"verbosity": -1, "num_threads": 1, "num_leaves": 6}


def light(labels: Any = LABELS, rounds: int = 3, **options: Any) -> str:
    categorical = options.pop("categorical", [])
    data = lightgbm.Dataset(ROWS, labels, categorical_feature=categorical, free_raw_data=False)
    return str(lightgbm.train({**LEAST, "objective": "binary", **options}, data, rounds).model_to_string())


def extreme(labels: Any = LABELS, kinds: Any = None, **options: Any) -> xgboost.Booster:
    data = xgboost.DMatrix(ROWS, labels, feature_types=kinds, enable_categorical=kinds is not None)
    return xgboost.train({"nthread": 1, "max_depth": 3, **options}, data, 3)


LIGHT: dict[str, Callable[[], str]] = {
    "binary": light,
    "classes": lambda: light(CLASSES, objective="multiclass", num_class=3),
    "categories": lambda: light(categorical=[1], min_data_per_group=1, cat_smooth=1),
    "linear": lambda: light(objective="regression", linear_tree=True),
    "forest": lambda: light(boosting="rf", bagging_freq=1, bagging_fraction=0.5),
    "dart": lambda: light(boosting="dart"),
    "one leaf": lambda: light(numpy.zeros(300), objective="regression"),
    "ranking": lambda: str(
        lightgbm.train(
            {**LEAST, "objective": "lambdarank"}, lightgbm.Dataset(ROWS, LABELS, group=[100, 200]), 2
        ).model_to_string()
    ),
}
EXTREME: dict[str, Callable[[], xgboost.Booster]] = {
    "regression": extreme,
    "classes": lambda: extreme(CLASSES, objective="multi:softprob", num_class=3),
    "labels": lambda: extreme(CLASSES, objective="multi:softmax", num_class=3),
    "categories": lambda: extreme(kinds=["q", "c", "q", "q"], max_cat_to_onehot=1),
    "dart": lambda: extreme(booster="dart"),
    "linear": lambda: extreme(booster="gblinear"),
    "many targets": lambda: extreme(ROWS[:, :2]),
    "leaves of many targets": lambda: extreme(ROWS[:, :2], multi_strategy="multi_output_tree", tree_method="hist"),
    "parallel trees": lambda: extreme(num_parallel_tree=2, subsample=0.5),
}


@pytest.mark.parametrize("kind", LIGHT)
def test_real_models_of_lightgbm_pass(kind: str) -> None:
    lightgbm_text.check(LIGHT[kind]().encode())


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize("kind", EXTREME)
def test_real_models_of_xgboost_pass(kind: str, form: str) -> None:
    xgboost_document.check(bytes(EXTREME[kind]().save_raw(form)))


# --- lies ----------------------------------------------------------------------------------------------------------


def resized(text: str) -> str:
    """The same with sizes of trees that are true, so that only the lie is left to find."""
    head, rest = text.split("\n\nTree=0", 1)
    trees, tail = ("Tree=0" + rest).split("end of trees", 1)
    sizes = " ".join(str(len(each.encode())) for each in re.split(r"(?=Tree=\d+\n)", trees)[1:])
    return re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", head) + "\n\n" + trees + "end of trees" + tail


LIGHT_LIES = {
    "a leaf too many": (r"num_leaves=\d+", "num_leaves=2000000000"),
    "no leaf": (r"num_leaves=\d+", "num_leaves=-1"),
    "a feature beyond": (r"split_feature=\d+", "split_feature=4"),
    "a child beyond": (r"left_child=-?\d+", "left_child=100000000"),
    "a leaf beyond": (r"left_child=-?\d+", "left_child=-7"),
    "a loop": (r"left_child=-?\d+", "left_child=0"),
    "a child of two": (r"right_child=-?\d+ -?\d+", "right_child=1 1"),
    "classes without trees": (r"num_class=\d+", "num_class=200000000"),
    "an objective of more classes": (r"objective=.*", "objective=multiclass num_class:1000"),
    "features without names": (r"max_feature_idx=\d+", "max_feature_idx=2000000000"),
    "a name twice": (r"num_leaves=(\d+)", r"num_leaves=\1\nnum_leaves=2000000000"),
    "thresholds missing": (r"threshold=\S+", "threshold="),
    "a category beyond": (r"cat_boundaries=0 1", "cat_boundaries=0 90000000"),
    "a set of categories beyond": (r"num_cat=[1-9]", "num_cat=0"),
    "a negative number of sets": (r"num_cat=[1-9]", "num_cat=-1"),
    "a number too small": (r"leaf_value=\S+", "leaf_value=1e-5000"),
    "a number too large": (r"leaf_value=\S+", "leaf_value=1e5000"),
    "no number": (r"left_child=-?\d+", "left_child=x"),
}


@pytest.mark.parametrize("lie", LIGHT_LIES)
def test_a_lie_of_lightgbm_is_refused(lie: str) -> None:
    true = LIGHT["categories"]()
    told = re.sub(*LIGHT_LIES[lie], true)
    assert told != true
    lightgbm_text.check(resized(true).encode())
    with pytest.raises(ValueError):
        lightgbm_text.check(resized(told).encode())


PARAMETERS_LIES = {
    "cut off within": lambda text: text[: text.index("[num_leaves") + 10],
    "cut off before their end": lambda text: text[: text.index("end of parameters")],
    "no value": lambda text: text.replace("[num_leaves: 6]", "[num_leaves]"),
    "no bracket": lambda text: text.replace("[num_leaves: 6]", "[num_leaves: 6"),
    "nothing before the colon": lambda text: text.replace("[num_leaves: 6]", ":"),
    "by a carriage return": lambda text: text.replace("[num_leaves: 6]", "[num_leaves: 6]\rx"),
    "among the trees": lambda text: resized(text.replace("leaf_value", "\nparameters:\nleaf_value", 1)),
    "behind what is no end": lambda text: text.replace("end of parameters", "end of parameters.\nx\nend of parameters"),
    "a number of classes behind a carriage return": lambda text: text.replace("Column_3", "Column_3\rnum_class=9", 1),
    "behind a zero byte": lambda text: text.replace("[num_leaves: 6]", "[num_leaves\0: 6]"),
    "a zero byte among the names": lambda text: text.replace("Column_1", "Column_\0", 1),
}
"""Of what the library looks for there without asking whether it is there."""


@pytest.mark.parametrize("lie", PARAMETERS_LIES)
def test_parameters_that_lightgbm_would_read_beyond_are_refused(lie: str) -> None:
    true = light()
    told = PARAMETERS_LIES[lie](true)
    assert told != true and "[num_leaves: 6]" in true
    with pytest.raises(ValueError):
        lightgbm_text.check(told.encode())


def test_a_model_without_parameters_is_one_of_an_older_lightgbm() -> None:
    text = light()
    lightgbm_text.check((text[: text.index("\nparameters:")] + "\n").encode())


@pytest.mark.parametrize("sizes", ["1 2 3", "-5 10 10", "", "9999999999 1 1"])
def test_sizes_of_trees_that_lead_elsewhere_are_refused(sizes: str) -> None:
    with pytest.raises(ValueError):
        lightgbm_text.check(re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", light()).encode())


def _tree(document: Any) -> Any:
    return next(tree for tree in document["learner"]["gradient_booster"]["model"]["trees"] if tree["categories"])


def _with(name: str, index: int, value: Any) -> Callable[[Any], None]:
    def lie(document: Any) -> None:
        _tree(document)[name][index] = value

    return lie


EXTREME_LIES: dict[str, Callable[[Any], Any]] = {
    "a node too many": lambda it: _tree(it)["tree_param"].update(num_nodes="2000000000"),
    "a feature beyond": _with("split_indices", 0, 4),
    "a child beyond": _with("left_children", 0, 1_000_000_000),
    "a negative child": _with("left_children", 0, -2),
    "a loop": _with("left_children", 0, 0),
    "one child": _with("left_children", 0, -1),
    "a parent beyond": _with("parents", 1, 1_000_000),
    "a root with a parent": _with("parents", 0, 2),
    "features of a tree": lambda it: _tree(it)["tree_param"].update(num_feature="1000"),
    "a negative number of targets": lambda it: it["learner"]["learner_model_param"].update(num_target="-1"),
    "trees out of order": lambda it: _tree(it).update(id=7),
    "a fraction": _with("left_children", 0, 1.5),
    "a word": _with("split_conditions", 0, "x"),
    "a node of categories beyond": _with("categories_nodes", 0, 100_000_000),
    "categories beyond": _with("categories_sizes", 0, 100_000_000),
    "a segment beyond": _with("categories_segments", 0, 100_000_000),
    "a negative segment": _with("categories_segments", 0, -9),
    "a category beyond": _with("categories", 0, 1 << 30),
    "a split without categories": lambda it: _tree(it).update(
        categories_nodes=[], categories_segments=[], categories_sizes=[]
    ),
    "a class beyond": lambda it: it["learner"]["gradient_booster"]["model"].update(tree_info=[0, 1_000_000, 0]),
    "rounds beyond": lambda it: it["learner"]["gradient_booster"]["model"].update(iteration_indptr=[0, 1, 2, 900]),
    "trees missing": lambda it: it["learner"]["gradient_booster"]["model"]["trees"].pop(),
    "another booster": lambda it: it["learner"]["gradient_booster"].update(name="other"),
    "classes beyond": lambda it: it["learner"]["learner_model_param"].update(num_class="2000000000"),
    "an objective of more classes": lambda it: it["learner"]["objective"].update(
        softmax_multiclass_param={"num_class": "1000"}
    ),
    "no learner": lambda it: it.pop("learner"),
    "a list": lambda it: it.update(learner=[]),
}


@pytest.mark.parametrize("lie", EXTREME_LIES)
def test_a_lie_of_xgboost_is_refused(lie: str) -> None:
    document = json.loads(bytes(EXTREME["categories"]().save_raw("json")))
    xgboost_document.check(json.dumps(document).encode())
    EXTREME_LIES[lie](document)
    with pytest.raises(ValueError):
        xgboost_document.check(json.dumps(document).encode())


@pytest.mark.parametrize("leaf", [-1, 4])
def test_a_leaf_of_several_numbers_lies_within_its_list(leaf: int) -> None:
    document = json.loads(bytes(EXTREME["leaves of many targets"]().save_raw("json")))
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["right_children"][tree["left_children"].index(-1)] = leaf * 2
    with pytest.raises(ValueError):
        xgboost_document.check(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":' + b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"learner": 1, "learner": 2}',
        b"{L" + struct.pack(">q", 1) + b"a[$d#L" + struct.pack(">q", 1 << 40),
        b"{L" + struct.pack(">q", -1) + b"a",
        b"{U\x01a" * 100_000,
        b"{U\x01a" + b"[" * 100_000,
        b"{U\x01aU\x01U\x01aU\x02}",
        b"{U\x01aQ}",
        b"{U",
        b"{U\x01a[$S#U\x01",
    ],
    ids=range(11),
)
def test_documents_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        xgboost_document.check(data)


@given(st.binary(max_size=200))
def test_noise_is_a_value_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        ubjson.decode(data)


def test_both_forms_are_read_alike() -> None:
    booster = extreme()
    text, binary = json.loads(bytes(booster.save_raw("json"))), ubjson.decode(bytes(booster.save_raw("ubj")))
    one, other = (each["learner"]["gradient_booster"]["model"]["trees"][0] for each in (text, binary))
    assert one["left_children"] == other["left_children"].tolist()
    assert one["tree_param"] == other["tree_param"]
