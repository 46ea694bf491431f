"""Bad input over the wire: the protocol's error, bounded memory, and everybody else served on."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.integration.serving import ROWS, Serve, fp64, iris, put, put_joblib, serving
from tests.integration.test_client_formats import HOSTILE

LIMIT_BYTES = 4 << 20
WIDE_BYTES = 2 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    root = tmp_path_factory.mktemp("hostile")
    put_joblib(root / "live", "iris", iris())
    put(root / "live", "wide", "v1", lambda path: np.save(path / "wide.npy", np.zeros(WIDE_BYTES // 8)))
    config = root / "modelsync.toml"
    config.write_text(
        '[fleet]\nname = "t"\nredis = "redis://127.0.0.1"\n'
        f'[node]\nlive_dir = "{root}/live"\nstate_dir = "{root}/state"\n'
        f'[serve]\nmax_body_bytes = {LIMIT_BYTES}\ntrust_pickle = ["iris"]\npreload = ["*"]\n'
    )
    with serving(root / "live", "--config", str(config)) as running:
        yield running


@pytest.fixture(autouse=True)
def served_on(server: Serve) -> Iterator[None]:
    """After each attack another request is answered, and nothing of the attack is held."""
    yield
    np.testing.assert_array_equal(server.triton.infer("iris", [fp64(ROWS)]).as_numpy("predict"), iris().predict(ROWS))
    assert server.get("/stats").json["server"]["body_bytes"] == 0


def connected(server: Serve) -> socket.socket:
    host, _, port = server.host.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(length: int | str, *more: str) -> bytes:
    lines = ["POST /v2/models/iris/infer HTTP/1.1", "Host: x", f"Content-Length: {length}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def answer_of(connection: socket.socket) -> tuple[int, str]:
    """Status and error of the one answer; the connection may be closed behind it."""
    data = b""
    while not re.search(rb"\r\n\r\n.*\}", data, re.DOTALL):
        part = connection.recv(65536)
        if not part:
            break
        data += part
    assert data, "closed without an answer"
    return int(data[9:12]), str(json.loads(data.partition(b"\r\n\r\n")[2])["error"])


def test_a_gigabyte_that_is_announced_is_refused_before_it_comes(server: Serve) -> None:
    with connected(server) as connection:
        connection.sendall(head(1 << 30))
        status, error = answer_of(connection)
    assert status == 413
    assert str(LIMIT_BYTES) in error


def test_what_is_sent_all_the_same_takes_no_memory(server: Serve) -> None:
    before = server.peak_bytes()
    block = bytes(1 << 20)
    with connected(server) as connection:
        connection.sendall(head(1 << 30))
        try:
            for _ in range(200):
                connection.sendall(block)
        except OSError:
            pass  # closed on, which is right as well
    assert server.peak_bytes() - before < 16 << 20


def test_a_body_in_chunks_that_nobody_announced(server: Serve) -> None:
    before = server.peak_bytes()
    with connected(server) as connection:
        connection.sendall(b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(200):
                connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        except OSError:
            pass
        status, error = answer_of(connection)
    assert (status, str(LIMIT_BYTES) in error) == (413, True)
    assert server.peak_bytes() - before < 8 * LIMIT_BYTES


def test_a_compressed_body_that_is_a_bomb(server: Serve) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    before = server.peak_bytes()
    answer = server.ask("POST", "/v2/models/iris/infer", bomb, **{"Content-Encoding": "deflate"})
    assert answer.status == 413
    assert server.peak_bytes() - before < 8 * LIMIT_BYTES


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_an_encoding_that_is_not_read(server: Serve, encoding: str) -> None:
    answer = server.ask("POST", "/v2/models/iris/infer", b"{}", **{"Content-Encoding": encoding})
    assert (answer.status, "would be right" in answer.error) == (415, True)


@pytest.mark.parametrize("damage", [b"", b"x", b"\x1f\x8b\x08"])
def test_a_compressed_body_that_is_not_whole(server: Serve, damage: bytes) -> None:
    answer = server.ask("POST", "/v2/models/iris/infer", damage, **{"Content-Encoding": "gzip"})
    assert answer.status == 400
    assert "gzip" in answer.error


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_json(server: Serve, opening: bytes) -> None:
    answer = server.post("/v2/models/iris/infer", b'{"inputs": ' + opening * 500_000)
    assert (answer.status, "not JSON" in answer.error) == (400, True)


def test_not_a_number_in_json(server: Serve) -> None:
    answer = server.post("/v2/models/iris/infer", b'{"inputs": [{"name": "x", "data": [NaN]}]}')
    assert (answer.status, "not JSON" in answer.error) == (400, True)


@pytest.mark.parametrize("length", ["-5", "abc", "1e3", "99999999999999999999"])
def test_a_content_length_that_is_none(server: Serve, length: str) -> None:
    with connected(server) as connection:
        connection.sendall(head(length) + b"{}")
        data = connection.recv(65536)
    assert data[9:12] in (b"400", b"413")


@pytest.mark.parametrize("claim", ["0", "7", "1000000"])
def test_a_header_length_that_lies(server: Serve, claim: str) -> None:
    body = json.dumps({"inputs": []}).encode()
    answer = server.ask("POST", "/v2/models/iris/infer", body, **{"Inference-Header-Content-Length": claim})
    assert answer.status == 400


def test_a_truncated_binary_tensor_names_it(server: Serve) -> None:
    tensor = {"name": "x", "datatype": "FP64", "shape": [1, 4], "parameters": {"binary_data_size": 32}}
    document = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(document))}
    answer = server.ask("POST", "/v2/models/iris/infer", document + bytes(31), **headers)
    assert (answer.status, answer.error[:11]) == (400, "tensor 'x':")


def test_a_shape_that_would_be_terabytes(server: Serve) -> None:
    tensor = {"name": "x", "datatype": "FP64", "shape": [1 << 20, 1 << 20], "data": [1.0]}
    answer = server.post("/v2/models/iris/infer", {"inputs": [tensor]})
    assert (answer.status, "data has 1" in answer.error) == (400, True)


def test_slow_clients_hold_up_nobody(server: Serve) -> None:
    """Fifty that never finish, head or body: another's request takes as long as ever."""
    slow = [connected(server) for _ in range(50)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(head(1000)[: 40 if number % 2 else None])
        client = server.triton
        started_s = time.perf_counter()
        for _ in range(20):
            client.infer("iris", [fp64(ROWS[:2])])
        assert time.perf_counter() - started_s < 5
    finally:
        for connection in slow:
            connection.close()


def test_receivers_that_read_nothing_hold_a_few_answers_each(server: Serve) -> None:
    """Twenty that ask for fifty answers of 2 MB in a row and take none: the others are served, and memory stays."""
    body = b'{"inputs": [], "parameters": {"binary_data_output": true}}'
    request = b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    before = server.peak_bytes()
    deaf = [connected(server) for _ in range(20)]
    try:
        for connection in deaf:
            connection.sendall(50 * request)
        started_s = time.perf_counter()
        for _ in range(20):
            server.triton.infer("iris", [fp64(ROWS[:2])])
        assert time.perf_counter() - started_s < 5
        with connected(server) as reading:
            reading.sendall(request)
            size = 0
            while size < WIDE_BYTES:
                size += len(reading.recv(1 << 20))
    finally:
        for connection in deaf:
            connection.close()
    assert server.peak_bytes() - before < len(deaf) * 10 * WIDE_BYTES, "of the fifty that each has asked for"


def test_many_large_bodies_at_once_are_bounded_together(server: Serve) -> None:
    """More than four of the largest, each almost whole: the last ones are refused, and memory stays."""
    before = server.peak_bytes()
    connections = [connected(server) for _ in range(8)]
    statuses: list[int] = []

    def push(connection: socket.socket) -> None:
        try:
            connection.sendall(head(LIMIT_BYTES) + bytes(LIMIT_BYTES - 1))
            connection.settimeout(3)
            statuses.append(answer_of(connection)[0])
        except (OSError, AssertionError):
            pass

    pushers = [threading.Thread(target=push, args=(each,)) for each in connections]
    try:
        for pusher in pushers:
            pusher.start()
        for pusher in pushers:
            pusher.join(20)
    finally:
        for connection in connections:
            connection.close()
    time.sleep(0.2)
    assert 503 in statuses
    assert server.peak_bytes() - before < 10 * LIMIT_BYTES


def test_a_sender_that_leaves_in_the_middle(server: Serve) -> None:
    with connected(server) as connection:
        connection.sendall(head(1000) + b'{"inputs":')
    time.sleep(0.1)


def test_names_that_lead_elsewhere(server: Serve) -> None:
    for name in ("..", "%2e%2e", "iris%2f..%2firis", "iris%00", "a" * 5000, "iris%0d%0aX"):
        answer = server.ask("POST", f"/v2/models/{name}/infer", b"{}")
        assert answer.status in (400, 404), name


def test_names_from_strangers_do_not_pile_up(server: Serve) -> None:
    for number in range(50):
        assert server.post(f"/v2/models/nobody-{number}/infer", {"inputs": []}).status == 404
    stats = server.get("/stats").json
    assert not any(name.startswith("nobody") for part in ("models", "timeseries", "requests") for name in stats[part])


def test_hostile_model_files_are_refused_one_by_one(tmp_path: Path) -> None:
    """Every format's truncated, lying and hostile files, beside a good model that answers throughout."""
    live, harm = tmp_path / "live", tmp_path / "harm"
    good = iris()
    put_joblib(live, "iris", good)
    names = {f"m{number}": case for number, case in enumerate(HOSTILE)}
    for name, case in names.items():
        suffix, make = HOSTILE[case]
        put(live, name, "v1", lambda path, suffix=suffix, make=make: (path / f"m.{suffix}").write_bytes(make()))
    bomb = b"cos\nsystem\n(S'touch %b'\ntR." % bytes(harm)
    put(live, "bomb", "v1", lambda path: (path / "m.pkl").write_bytes(bomb))
    trusted = ",".join(["iris", *names])
    with serving(live, "--trust-pickle", trusted, "--preload", "iris") as server:
        before = server.peak_bytes()
        for name, case in names.items():
            answer = server.post(f"/v2/models/{name}/infer", {"inputs": []})
            assert (answer.status, f"model {name!r} cannot be used" in answer.error) == (503, True), case
            assert str(tmp_path) not in answer.error, "where this host keeps its files is nobody's business"
            predicted = server.triton.infer("iris", [fp64(ROWS)]).as_numpy("predict")
            np.testing.assert_array_equal(predicted, good.predict(ROWS))
        untrusted = server.post("/v2/models/bomb/infer", {"inputs": []})
        assert (untrusted.status, "trust" in untrusted.error) == (503, True)
        assert not harm.exists(), "the pickle was run"
        assert server.peak_bytes() - before < 400 << 20, "the libraries of all formats, and none of what files claim"
        reasons = {line["name"]: line["reason"] for line in server.post("/v2/repository/index", {}).json}
        assert all(reasons[name] for name in names)


def test_a_budget_smaller_than_the_model_says_so(tmp_path: Path) -> None:
    put_joblib(tmp_path / "live", "iris", iris())
    with serving(tmp_path / "live", "--trust-pickle", "all", "--budget-bytes", "10") as tiny:
        answer = tiny.post("/v2/models/iris/infer", {"inputs": []})
        assert answer.status == 503
        assert "budget" in answer.error
