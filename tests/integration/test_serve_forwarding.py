"""Requests for models that other hosts hold: handed on once, past owners that are down, and never in a circle."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.daemons import free_port
from tests.integration.serving import ROWS, Serve, fp64, iris, put_joblib, serving
from tritonclient.utils import InferenceServerException


class Placement:
    """What a daemon answers at /v1/placement/NAME, over HTTP as it does."""

    def __init__(self) -> None:
        self.owners: dict[str, list[str | None]] = {}
        self.parts: dict[str, int] = {}
        self.status = 200
        self.asked = 0
        placement = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                placement.asked += 1
                name = self.path.removeprefix("/v1/placement/")
                urls = placement.owners.get(name, [])
                owners = [{"id": f"node-{n}", "url": "http://x", "serve_url": url} for n, url in enumerate(urls)]
                parts = placement.parts.get(name, 0)
                body = json.dumps({"model": name, "mode": "partitioned", "owners": owners, "parts": parts}).encode()
                self.send_response(placement.status if urls or parts else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *unused: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def placement() -> Iterator[Placement]:
    daemon = Placement()
    yield daemon
    daemon.server.shutdown()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, placement: Placement) -> Iterator[tuple[Serve, Serve]]:
    """One that holds nothing but asks, and one that holds the model."""
    empty, full = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("full")
    put_joblib(full / "live", "iris", iris())
    options = ("--trust-pickle", "all", "--daemon", placement.url)
    with serving(empty / "live", *options) as asker, serving(full / "live", *options) as owner:
        yield asker, owner


def test_another_host_answers_as_if_it_were_this_one(hosts: tuple[Serve, Serve], placement: Placement) -> None:
    asker, owner = hosts
    dead = f"http://127.0.0.1:{free_port()}"
    placement.owners["iris"] = [dead, owner.url]
    for binary in (True, False):
        answer = asker.triton.infer("iris", [fp64(ROWS, binary=binary)])
        np.testing.assert_array_equal(answer.as_numpy("predict"), iris().predict(ROWS))
    assert asker.triton.is_model_ready("iris")
    assert asker.triton.get_model_metadata("iris")["platform"] == "scikit-learn"
    assert placement.asked < 4, "what the daemon said is believed for a moment"
    assert asker.get("/stats").json["server"]["forwarded"] == 4
    with pytest.raises(InferenceServerException, match="where the model takes") as refused:
        asker.triton.infer("iris", [fp64(ROWS[:, :2])])
    assert refused.value.status() == "400"


def test_two_that_take_each_other_for_the_owner(hosts: tuple[Serve, Serve], placement: Placement) -> None:
    asker, owner = hosts
    placement.owners["lost"] = [asker.url, owner.url]
    answer = asker.post("/v2/models/lost/infer", {"inputs": []})
    assert (answer.status, "not offered" in answer.error) == (404, True)


def test_nobody_holds_it(hosts: tuple[Serve, Serve], placement: Placement) -> None:
    answer = hosts[0].post("/v2/models/nobody/infer", {"inputs": []})
    assert (answer.status, "not offered" in answer.error) == (404, True)


def test_one_that_lies_in_parts_is_answered_by_whoever_loaded_the_whole_and_else_that_is_said(
    hosts: tuple[Serve, Serve], placement: Placement
) -> None:
    asker, owner = hosts
    placement.parts["in-parts"] = 3
    answer = asker.post("/v2/models/in-parts/infer", {"inputs": []})
    assert answer.status == 503 and "it lies in 3 parts and whole on no host" in answer.error
    assert "POST /v1/models/in-parts/load" in answer.error
    placement.parts["iris"] = 3
    placement.owners["iris"] = [owner.url]
    assert asker.post("/v2/models/iris/infer", {"inputs": []}).status == 400, "its own error: it was handed on"


def test_all_owners_are_down(hosts: tuple[Serve, Serve], placement: Placement) -> None:
    placement.owners["down"] = [f"http://127.0.0.1:{free_port()}"]
    answer = hosts[0].post("/v2/models/down/infer", {"inputs": []})
    assert (answer.status, "none of its owners answers" in answer.error) == (503, True)
    assert answer.headers["Retry-After"] == "1"


def test_owners_that_do_not_say_where_they_serve(hosts: tuple[Serve, Serve], placement: Placement) -> None:
    placement.owners["silent"] = [None, ""]
    answer = hosts[0].post("/v2/models/silent/infer", {"inputs": []})
    assert answer.status == 503
    for owner in ("node-0", "node-1"):
        assert f"{owner}: its node.serve_url is not set" in answer.error
    placement.owners["half"] = [None, f"http://127.0.0.1:{free_port()}"]
    assert "node-0: its node.serve_url is not set" in hosts[0].post("/v2/models/half/infer", {"inputs": []}).error


def test_the_daemon_is_in_trouble(hosts: tuple[Serve, Serve], placement: Placement) -> None:
    placement.owners["sick"] = ["http://127.0.0.1:1"]
    placement.status = 500
    try:
        answer = hosts[0].post("/v2/models/sick/infer", {"inputs": []})
    finally:
        placement.status = 200
    assert (answer.status, "500" in answer.error) == (503, True)


def test_a_daemon_that_is_away(tmp_path: Path) -> None:
    with serving(tmp_path / "live", "--daemon", f"http://127.0.0.1:{free_port()}") as alone:
        answer = alone.post("/v2/models/iris/infer", {"inputs": []})
        assert (answer.status, "says no owner" in answer.error) == (503, True)
