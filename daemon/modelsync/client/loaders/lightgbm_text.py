"""What a LightGBM model must be before LightGBM sees it: its code follows every index in the file unchecked, and what
its parser does not like it may throw from a thread that nobody catches, which ends the process.

Source: LightGBM's src/boosting/gbdt_model_text.cpp and the constructor of Tree in src/io/tree.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy

_CATEGORICAL = 1
"""The bit of ``decision_type``."""
_LEAST = 2.3e-308
"""The least number but zero that std::stod takes: it throws at lesser ones, and at larger ones than there are."""
_SPELLED = re.compile(r"[-+]?(?:0*\.?0*(?:e[-+]?\d{1,3})?|inf|nan)", re.IGNORECASE)


_PARAMETER = re.compile(rb"\[[^:]+: .*\]")
"""LightGBM takes what is on both sides of the colon without asking whether there is one."""


def check(data: bytes | bytearray, stand_back: Callable[[], None] = lambda: None) -> None:
    """Raises ValueError: no model of LightGBM, or one whose numbers lead outside of it.

    Args:
        stand_back: called between pieces of work that take half a millisecond or less, most of them.
    """
    _require(data.startswith(b"tree\n"), "no LightGBM model")
    begin = data.find(b"\nTree=") + 1
    if begin == 0:
        raise ValueError("it has no trees")
    try:
        head = _fields(data[5:begin])
        sizes = [int(size) for size in head["tree_sizes"].split()]
        features = _check_head(head, len(sizes))
        for number, size in enumerate(sizes):
            tree = _tree(data, begin, size, number)
            stand_back()
            fields = _fields(tree)
            stand_back()
            _check_tree(fields, features, stand_back)
            begin += size
        _check_tail(data[begin:])
    except (KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"no LightGBM model: {type(error).__name__} {error}"[:200]) from error


def _fields(text: bytes | bytearray) -> dict[str, str]:
    _check_ends(text)
    found: dict[str, str] = {}
    for line in text.decode().split("\n"):
        name, equals, value = line.partition("=")
        if name in found and equals:
            raise ValueError(f"{name[:40]!r} twice")
        if equals:
            found[name] = value
    return found


def _check_ends(text: bytes | bytearray) -> None:
    """LightGBM's text ends at a zero byte, and its lines at a carriage return: it would count other bytes than we."""
    _require(b"\0" not in text and b"\r" not in text, "a zero byte or a carriage return")


def _tree(data: bytes | bytearray, begin: int, size: int, number: int) -> bytes | bytearray:
    """What LightGBM takes for a tree: it is told by the sizes in the head, not by the text."""
    tree = data[begin : begin + max(0, size)]
    _require(tree.startswith(b"Tree=%d\n" % number) and tree.count(b"Tree=") == 1, "sizes of trees that are not theirs")
    _require(b"parameters:" not in tree, "parameters among its trees")
    return tree.partition(b"\n")[2]


def _check_tail(tail: bytes | bytearray) -> None:
    """What follows the trees: of LightGBM's parameters each must be in brackets, name and value."""
    _require(tail.startswith(b"end of trees"), "sizes of trees that are not theirs, or cut off")
    _check_ends(tail)
    _, begun, parameters = tail.partition(b"\nparameters:\n")
    if begun:
        parameters, ended, _ = (b"\n" + parameters + b"\n").partition(b"\nend of parameters\n")
        _require(bool(ended), "cut off among its parameters")
        for line in parameters.split(b"\n"):
            _require(not line or bool(_PARAMETER.fullmatch(line)), "a parameter without name or value")
    tail.decode()


