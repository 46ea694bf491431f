"""``modelsync.publish`` against real daemons: what was trained here predicts the same where it arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.integration.daemons import FLEET, Daemon, Fleet, until

from modelsync import Client, publish
from modelsync.core import errors
from modelsync.core import manifest as manifests

ROWS, LABELS = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add("alpha")
    made.add("beta")
    yield made
    made.close()


def trained(strength: float = 1.0) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500)).fit(ROWS, LABELS)


def arrived(daemon: Daemon, model: str, version: int, file: str) -> Path:
    """The file of the version that is active there."""
    until(lambda: daemon.active(model) == version, f"{model} {version} on {daemon.name}")
    tree = daemon.tree(model)
    assert tree is not None
    return tree / file


def metadata_of(daemon: Daemon, model: str) -> dict[str, Any]:
    tree = daemon.tree(model)
    assert tree is not None
    return dict(manifests.decode((daemon.state / "manifests" / tree.name).read_bytes()).metadata)


def test_an_estimator_goes_through_redis_to_every_host_and_predicts_the_same(fleet: Fleet) -> None:
    model = trained()
    at = {"redis": fleet.redis_url, "fleet": FLEET}
    done = publish("iris", model, note="first", author="ada", training={"rows": 150}, **at)
    assert (done.model, done.version, done.copies, done.unchanged) == ("iris", 1, 2, False)
    beta = fleet.daemons[1]
    arrived(beta, "iris", 1, "iris.joblib")
    with Client(beta.live, trust_pickle=["iris"]) as client, client.load("iris").lease() as served:
        assert np.array_equal(served.predict_proba(ROWS), model.predict_proba(ROWS))
        assert client.load("iris").metadata["class"] == "sklearn.pipeline.Pipeline"
    said = metadata_of(beta, "iris")
    assert said["params"]["logisticregression__C"] == 1.0
    assert said["classes"] == [0, 1, 2]
    assert said["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}]
    assert said["training"] == {"rows": 150} and said["format"] == "joblib"
    line = json.loads(fleet.run("history", "iris", "--json").stdout)[0]
    assert (line["note"], line["author"], line["digest"], line["id"]) == ("first", "ada", done.digest, done.id)


def test_the_same_bytes_again_are_the_same_version(fleet: Fleet) -> None:
    first = publish("twice", trained(), url=fleet.daemons[0].url)
    again = publish("twice", trained(), url=fleet.daemons[0].url)
    assert (again.version, again.digest, again.unchanged) == (first.version, first.digest, True)


def test_a_replica_passes_an_upload_with_a_long_form_on_to_the_primary(fleet: Fleet) -> None:
    note = "grün " * 2000
    done = publish("long", trained(), note=note, metadata={"columns": ["x" * 50] * 900}, url=fleet.daemons[1].url)
    assert done.version == 1
    assert len(metadata_of(fleet.daemons[0], "long")["columns"]) == 900
    assert json.loads(fleet.run("history", "long", "--json").stdout)[0]["note"] == note


def test_by_the_models_directory_with_metadata_and_again_over_the_old_one(fleet: Fleet) -> None:
    alpha, beta = fleet.daemons
    for version, strength in ((1, 1.0), (2, 0.1)):
        done = publish(
            "dropped", trained(strength), note=f"C={strength}", author="ada", models_dir=alpha.models, url=beta.url
        )
        assert (done.version, done.copies, done.unchanged) == (version, 2, False)
        served = joblib.load(arrived(beta, "dropped", version, "dropped.joblib"))
        assert np.array_equal(served.predict_proba(ROWS), trained(strength).predict_proba(ROWS))
        assert metadata_of(beta, "dropped")["params"]["logisticregression__C"] == strength
    assert [path.name for path in (beta.live / "dropped" / "current").iterdir()] == ["dropped.joblib"]
    assert list(alpha.models.glob(".*")) == []
    history = json.loads(fleet.run("history", "dropped", "--json").stdout)
    assert [(line["note"], line["author"]) for line in history] == [("C=0.1", "ada"), ("C=1.0", "ada")]
    assert publish("dropped", trained(0.1), models_dir=alpha.models, url=alpha.url).unchanged


def test_by_the_models_directory_under_a_number(fleet: Fleet) -> None:
    alpha = fleet.daemons[0]
    assert publish("numbered", trained(), version=12, models_dir=alpha.models, url=alpha.url).version == 12
    assert publish("numbered", trained(0.5), models_dir=alpha.models, url=alpha.url).version == 13
    with pytest.raises(errors.NotAModel, match="lies there already"):
        publish("numbered", trained(0.2), version=13, models_dir=alpha.models, url=alpha.url)


def test_bad_words_beside_a_model_are_refused_and_named(fleet: Fleet) -> None:
    alpha = fleet.daemons[0]
    beside = alpha.root / "bad"
    beside.mkdir()
    (beside / "weights.npz").write_bytes(b"weights")
    (beside / ".modelsync.json").write_text('{"note": 7}')
    beside.rename(alpha.models / "bad")

    def refused() -> str:
        node = next(node for node in alpha.status()["nodes"] if node["id"] == "alpha")
        return str(node.get("refusals", {}).get("bad", ""))

    assert "note is not short text" in until(refused, "the refusal")
    good = alpha.root / "good.json"
    good.write_text('{"note": "now it is"}')
    good.rename(alpha.models / "bad" / ".modelsync.json")
    (alpha.models / "bad" / "weights.npz").touch()
    until(lambda: alpha.active("bad") == 1, "the model, once it is corrected")


def test_arrays_in_shards_and_whole(fleet: Fleet) -> None:
    arrays = {f"layer.{number}": np.full((256, 256), number, np.float32) for number in range(5)}
    url, beta = fleet.daemons[0].url, fleet.daemons[1]
    publish("sharded", arrays, shard_bytes=2 * 256 * 1024, url=url)
    index = json.loads(arrived(beta, "sharded", 1, "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    tree = beta.tree("sharded")
    assert tree is not None
    for name, file in index["weight_map"].items():
        assert np.array_equal(load_file(tree / file)[name], arrays[name])
    publish("packed", arrays, format="npz", url=url)
    with np.load(arrived(beta, "packed", 1, "packed.npz"), allow_pickle=False) as packed:
        assert all(np.array_equal(packed[name], arrays[name]) for name in arrays)


async def test_a_notebook_s_running_loop_is_no_hindrance(fleet: Fleet) -> None:
    assert asyncio.get_running_loop().is_running()
    assert publish("notebook", trained(), url=fleet.daemons[0].url).version == 1


def test_what_cannot_be_published_says_so_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    url = fleet.daemons[0].url
    refused = [
        (lambda: publish("x", LogisticRegression(), url=url), errors.NotAModel, "not fitted"),
        (lambda: publish("x", LogisticRegression, url=url), errors.NotAModel, "it is a class"),
        (lambda: publish("x", lambda: 1, url=url), errors.NotAModel, "cannot be written"),
        (lambda: publish("x", trained(), format="npz", url=url), errors.NotAModel, "NumPy arrays"),
        (lambda: publish("x", trained(), format="pickle", url=url), errors.BadName, "one of joblib"),
        (lambda: publish("x/y", trained(), url=url), errors.BadName, "model name"),
        (lambda: publish("x", tmp_path / "nowhere", url=url), errors.NotAModel, "nothing there"),
        (lambda: publish("x", trained(), url="http://127.0.0.1:9"), errors.PeerUnavailable, "127.0.0.1:9"),
        (lambda: publish("x", trained(), models_dir=tmp_path / "no"), errors.NotAModel, "no such models directory"),
    ]
    for attempt, kind, words in refused:
        with pytest.raises(kind, match=words):
            attempt()
    assert "x" not in {line["name"] for line in fleet.daemons[0].status()["models"]}
    (tmp_path / "y.joblib").write_bytes(b"other")
    with pytest.raises(errors.NotAModel, match="is the model y already"):
        publish("y", trained(), models_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["y.joblib"]
