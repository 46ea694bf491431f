"""What is said of a published model: any estimator is described, and nothing that it holds makes that fail."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as some
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from modelsync.core import canonical
from modelsync.core.errors import NotAModel
from modelsync.publishing import describe, parameters, schema, weights
from modelsync.publishing.call import publish

ROWS = np.arange(40.0).reshape(10, 4)
LABELS = np.array(["no", "yes"] * 5)


def as_json(value: Any) -> Any:
    """Through the very forms that it must survive: HTTP's JSON and the manifest's."""
    text = json.dumps(value, allow_nan=False)
    canonical.encode(canonical.with_floats_tagged(json.loads(text)))
    return json.loads(text)


def params(estimator: Any) -> Any:
    return as_json(parameters.parameters_of(estimator))


def test_a_forest_is_described_whole() -> None:
    forest = RandomForestClassifier(7, max_depth=np.int64(3), random_state=1).fit(ROWS, LABELS)
    forest.feature_names_in_ = np.array(["a", "b", "c", "d"], dtype=object)
    said = as_json(describe.completed(describe.describe_estimator(forest, "joblib"), 123, {"rows": 10}, None))
    assert said["class"] == "sklearn.ensemble._forest.RandomForestClassifier"
    assert said["framework"] == "scikit-learn"
    assert {"python", "numpy", "scikit-learn", "joblib"} == said["versions"].keys()
    assert said["params"]["n_estimators"] == 7 and said["params"]["max_depth"] == 3
    assert said["params"]["class_weight"] is None
    assert said["feature_names"] == ["a", "b", "c", "d"] and said["classes"] == ["no", "yes"]
    assert said["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}]
    assert said["outputs"] == [
        {"name": "predict", "datatype": "BYTES", "shape": [-1]},
        {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 2]},
    ]
    assert (said["format"], said["size_bytes"], said["training"]) == ("joblib", 123, {"rows": 10})


def test_a_pipeline_s_steps_are_named_and_their_parameters_flat() -> None:
    found = params(make_pipeline(StandardScaler(), LogisticRegression(C=0.5)))
    assert found["logisticregression__C"] == 0.5
    assert found["logisticregression"] == {"class": "sklearn.linear_model._logistic.LogisticRegression"}
    assert found["steps"][0] == ["standardscaler", {"class": "sklearn.preprocessing._data.StandardScaler"}]


def local_function(rows: Any) -> Any:
    return rows


class Hostile:
    """Everything that can be asked of it raises."""

    def get_params(self) -> Any:
        return {"self": self, "nested": [self] * 3}

    def __call__(self) -> None: ...

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def endless() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["again"] = [loop, loop, loop]
    return loop


class Given:
    def __init__(self, **params: Any) -> None:
        self.params = params

    def get_params(self) -> dict[str, Any]:
        return self.params


ODD = {
    "nan": (float("nan"), "nan"),
    "infinity": (np.float32("-inf"), "-inf"),
    "numpy_integer": (np.int64(5), 5),
    "numpy_bool": (np.bool_(True), True),
    "numpy_text": (np.str_("text"), "text"),
    "numpy_float": (np.float64(0.1), 0.1),
    "huge": (2**60, str(2**60)),
    "huger": (10**6000, "an integer of 19932 bits"),
    "bytes": (b"abc", {"bytes": 3}),
    "set": ({3, 1, 2}, [1, 2, 3]),
    "tuple": ((1, (2.5,)), [1, [2.5]]),
    "array": (np.array([1, 2]), [1, 2]),
    "large_array": (np.zeros((100, 3)), {"array": {"dtype": "float64", "shape": [100, 3]}}),
    "class": (SVC, {"class": "sklearn.svm._classes.SVC"}),
    "function": (len, {"function": "builtins.len"}),
    "partial": (functools.partial(len), {"class": "functools.partial"}),
    "surrogate": ("a\ud800b", "a\\ud800b"),
    "other_keys": ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "None": "b", "builtins.tuple": "c"}),
    "moment": (np.datetime64("2026-01-02"), "2026-01-02"),
    "complex": (1 + 2j, {"class": "builtins.complex"}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_parameters_are_described(name: str) -> None:
    given_, expected = ODD[name]
    assert params(Given(odd=given_))["odd"] == expected


def test_hostile_objects_are_named_and_not_asked() -> None:
    assert params(Given(x=Hostile()))["x"] == {"class": f"{__name__}.Hostile"}
    assert params(Hostile())["nested"] == [{"class": f"{__name__}.Hostile"}] * 3
    assert params(object()) == {}
    assert "class" in describe.describe_estimator(Hostile(), "joblib")
    assert len(json.dumps(params(Given(loop=endless())))) < 1_000_000
    assert len(json.dumps(params(Given(words={str(n): [n] * 50 for n in range(100_000)})))) < 1_000_000
    assert len(params(Given(text="x" * 10**6))["text"]) < 5000


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text() | some.binary(),
    lambda inner: some.lists(inner) | some.tuples(inner) | some.dictionaries(some.text() | some.integers(), inner),
)


@given(JSON)
def test_whatever_the_value_the_description_is_json_of_the_manifest_s_kind(value: Any) -> None:
    params(Given(x=value))


@pytest.mark.parametrize(
    ("estimator", "predict"),
    [
        (LinearRegression().fit(ROWS, ROWS[:, 0]), {"datatype": "FP64", "shape": [-1]}),
        (LinearRegression().fit(ROWS, ROWS[:, :2]), {"datatype": "FP64", "shape": [-1, 2]}),
        (KMeans(2, n_init=1).fit(ROWS), {"datatype": "INT32", "shape": [-1]}),
        (LogisticRegression().fit(ROWS, [0, 1] * 5), {"datatype": "INT64", "shape": [-1]}),
        (RandomForestClassifier(2).fit(ROWS, [[0, 1], [1, 0]] * 5), {"datatype": "INT64", "shape": [-1, 2]}),
    ],
    ids=["regression", "two outputs", "clusters", "classes", "two classes"],
)
def test_what_predict_gives(estimator: Any, predict: dict[str, Any]) -> None:
    outputs = schema.of_estimator(estimator)["outputs"]
    assert outputs[0] == {"name": "predict", **predict}
    answer = estimator.predict(ROWS)
    assert schema.datatype(answer.dtype) == predict["datatype"]
    assert answer.ndim == len(predict["shape"])


def test_a_schema_is_told_only_as_far_as_it_is_known() -> None:
    assert "inputs" not in schema.of_estimator(FunctionTransformer(local_function))
    assert schema.of_estimator(object()) == {}
    search = GridSearchCV(SVC(), {"C": [1, 2]}, cv=2).fit(ROWS, LABELS)
    names = [output["name"] for output in schema.of_estimator(search)["outputs"]]
    assert names == ["predict"]  # an SVC without probability=True has the method's name, and no probabilities
    imputer = SimpleImputer().fit(ROWS)
    assert params(imputer)["missing_values"] == "nan"
    assert [output["name"] for output in schema.of_estimator(imputer)["outputs"]] == ["transform"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *[("?", "BOOL"), ("i1", "INT8"), ("u8", "UINT64"), ("f2", "FP16"), ("f4", "FP32"), ("f8", "FP64")],
        *[("f16", "BYTES"), ("U3", "BYTES"), ("S3", "BYTES"), ("O", "BYTES"), ("M8[s]", "BYTES"), ("c8", "BYTES")],
    ],
)
def test_a_dtype_in_the_protocol_s_words(dtype: str, name: str) -> None:
    assert schema.datatype(np.dtype(dtype)) == name


def test_what_the_caller_says_wins() -> None:
    said = describe.completed(
        {"format": "joblib", "framework": "numpy"}, 1, None, {"framework": "mine", "x": np.int8(1)}
    )
    assert as_json(said) == {"format": "joblib", "framework": "mine", "size_bytes": 1, "x": 1}
    with pytest.raises(NotAModel, match="keys must be text"):
        describe.completed({}, 1, None, {1: 2})  # type: ignore[dict-item]


def test_formats_by_default() -> None:
    assert weights.default_format({"a": np.zeros(2)}) == "safetensors"
    assert [weights.default_format(other) for other in ({}, {"a": 1}, {1: np.zeros(1)}, LogisticRegression())] == (
        ["joblib"] * 4
    )
    assert weights.default_format(b"of an ONNX model") == weights.default_format(onnx.ModelProto()) == "onnx"


def test_boosters_are_written_in_files_of_their_own(tmp_path: Path) -> None:
    rows, labels = np.arange(40.0).reshape(-1, 2), np.arange(20) % 2
    quiet = {"n_estimators": 2, "n_jobs": 1}
    light = lightgbm.LGBMClassifier(**quiet, verbosity=-1, min_child_samples=2).fit(rows, labels)
    extreme = xgboost.XGBClassifier(**quiet).fit(rows, labels)
    for estimator, booster, suffix in ((light, light.booster_, "lgb"), (extreme, extreme.get_booster(), "ubj")):
        assert (weights.default_format(booster), weights.default_format(estimator)) == (suffix, "joblib")
        for model in (booster, estimator):
            path = weights.write(model, suffix, tmp_path, "m", None)
            assert path.name == f"m.{suffix}" and path.stat().st_size > 100
        with pytest.raises(NotAModel, match="lgb takes"):
            weights.write(booster, "ubj" if suffix == "lgb" else "lgb", tmp_path, "m", None)
    with pytest.raises(NotAModel, match="lgb takes"):
        weights.write(LogisticRegression(), "lgb", tmp_path, "m", None)


def test_what_a_function_forgot_to_return_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(NotAModel, match="there is nothing"):
        publish("m", None, models_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_publish_is_found_where_people_look_for_it() -> None:
    import modelsync  # noqa: PLC0415

    assert modelsync.publish is publish
    with pytest.raises(AttributeError, match="nonsense"):
        _ = modelsync.nonsense