def _check_head(head: Mapping[str, str], trees: int) -> int:
    """Returns how many features a row has."""
    classes, of_round = int(head["num_class"]), int(head["num_tree_per_iteration"])
    _require(1 <= classes <= max(1, trees), "more classes than trees")
    _require(of_round in (1, classes) and trees % of_round == 0, "rounds that are not whole")
    for word in head.get("objective", "").split():
        if word.startswith("num_class:"):
            _require(int(word.partition(":")[2]) == classes, "an objective of another number of classes")
    features = int(head["max_feature_idx"]) + 1
    named = len(head["feature_names"].split())
    _require(named == features == len(head["feature_infos"].split()), "another number of features than it names")
    return features


def _check_tree(tree: Mapping[str, str], features: int, stand_back: Callable[[], None]) -> None:
    for values in tree.values():
        _check_numbers(values.split())
        stand_back()
    leaves = int(tree["num_leaves"])
    _require(leaves >= 1 and _count(tree, "leaf_value") == leaves, "another number of leaves than it says")
    inner = leaves - 1
    stand_back()
    left = _whole(tree, "left_child", inner)
    stand_back()
    children = numpy.concatenate([left, _whole(tree, "right_child", inner)])
    stand_back()
    deeper = children[children >= 0]
    _require(_within(deeper, 1, inner) and numpy.unique(deeper).size == deeper.size, "children that are no tree")
    _require(_within(~children[children < 0], 0, leaves), "a leaf beyond its own")
    stand_back()
    _require(_within(_whole(tree, "split_feature", inner), 0, features), "a feature beyond its own number of them")
    _require(_count(tree, "threshold") == inner, "thresholds that are not one a node")
    stand_back()
    _check_categories(tree, inner)
    stand_back()
    if int(tree.get("is_linear", "0")):
        _check_linear(tree, leaves, features)


def _check_numbers(words: list[str]) -> None:
    read = numpy.array(words, "f8")
    odd = numpy.flatnonzero(~(numpy.isfinite(read) & (numpy.abs(read) >= _LEAST)))
    _require(all(_SPELLED.fullmatch(words[at]) for at in odd.tolist()), "a number too large or too small to be read")


def _check_categories(tree: Mapping[str, str], inner: int) -> None:
    kinds = _whole(tree, "decision_type", inner) if "decision_type" in tree else numpy.zeros(inner, "i8")
    count = int(tree["num_cat"])
    categorical = (kinds & _CATEGORICAL) != 0
    _require(count >= 0, "a negative number of sets of categories")
    if count == 0:
        _require(not categorical.any(), "a split without its categories")
        return
    sets = numpy.array(tree["threshold"].split(), "f8")[categorical]
    bounds = _whole(tree, "cat_boundaries", count + 1)
    _require(bool((sets == numpy.floor(sets)).all()) and _within(sets, 0, count), "categories beyond their list")
    _require(bounds[0] == 0 and bool((bounds[1:] >= bounds[:-1]).all()), "categories out of order")
    _require(bounds[-1] == _count(tree, "cat_threshold"), "categories beyond their list")


def _check_linear(tree: Mapping[str, str], leaves: int, features: int) -> None:
    sizes = _whole(tree, "num_features", leaves)
    _require(_within(sizes, 0, features + 1), "a leaf with more features than there are")
    of_leaves = _whole(tree, "leaf_features", int(sizes.sum()))
    _require(_within(of_leaves, 0, features), "a feature beyond its own number of them")
    _require(_count(tree, "leaf_coeff") == of_leaves.size, "coefficients that are not one a feature")
    _require(_count(tree, "leaf_const") == leaves, "constants that are not one a leaf")


def _count(tree: Mapping[str, str], name: str) -> int:
    return len(tree.get(name, "").split())


def _whole(tree: Mapping[str, str], name: str, count: int) -> Any:
    found = numpy.array(tree.get(name, "").split(), "i8")
    _require(found.size == count, f"{name} that are not {count:,}")
    return found


def _within(values: Any, low: int, beyond: int) -> bool:
    return values.size == 0 or bool(values.min() >= low and values.max() < beyond)


def _require(true: bool, said: str) -> None:
    if not true:
        raise ValueError(said)
