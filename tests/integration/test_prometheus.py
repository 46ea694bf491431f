"""A gate's question over HTTP, with every kind of answer, and what a wave makes of each."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest
from tests.unit.test_rollout_steps import looked, roll

from modelsync.core.errors import MalformedMessage, ModelsyncError, PeerRefused, PeerUnavailable
from modelsync.core.rollout import steps as rollout_steps
from modelsync.core.rollout.record import Gate
from modelsync.core.rollout.steps import Watch, Write
from modelsync.edges.gates.prometheus import MAX_ANSWER_BYTES, Prometheus

Handler = http.server.BaseHTTPRequestHandler
Answer = Callable[[Handler], None]
TIMEOUT_S = 0.5
MAX_VALUE = 0.01


class StandIn:
    """Answers POST /api/v1/query as it is told to, and remembers the questions."""

    def __init__(self) -> None:
        self.answer: Answer = sends(vector("0"))
        self.questions: list[str] = []
        outer = self

        class Asked(Handler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.questions.append(f"{self.path} {parse_qs(body)['query'][0]}")
                outer.answer(self)

            def do_GET(self) -> None:
                outer.questions.append(f"GET {self.path}")
                sends(vector("0"))(self)

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asked)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def sends(value: Any, status: int = 200, **headers: str) -> Answer:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def vector(*texts: str) -> dict[str, Any]:
    """As https://prometheus.io/docs/prometheus/latest/querying/api/ shows it under "Instant vectors"."""
    series = [{"metric": {"host": f"gpu-{at}"}, "value": [1435781451.781, text]} for at, text in enumerate(texts)]
    return {"status": "success", "data": {"resultType": "vector", "result": series}}


def scalar(text: str) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "scalar", "result": [1435781451.781, text]}}


def typed(kind: str, result: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}}


def silent(handler: Handler) -> None:
    time.sleep(4 * TIMEOUT_S)


def drips(handler: Handler) -> None:
    """A byte now and then: each in time, all of them not."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(TIMEOUT_S / 10)


def hangs_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def half(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"status": "success"')
    handler.connection.shutdown(socket.SHUT_RDWR)


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(64):
            handler.wfile.write(b" " * (1 << 20))
    except OSError:
        return


WELL, ILL, NO_ANSWER = "the next wave", "rolled back at once", "rolled back when time is over"


@pytest.fixture(scope="module")
def prometheus() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


def ask(stand_in: StandIn) -> float | None:
    gate = Gate(stand_in.url + "/", "rate(errors_total[5m])", MAX_VALUE)
    return asyncio.run(Prometheus(TIMEOUT_S).worst(gate))


def becomes_of_a_wave(worst: float | None) -> str:
    """A canary has soaked and is well, but for what the gate's query gave when it was asked at the end."""
    gate = Gate("http://p", "q", MAX_VALUE)
    soaking = roll("waves", "soaking", plan=replace(roll("waves", "soaking").plan, gate=gate))
    plan, well = soaking.plan, looked(a={"active": 2})
    watch = Watch(soaking, 0.0, asked_s=plan.soak_s)
    watch, effects = rollout_steps.step(watch, rollout_steps.gate_answered(gate, worst, plan.soak_s), plan.soak_s + 1)
    if effects:
        return ILL if state_of(effects) == "rolled_back" else "?"
    _, effects = rollout_steps.step(watch, well, plan.soak_s + 2)
    if effects and isinstance(effects[0], Write):
        return WELL if effects[0].rollout.wave == 1 else "?"
    _, effects = rollout_steps.step(watch, well, plan.soak_s + plan.straggler_s)
    return NO_ANSWER if state_of(effects) == "rolled_back" else "?"


def state_of(effects: Any) -> str:
    return effects[0].rollout.state if effects and isinstance(effects[0], Write) else ""


@pytest.mark.parametrize(
    ("answer", "worst", "wave"),
    [
        (sends(vector("0")), 0.0, WELL),
        (sends(vector("0.01")), 0.01, WELL),
        (sends(vector("0", "0.02", "0.001")), 0.02, ILL),
        (sends(vector("NaN", "0.02")), 0.02, ILL),
        (sends(vector("+Inf")), float("inf"), ILL),
        (sends(vector("-Inf")), float("-inf"), WELL),
        (sends(scalar("0.5")), 0.5, ILL),
        (sends(scalar("0")), 0.0, WELL),
        (sends(vector()), None, NO_ANSWER),
        (sends(vector("NaN", "NaN")), None, NO_ANSWER),
        (sends(scalar("NaN")), None, NO_ANSWER),
    ],
)
def test_numbers_and_their_absence(prometheus: StandIn, answer: Answer, worst: float | None, wave: str) -> None:
    prometheus.answer = answer
    assert ask(prometheus) == worst
    assert prometheus.questions[-1] == "/api/v1/query rate(errors_total[5m])"
    assert becomes_of_a_wave(worst) == wave


@pytest.mark.parametrize(
    ("answer", "fault", "reason"),
    [
        (sends({"status": "error", "errorType": "bad_data", "error": "parse error"}, 400), PeerRefused, "parse error"),
        (sends({"status": "error", "errorType": "timeout", "error": "too slow"}, 503), PeerRefused, "503"),
        (sends(b"<html>no</html>", 502), PeerRefused, "502"),
        (sends(b"", 302, Location="/elsewhere"), PeerRefused, "302"),
        (sends(b"", 307, Location="/elsewhere"), PeerRefused, "307"),
        (sends(b"", 204), PeerRefused, "204"),
        (sends({"status": "error", "error": "x"}), MalformedMessage, "status 'error'"),
        (sends(typed("matrix", [])), MalformedMessage, "matrix"),
        (sends(typed("string", [1, "x"])), MalformedMessage, "string"),
        (sends(typed("vector", [{"metric": {}, "histogram": [1, {"count": "3"}]}])), MalformedMessage, "value"),
        (sends(typed("vector", [{"value": [1]}])), MalformedMessage, "range"),
        (sends(vector("many")), MalformedMessage, "many"),
        (sends(b"not json"), MalformedMessage, "Expecting value"),
        (sends(b"\xff\xfe"), MalformedMessage, ""),
        (sends(b"[" * 100_000), MalformedMessage, "recursion"),
        (sends(b"null"), MalformedMessage, ""),
        (sends(b'{"status": "success", "data": ' + b"9" * 5000 + b"}"), MalformedMessage, "digit"),
        (sends(gzip.compress(json.dumps(vector("0")).encode()), Content_Encoding="gzip"), MalformedMessage, ""),
        (sends(b" " * (MAX_ANSWER_BYTES + 1)), MalformedMessage, "more than"),
        (endless, MalformedMessage, "more than"),
        (silent, PeerUnavailable, ""),
        (drips, PeerUnavailable, ""),
        (hangs_up, PeerUnavailable, ""),
        (half, PeerUnavailable, ""),
    ],
)
def test_whatever_else_is_an_error_and_no_health(
    prometheus: StandIn, answer: Answer, fault: type[ModelsyncError], reason: str
) -> None:
    prometheus.answer = answer
    with pytest.raises(fault) as caught:
        ask(prometheus)
    assert reason in str(caught.value)
    assert not prometheus.questions[-1].startswith("GET"), "a redirect is not followed"
    assert becomes_of_a_wave(None) == NO_ANSWER


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for bad in (url, "http://nowhere.invalid", "no address at all"):
        with pytest.raises(PeerUnavailable):
            asyncio.run(Prometheus(TIMEOUT_S).worst(Gate(bad, "up", 1.0)))
