"""An unmodified tritonclient against a real server: all that protocol and issue name, and every error decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from tests.integration.serving import ROWS, Serve, fp64, iris, put, put_joblib, serving
from tritonclient.utils import InferenceServerException

from modelsync.web import page_policy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    live = tmp_path_factory.mktemp("serve") / "live"
    put_joblib(live, "iris", iris())
    put_joblib(live, "secret", iris())
    spoken = make_pipeline(TfidfVectorizer(), SGDClassifier(random_state=0))
    put_joblib(live, "spoken", spoken.fit(["good day", "fine day", "bad night", "sad night"], ["+", "+", "-", "-"]))
    put(live, "table", "v1", lambda path: np.savez(path / "table.npz", rows=np.arange(20.0).reshape(10, 2)))
    with serving(live, "--trust-pickle", "iris,spoken") as running:
        yield running


def test_the_server_tells_of_itself(server: Serve) -> None:
    client = server.triton
    assert client.is_server_live()
    assert client.is_server_ready()
    about = client.get_server_metadata()
    assert about["name"] == "modelsync-serve"
    assert set(about["extensions"]) == {"binary_tensor_data", "model_repository"}


def test_the_index_lists_what_is_offered(server: Serve) -> None:
    client = server.triton
    client.load_model("iris")
    lines = {line["name"]: line for line in client.get_model_repository_index()}
    assert set(lines) == {"iris", "secret", "spoken", "table"}
    assert lines["iris"]["state"] == "READY"
    ready = server.post("/v2/repository/index", {"ready": True}).json
    assert "secret" not in {line["name"] for line in ready}


def test_a_model_tells_of_itself(server: Serve) -> None:
    about = server.triton.get_model_metadata("iris")
    assert about["platform"] == "scikit-learn"
    assert about["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}]
    assert about["outputs"] == [
        {"name": "predict", "datatype": "INT64", "shape": [-1]},
        {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3]},
    ]
    assert server.triton.is_model_ready("iris")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_infer_in_every_form(server: Serve, binary_in: bool, binary_out: bool | None) -> None:
    model, rows = iris(), ROWS[::10]
    wanted = None
    if binary_out is not None:
        wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("predict_proba", "predict")]
    answer = server.triton.infer("iris", [fp64(rows, binary=binary_in)], outputs=wanted, request_id="seven")
    np.testing.assert_array_equal(answer.as_numpy("predict"), model.predict(rows))
    np.testing.assert_allclose(answer.as_numpy("predict_proba"), model.predict_proba(rows), rtol=1e-12)
    assert answer.get_response()["id"] == "seven"
    assert answer.get_response()["model_version"] == "0"


def test_outputs_beyond_the_listed_ones_come_when_they_are_named(server: Serve) -> None:
    wanted = [triton.InferRequestedOutput("decision_function")]
    answer = server.triton.infer("iris", [fp64(ROWS[:2])], outputs=wanted)
    np.testing.assert_allclose(answer.as_numpy("decision_function"), iris().decision_function(ROWS[:2]))
    assert answer.as_numpy("predict") is None


@pytest.mark.parametrize("dtype", ["FP32", "FP16", "INT64"])
def test_other_numbers_are_taken_where_a_table_is(server: Serve, dtype: str) -> None:
    rows = np.round(ROWS[:5]).astype({"FP32": "f4", "FP16": "f2", "INT64": "i8"}[dtype])
    tensor = triton.InferInput("x", [5, 4], dtype)
    tensor.set_data_from_numpy(rows)
    np.testing.assert_array_equal(server.triton.infer("iris", [tensor]).as_numpy("predict"), iris().predict(rows))


@pytest.mark.parametrize("binary", [True, False])
def test_texts_in_and_out(server: Serve, binary: bool) -> None:
    texts = np.array(["good day", "sad night"], object)
    tensor = triton.InferInput("input", [2], "BYTES")
    tensor.set_data_from_numpy(texts, binary_data=binary)
    wanted = [triton.InferRequestedOutput("predict", binary_data=binary)]
    answer = server.triton.infer("spoken", [tensor], outputs=wanted).as_numpy("predict")
    assert [each.decode() if isinstance(each, bytes) else each for each in answer] == ["+", "-"]


def test_arrays_whole_and_by_rows(server: Serve) -> None:
    whole = np.arange(20.0).reshape(10, 2)
    np.testing.assert_array_equal(server.triton.infer("table", []).as_numpy("rows"), whole)
    rows = triton.InferInput("rows", [3], "INT64")
    rows.set_data_from_numpy(np.array([7, 0, 7]))
    np.testing.assert_array_equal(server.triton.infer("table", [rows]).as_numpy("rows"), whole[[7, 0, 7]])
    rows.set_data_from_numpy(np.array([7, 0, 10]))
    with pytest.raises(InferenceServerException, match="'rows', which has 10"):
        server.triton.infer("table", [rows])


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_a_compressed_request(server: Serve, compression: str) -> None:
    answer = server.triton.infer("iris", [fp64(ROWS)], request_compression_algorithm=compression)
    np.testing.assert_array_equal(answer.as_numpy("predict"), iris().predict(ROWS))


def test_load_and_unload(server: Serve) -> None:
    client = server.triton
    client.unload_model("table")
    assert not client.is_model_ready("table")
    with pytest.raises(InferenceServerException, match="was unloaded") as refused:
        client.infer("table", [])
    assert refused.value.status() == "404"
    lines = {line["name"]: line for line in client.get_model_repository_index()}
    assert (lines["table"]["state"], lines["table"]["reason"]) == ("UNAVAILABLE", "unloaded")
    client.load_model("table")
    assert client.is_model_ready("table")
    assert client.infer("table", []).as_numpy("rows").shape == (10, 2)
    with pytest.raises(InferenceServerException, match="as it is"):
        client.load_model("table", config="{}")


ERRORS = {
    "unknown model": (lambda c: c.infer("nobody", [fp64(ROWS)]), "404", "'nobody' is not offered here"),
    "unknown model's metadata": (lambda c: c.get_model_metadata("nobody"), "404", "'nobody' is not offered"),
    "unknown version": (lambda c: c.infer("iris", [fp64(ROWS)], model_version="7"), "404", "version 0 only"),
    "no version": (lambda c: c.infer("iris", [fp64(ROWS)], model_version="x"), "404", "not a version"),
    "illegal name": (lambda c: c.infer("a b", [fp64(ROWS)]), "404", "not a legal model name"),
    "way out": (lambda c: c.infer("..%2f..%2fetc", [fp64(ROWS)]), "404", ""),
    "not trusted": (lambda c: c.infer("secret", [fp64(ROWS)]), "503", "trust"),
    "load of one not trusted": (lambda c: c.load_model("secret"), "503", "trust"),
    "load of nobody": (lambda c: c.load_model("nobody"), "404", "not offered"),
    "unload of nobody": (lambda c: c.unload_model("nobody"), "404", "not offered"),
    "too few columns": (lambda c: c.infer("iris", [fp64(ROWS[:, :3])]), "400", "tensor 'input': shape [150, 3]"),
    "one dimension": (lambda c: c.infer("iris", [fp64(ROWS[0])]), "400", "where the model takes [-1, 4]"),
    "not a number": (lambda c: c.infer("iris", [fp64(ROWS * np.nan)]), "400", "'input': the model refuses it: Input X"),
    "no inputs": (lambda c: c.infer("iris", []), "400", "inputs 'input' of the model are missing"),
    "unknown output": (
        lambda c: c.infer("iris", [fp64(ROWS)], outputs=[triton.InferRequestedOutput("nope")]),
        "400",
        "tensor 'nope': the model's outputs are 'predict', 'predict_proba', 'decision_function'",
    ),
    "classification": (
        lambda c: c.infer("iris", [fp64(ROWS)], outputs=[triton.InferRequestedOutput("predict", class_count=2)]),
        "400",
        "not offered",
    ),
    "shared memory": (lambda c: c.get_system_shared_memory_status(), "404", "Not Found"),
    "configuration": (lambda c: c.get_model_config("iris"), "404", "Not Found"),
}


@pytest.mark.parametrize("case", ERRORS, ids=str)
def test_every_error_is_decoded(server: Serve, case: str) -> None:
    call, status, reason = ERRORS[case]
    with pytest.raises(InferenceServerException) as refused:
        call(server.triton)
    assert refused.value.status() == status
    assert reason in refused.value.message()
    assert not server.triton.is_model_ready("nobody")


def test_methods_and_paths_that_are_not_there(server: Serve) -> None:
    assert (server.get("/v3").status, server.get("/v3").error) == (404, "Not Found: GET /v3")
    wrong = server.get("/v2/models/iris/infer")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
    assert "Method Not Allowed" in wrong.error


def test_the_reports(server: Serve) -> None:
    server.triton.infer("iris", [fp64(ROWS)])
    stats = server.get("/stats").json
    counts = stats["models"]["iris"]["0"]
    assert counts["requests"] == counts["hits"] + counts["misses"] >= 1
    step = stats["timeseries"]["iris"][-1]
    assert step["requests"] >= 1
    assert {"t_s", "hits", "misses", "loads", "load_s", "evictions", "latency_p50_s", "latency_p99_s"} <= step.keys()
    assert server.get("/stats?step_s=15").status == 400
    metrics = server.get("/metrics").body.decode()
    assert 'modelsync_serve_requests_total{model="iris",status="200"}' in metrics
    page = server.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy == page_policy(page.body.decode())
    assert b"shared." not in page.body, "what it shares with the daemon's page is in it"


def test_a_model_of_no_use_says_what_it_is(server: Serve, tmp_path: Path) -> None:
    live = Path(server.get("/stats").json["server"]["live_dir"])
    put(live, "words", "v1", lambda path: (path / "notes.txt").write_text("nothing"))
    answer = server.post("/v2/models/words/infer", {"inputs": []})
    assert answer.status == 503
    assert "neither predict nor arrays" in answer.error
