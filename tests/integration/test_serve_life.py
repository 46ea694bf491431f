"""A server's life: versions of a real daemon, switches under load, a busy model beside others, batches, and its end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import tritonclient.http as triton
from sklearn.dummy import DummyClassifier
from tests.integration.daemons import Fleet, until
from tests.integration.serving import ROWS, Answer, Serve, fp64, iris, put, put_joblib, serving
from tritonclient.utils import InferenceServerException

from modelsync.serve.command import main

BODY = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [1.0]}], "outputs": [{"name": "predict"}]}

SLOW = """
import time
class Slow:
    n_features_in_ = 1
    def __init__(self, seconds): self.seconds = seconds
    def predict(self, rows):
        time.sleep(self.seconds)
        return rows[:, 0]
class Counting:
    n_features_in_ = 1
    def predict(self, rows):
        return rows[:, 0] * 0 + len(rows)
class SlowToLoad:
    def __setstate__(self, state): time.sleep(3)
    def __getstate__(self): return {"a": 1}
    def predict(self, rows): return rows[:, 0]
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Classes that both this process and the server can import."""
    (tmp_path / "odd_models.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import importlib  # noqa: PLC0415

    import odd_models  # noqa: PLC0415

    return importlib.reload(odd_models)


def always(number: int) -> DummyClassifier:
    return DummyClassifier(strategy="constant", constant=number).fit([[0.0], [0.0]], [number, number + 1])


@contextmanager
def asking(ask: Callable[[], Any], times: int = 8) -> Any:
    """Threads that ask without a pause while the block runs; yields what came back."""
    ended, answers = threading.Event(), []

    def loop() -> None:
        while not ended.is_set():
            try:
                answers.append(ask())
            except Exception as error:
                answers.append(error)

    threads = [threading.Thread(target=loop) for _ in range(times)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)


def test_versions_that_a_daemon_activates_and_retains(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    try:
        alpha = fleet.add("alpha")
        for number in (1, 2):
            joblib.dump(always(number), tmp_path / "m.joblib")
            (tmp_path / "m.joblib").rename(alpha.models / "m.joblib")
            until(lambda n=number: alpha.active("m") == n, f"version {number} is active")
        with serving(alpha.live, "--trust-pickle", "m") as server:
            client, row = server.triton, [fp64([[0.0]])]
            assert client.infer("m", row).as_numpy("predict").tolist() == [2]
            assert client.infer("m", row).get_response()["model_version"] == "2"
            assert client.infer("m", row, model_version="1").as_numpy("predict").tolist() == [1]
            assert client.infer("m", row, model_version="2").get_response()["model_version"] == "2"
            assert client.get_model_metadata("m")["versions"] == ["2", "1"]
            assert client.is_model_ready("m", "1")
            assert not client.is_model_ready("m", "3")
            with pytest.raises(InferenceServerException, match="version") as refused:
                client.infer("m", row, model_version="3")
            assert refused.value.status() == "404"
            fleet.run("rollback", "m")
            until(lambda: client.infer("m", row).as_numpy("predict").tolist() == [1], "the rollback is served")
            counts = server.get("/stats").json["models"]["m"]
            assert set(counts) == {"1", "2"}
    finally:
        fleet.close()


def test_switches_under_load_fail_nobody_and_mix_nothing(tmp_path: Path) -> None:
    live = tmp_path / "live"
    put_joblib(live, "m", always(0), "v0")
    with serving(live, "--trust-pickle", "all") as server:
        client = threading.local()

        def ask() -> int:
            if not hasattr(client, "it"):
                client.it = server.triton
            first, second = client.it.infer("m", [fp64([[0.0], [1.0]])]).as_numpy("predict").tolist()
            assert first == second
            return int(first)

        with asking(ask, times=4) as answers:
            until(lambda: answers and answers[-1] == 0, "the first version answers")
            for number in range(1, 21):
                put_joblib(live, "m", always(number), f"v{number}")
                until(lambda n=number: answers and answers[-1] == n, f"version {number} answers")
        assert [each for each in answers if isinstance(each, Exception)] == []
        assert set(answers) == set(range(21))


def test_a_bad_version_leaves_the_good_one_serving(tmp_path: Path) -> None:
    live = tmp_path / "live"
    put_joblib(live, "m", always(1), "v1")
    with serving(live, "--trust-pickle", "all") as server:
        assert server.post("/v2/models/m/infer", BODY).json["outputs"][0]["data"] == [1]
        put(live, "m", "v2", lambda path: (path / "model.joblib").write_bytes(b"\x80\x04cut short"))
        until(lambda: server.get("/stats").json["client"]["state"]["m"]["error"] is not None, "the refusal is told")
        assert server.post("/v2/models/m/infer", BODY).json["outputs"][0]["data"] == [1]
        put_joblib(live, "m", always(3), "v3")
        until(lambda: server.post("/v2/models/m/infer", BODY).json["outputs"][0]["data"] == [3], "the next one answers")


def test_a_model_that_is_slow_to_load_holds_up_nobody_and_is_loaded_once(tmp_path: Path, odd: Any) -> None:
    live = tmp_path / "live"
    put_joblib(live, "slow", odd.SlowToLoad())
    put_joblib(live, "iris", iris())
    with serving(live, "--trust-pickle", "all") as server:
        client = server.triton
        client.infer("iris", [fp64(ROWS)])
        waiting = [asking(lambda: server.post("/v2/models/slow/infer", BODY), times=1) for _ in range(20)]
        answered = 0
        with nested(waiting) as cold:
            started_s = time.monotonic()
            while time.monotonic() - started_s < 1.5:
                client.infer("iris", [fp64(ROWS[:2])])
                answered += 1
            until(lambda: all(cold), "all who waited are answered")
        assert answered > 50
        assert all(answer.status == 200 for answers in cold for answer in answers)
        assert server.get("/stats").json["models"]["slow"]["0"]["loads"] == 1
        assert server.get("/stats").json["models"]["slow"]["0"]["misses"] == 20


@contextmanager
def nested(contexts: list[AbstractContextManager[Any]]) -> Any:
    from contextlib import ExitStack  # noqa: PLC0415

    with ExitStack() as stack:
        yield [stack.enter_context(each) for each in contexts]


def test_a_slow_model_fills_its_own_queue_only(tmp_path: Path, odd: Any) -> None:
    live, config = tmp_path / "live", tmp_path / "serve.toml"
    put_joblib(live, "slow", odd.Slow(0.5))
    put_joblib(live, "iris", iris())
    config.write_text(
        '[fleet]\nname = "t"\nredis = "redis://127.0.0.1"\n'
        f'[node]\nlive_dir = "{live}"\nstate_dir = "{tmp_path}/state"\n'
        '[serve]\ntrust_pickle = "all"\npreload = ["*"]\nthreads = 2\nqueue = 8\n'
    )
    with serving(live, "--config", str(config)) as server:
        with asking(lambda: server.post("/v2/models/slow/infer", BODY), times=12) as answers:
            until(lambda: any(each.status == 429 for each in answers), "some are refused")
            refused = next(each for each in answers if each.status == 429)
            assert refused.headers["Retry-After"] == "1"
            assert "'slow'" in refused.error
            for _ in range(10):
                assert server.triton.infer("iris", [fp64(ROWS[:2])]).as_numpy("predict").shape == (2,)
        assert {each.status for each in answers} == {200, 429}


def test_requests_of_one_moment_are_run_together(tmp_path: Path, odd: Any) -> None:
    """The model answers with the number of rows of its call: more than the one of the request."""
    live, config = tmp_path / "live", tmp_path / "serve.toml"
    put_joblib(live, "m", odd.Counting())
    config.write_text(
        '[fleet]\nname = "t"\nredis = "redis://127.0.0.1"\n'
        f'[node]\nlive_dir = "{live}"\nstate_dir = "{tmp_path}/state"\n'
        '[serve]\ntrust_pickle = "all"\n[model.m]\nbatch_rows = 8\nbatch_delay_s = 0.02\n'
    )
    with serving(live, "--config", str(config)) as server:
        with asking(lambda: server.post("/v2/models/m/infer", BODY), times=8) as answers:
            until(lambda: len(answers) > 100, "some answers")
        rows = [each.json["outputs"][0]["data"][0] for each in answers]
        assert {each.json["outputs"][0]["shape"][0] for each in answers} == {1}
        assert max(rows) > 1
        assert max(rows) <= 8


def test_what_is_under_way_is_answered_before_the_end(tmp_path: Path, odd: Any) -> None:
    put_joblib(tmp_path / "live", "slow", odd.Slow(1.5))
    answers: list[Answer] = []

    def ask(server: Serve) -> None:
        answers.append(server.post("/v2/models/slow/infer", BODY))

    with serving(tmp_path / "live", "--trust-pickle", "all", "--preload", "*") as server:
        asking_ = [threading.Thread(target=ask, args=(server,)) for _ in range(2)]
        for thread in asking_:
            thread.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(OSError):  # nobody new is accepted
            server.get("/v2/health/live")
        for thread in asking_:
            thread.join(20)
        assert server.process.wait(20) == 0
    assert [answer.status for answer in answers] == [200, 200]
    assert all(answer.headers["Connection"] == "close" for answer in answers)


def test_it_stops_at_once_when_nobody_asks_even_with_kept_connections(tmp_path: Path) -> None:
    put_joblib(tmp_path / "live", "iris", iris())
    with serving(tmp_path / "live", "--trust-pickle", "all") as server:
        client = server.triton
        client.infer("iris", [fp64(ROWS)])
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - started_s < 5


def test_onnx_boosters_and_safetensors(tmp_path: Path) -> None:
    """Formats of other libraries, through the client's loaders, without trust in pickles."""
    lightgbm = pytest.importorskip("lightgbm")
    onnx = pytest.importorskip("onnx")
    safetensors = pytest.importorskip("safetensors.numpy")
    from onnx import TensorProto, helper  # noqa: PLC0415

    live = tmp_path / "live"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    put(live, "double", "v1", lambda path: onnx.save(model, path / "model.onnx"))
    booster = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(ROWS, ROWS[:, 0] * 2), 5)
    put(live, "boosted", "v1", lambda path: booster.save_model(path / "model.lgb"))
    weights = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
    put(live, "weights", "v1", lambda path: safetensors.save_file(weights, path / "model.safetensors"))
    with serving(live) as server:
        client = server.triton
        document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
        assert server.post("/v2/models/double/infer", document).json["outputs"][0]["data"] == [2, 4]
        about = client.get_model_metadata("double")
        assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
        assert about["platform"] == "onnxruntime_onnx"
        with pytest.raises(InferenceServerException, match="datatype BYTES where the model takes FP32"):
            text = triton.InferInput("x", [1, 2], "BYTES")
            text.set_data_from_numpy(np.array([["a", "b"]], object))
            client.infer("double", [text])
        np.testing.assert_array_equal(client.infer("double", [fp64([[1.0, 2.0]], "x")]).as_numpy("y"), [[2, 4]])
        wrong = server.post("/v2/models/double/infer", {"inputs": [{**document["inputs"][0], "shape": [2, 1]}]})
        assert (wrong.status, wrong.error[:11]) == (400, "tensor 'x':")
        np.testing.assert_array_equal(client.infer("weights", []).as_numpy("w"), weights["w"])
        predicted = client.infer("boosted", [fp64(ROWS)]).as_numpy("predict")
        np.testing.assert_allclose(predicted, booster.predict(ROWS))


def test_a_live_directory_that_is_not_there_is_said_and_served_when_it_comes(tmp_path: Path) -> None:
    later = tmp_path / "later"
    with serving(tmp_path / "live", "--live", str(later), "--trust-pickle", "m") as server:
        assert "directory.missing" in server.log.read_text()
        assert server.post("/v2/models/m/infer", BODY).status == 404
        put_joblib(later, "m", always(7))
        until(lambda: server.post("/v2/models/m/infer", BODY).status == 200, "the model to be served")


def test_a_name_that_no_model_can_have_is_not_trusted_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--live", "/x", "--trust-pickle", "fraud,a b"]) == 2
    assert "'a b' is not a legal model name" in capsys.readouterr().err
