"""What an XGBoost model must be before XGBoost sees it: its code follows every index in the file unchecked.

A node number beyond the tree, a feature beyond the row or a class beyond the answer makes it read or write foreign
memory, which ends the process and all other models in it.

Source: XGBoost's doc/model.schema and src/tree/tree_model.cc.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy

from modelsync.client.loaders import ubjson

_MAX_CLASSES = 100_000
_NO_PARENT = (1 << 31) - 1


def check(data: bytes | bytearray, stand_back: Callable[[], None] = lambda: None) -> None:
    """Raises ValueError: no model of XGBoost, or one whose numbers lead outside of it.

    Args:
        stand_back: called between pieces of work that take a millisecond or less, most of them; JSON is read at one go.
    """
    try:
        _check_learner(_decoded(data, stand_back)["learner"], stand_back)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"no model of XGBoost: {type(error).__name__} {error}"[:200]) from error


def _decoded(data: bytes | bytearray, stand_back: Callable[[], None]) -> Any:
    if data[1:2] in (b"L", b"i", b"U", b"I", b"l"):
        return ubjson.decode(data, stand_back)
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _check_learner(learner: Mapping[str, Any], stand_back: Callable[[], None]) -> None:
    sizes = learner["learner_model_param"]
    features = int(sizes["num_feature"])
    classes, targets = int(sizes["num_class"]), int(sizes.get("num_target", 1))
    groups = max(1, classes, targets)
    _require(0 <= features < 1 << 31, "a number of features that cannot be")
    _require(classes >= 0 and targets >= 1 and groups <= _MAX_CLASSES, "a number of classes that cannot be")
    for name, parameters in learner["objective"].items():
        if isinstance(parameters, Mapping) and "num_class" in parameters:
            of_objective = int(parameters["num_class"])
            _require(of_objective in (0, 1, groups), f"{name} of another number of classes")
    booster = learner["gradient_booster"]
    if booster["name"] == "gblinear":
        weights = _numbers(booster["model"]["weights"])
        _require(weights.size == (features + 1) * groups, "weights that are not one a feature and class")
        return
    _require(booster["name"] in ("gbtree", "dart"), f"the booster {booster['name']!r}")
    model = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    _check_forest(model, features, groups, stand_back)
    if booster["name"] == "dart":
        _require(_numbers(booster["weight_drop"]).size == len(model["trees"]), "weights that are not one a tree")


def _check_forest(model: Mapping[str, Any], features: int, groups: int, stand_back: Callable[[], None]) -> None:
    trees = model["trees"]
    _require(int(model["gbtree_model_param"]["num_trees"]) == len(trees), "another number of trees than it says")
    of_group = _whole(model["tree_info"])
    _require(of_group.size == len(trees) and _within(of_group, 0, groups), "trees of a class that is not there")
    rounds = _whole(model.get("iteration_indptr", []))
    _require(_within(rounds, 0, len(trees) + 1) and bool((rounds[1:] >= rounds[:-1]).all()), "rounds beyond its trees")
    for number, tree in enumerate(trees):
        _require(int(tree.get("id", number)) == number, "trees out of order")
        _check_tree(tree, features, groups)
        stand_back()


def _check_tree(tree: Mapping[str, Any], features: int, groups: int) -> None:
    sizes = tree["tree_param"]
    nodes, leaf_size = int(sizes["num_nodes"]), max(1, int(sizes.get("size_leaf_vector", 1)))
    left, right = _whole(tree["left_children"]), _whole(tree["right_children"])
    _require(int(sizes["num_feature"]) in (0, features), "a tree of another number of features")
    _require(nodes >= 1 and left.size == right.size == nodes, "another number of nodes than it says")
    _require(leaf_size in (1, groups), "leaves of another size than its answers")
    for name in ("split_indices", "split_conditions", "default_left", "parents"):
        _require(_numbers(tree[name]).size == nodes, f"{name} that are not one a node")
    _require(_numbers(tree["base_weights"]).size in (nodes, nodes * leaf_size), "weights that are not one a node")
    inner = left != -1
    _require(_ends(tree, right[~inner], leaf_size), "a node with one child, or a leaf beyond their list")
    children = numpy.concatenate([left[inner], right[inner]])
    _require(_within(children, 1, nodes) and numpy.unique(children).size == children.size, "children that are no tree")
    _require(_leads_back(_whole(tree["parents"]), left, right, inner), "parents that are not theirs")
    _require(
        _within(_whole(tree["split_indices"])[inner], 0, max(features, 1)), "a feature beyond its own number of them"
    )
    _check_categories(tree, nodes)


def _leads_back(parents: Any, left: Any, right: Any, inner: Any) -> bool:
    """Whether each child names its parent, and whatever else stands there is no node beyond the tree."""
    nodes = numpy.flatnonzero(inner)
    named = bool((parents[left[inner]] == nodes).all() and (parents[right[inner]] == nodes).all())
    return named and parents[0] in (-1, _NO_PARENT) and _within(parents[parents != _NO_PARENT], -1, parents.size)


def _ends(tree: Mapping[str, Any], right: Any, leaf_size: int) -> bool:
    """Whether nodes without a left child are leaves. Those of several numbers say at the right where these stand."""
    if leaf_size == 1 or "leaf_weights" not in tree:
        return bool((right == -1).all())
    weights = _numbers(tree["leaf_weights"])
    return weights.size % leaf_size == 0 and _within(right, 0, weights.size // leaf_size)


def _check_categories(tree: Mapping[str, Any], nodes: int) -> None:
    kinds = _whole(tree.get("split_type", []))
    of_nodes, begins = _whole(tree.get("categories_nodes", [])), _whole(tree.get("categories_segments", []))
    sizes, categories = _whole(tree.get("categories_sizes", [])), _whole(tree.get("categories", []))
    _require(kinds.size in (0, nodes) and _within(kinds, 0, 2), "a kind of split that there is not")
    _require(of_nodes.size == begins.size == sizes.size and _within(of_nodes, 0, nodes), "categories of no node")
    _require(bool((begins >= 0).all() and (sizes >= 0).all()), "categories of a negative number")
    _require(bool((begins + sizes <= categories.size).all()), "categories beyond their list")
    _require(_within(categories, 0, 1 << 24), "a category that cannot be")
    _require(set(numpy.flatnonzero(kinds == 1).tolist()) <= set(of_nodes.tolist()), "a split without its categories")


def _numbers(values: Any) -> Any:
    found = numpy.asarray(values)
    _require(found.ndim == 1 and (found.size == 0 or found.dtype.kind in "iufb"), "something else where numbers stand")
    return found


def _whole(values: Any) -> Any:
    found = _numbers(values)
    _require(found.size == 0 or found.dtype.kind in "iub", "fractions where whole numbers stand")
    return found.astype("i8")


def _within(values: Any, low: int, beyond: int) -> bool:
    return values.size == 0 or bool(values.min() >= low and values.max() < beyond)


def _require(true: bool, said: str) -> None:
    if not true:
        raise ValueError(said)
