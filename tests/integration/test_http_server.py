"""The HTTP face of a daemon over real sockets: routes, who may write, and what strangers cannot do (FAULTS 23, 25)."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from tests.integration.http_fixture import TOKEN, FakeNode, digest_of, raw, serving, status_of

from modelsync.core import errors
from modelsync.core.errors import CannotListen, ModelsyncError
from modelsync.edges.http.connections import SWEEP_S
from modelsync.edges.http.ranges import Span, span_of
from modelsync.edges.http.server import HttpServer
from modelsync.web import page_policy

DATA = bytes(range(256)) * 5000
ABSENT = digest_of(b"absent")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    made = FakeNode(tmp_path)
    made.hold(DATA)
    return made


@pytest_asyncio.fixture
async def server(node: FakeNode) -> AsyncIterator[HttpServer]:
    async with serving(node) as started:
        yield started


@pytest_asyncio.fixture
async def http(server: HttpServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}", auto_decompress=False) as session:
        yield session


async def ask(server: HttpServer, head: str | bytes, body: bytes = b"") -> bytes:
    """A raw request that ends its connection; lines are given with \\n."""
    data = head.encode() if isinstance(head, str) else head
    return await asyncio.to_thread(raw, server.port, data.replace(b"\n", b"\r\n") + b"\r\n" + body)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/v1/status", 200),
        ("/v1/models", 200),
        ("/v1/models/fraud", 200),
        ("/v1/models/unknown", 404),
        ("/v1/models/.hidden", 400),
        ("/v1/models/fraud/versions/1", 200),
        ("/v1/models/fraud/versions/2", 404),
        ("/v1/models/fraud/versions/01", 400),
        ("/v1/models/fraud/versions/1/files/sub/page.html", 200),
        ("/v1/models/fraud/versions/1/files/nothing", 404),
        (f"/v1/objects/{ABSENT}", 404),
        ("/v1/objects/b3:00", 400),
        (f"/v1/objects/{str(ABSENT).upper()}", 400),
        ("/nothing", 404),
        ("/v1/command", 405),
    ],
)
async def test_routes(http: aiohttp.ClientSession, path: str, status: int) -> None:
    async with http.get(path) as answer:
        body = await answer.read()
        assert answer.status == status
        assert answer.headers["X-Modelsync-Node"] == "n1"
        if status >= 400:
            assert {"error", "message", "details"} == json.loads(body).keys()


async def test_not_ready_is_a_503_with_its_reason(node: FakeNode, http: aiohttp.ClientSession) -> None:
    node.readiness = (False, "fraud 13 is wanted, 12 is active")
    async with http.get("/readyz") as answer:
        assert answer.status == 503
        assert await answer.json() == {"ready": False, "reason": "fraud 13 is wanted, 12 is active"}


async def test_have(node: FakeNode, http: aiohttp.ClientSession) -> None:
    held = next(iter(node.objects))
    async with http.get(f"/v1/have/{held}") as answer:
        assert await answer.json() == {"held": True, "size_bytes": len(DATA)}
    async with http.get(f"/v1/have/{ABSENT}") as answer:
        assert (answer.status, await answer.json()) == (200, {"held": False, "size_bytes": None})
    async with http.head(f"/v1/have/{held}") as here, http.head(f"/v1/have/{ABSENT}") as absent:
        assert (here.status, absent.status) == (200, 404)


@pytest.mark.parametrize(
    ("header", "status", "expected"),
    [
        (None, 200, DATA),
        ("bytes=0-0", 206, DATA[:1]),
        ("bytes=10-19", 206, DATA[10:20]),
        ("bytes=1000000-", 206, DATA[1000000:]),
        ("bytes=-7", 206, DATA[-7:]),
        ("bytes=-99999999", 206, DATA),
        ("bytes=1279999-99999999999", 206, DATA[-1:]),
        ("bytes=1280000-", 416, b""),
        ("bytes=5-4", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=-", 416, b""),
        ("bytes=a-b", 416, b""),
        ("bytes=0-1,4-5", 416, b""),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(900)), 416, b""),
        ("bytes=0-" + "9" * 400, 416, b""),
        ("lines=0-1", 200, DATA),
    ],
)
async def test_ranges(
    node: FakeNode, http: aiohttp.ClientSession, header: str | None, status: int, expected: bytes
) -> None:
    digest = next(iter(node.objects))
    async with http.get(f"/v1/objects/{digest}", headers={"Range": header} if header else {}) as answer:
        assert (answer.status, await answer.read()) == (status, expected)
        assert answer.headers["ETag"] == f'"{digest}"'
        assert "immutable" in answer.headers["Cache-Control"]
        if status == 416:
            assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"
        if status == 206:
            start = DATA.index(expected) if len(expected) > 256 else None
            assert answer.headers["Content-Range"].endswith(f"/{len(DATA)}"), start


def test_a_range_of_an_empty_object_cannot_be_satisfied() -> None:
    assert span_of("bytes=0-", 0) is None
    assert span_of(None, 0) == Span(0, 0, partial=False)


async def test_conditions(node: FakeNode, http: aiohttp.ClientSession) -> None:
    digest = next(iter(node.objects))
    cases = [
        ({"If-None-Match": f'"{digest}"'}, 304),
        ({"If-None-Match": f'"x", W/"{digest}"'}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Match": "*"}, 200),
        ({"If-Range": f'"{digest}"', "Range": "bytes=0-1"}, 206),
        ({"If-Range": '"x"', "Range": "bytes=0-1"}, 200),
    ]
    for headers, status in cases:
        async with http.get(f"/v1/objects/{digest}", headers=headers) as answer:
            assert answer.status == status, headers


async def test_head_has_the_size_and_no_body(node: FakeNode, http: aiohttp.ClientSession) -> None:
    async with http.head(f"/v1/objects/{next(iter(node.objects))}") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
        assert await answer.read() == b""


async def test_an_empty_object(node: FakeNode, http: aiohttp.ClientSession) -> None:
    async with http.get(f"/v1/objects/{node.hold(b'')}") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_a_published_page_of_html_is_inert(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models/fraud/versions/1/files/sub/page.html") as answer:
        assert answer.content_type == "application/octet-stream"
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]


async def test_an_object_that_is_a_link_or_gone_is_not_served(node: FakeNode, http: aiohttp.ClientSession) -> None:
    secret, linked, gone = node.root / "secret", digest_of(b"1"), digest_of(b"2")
    secret.write_bytes(b"private")
    (node.root / "link").symlink_to(secret)
    node.objects |= {linked: node.root / "link", gone: node.root / "gone"}
    async with http.get(f"/v1/objects/{linked}") as answer:
        assert answer.status == 500
        assert b"private" not in await answer.read()
    async with http.get(f"/v1/objects/{gone}") as answer:
        assert answer.status == 404


async def test_a_disk_that_fails_under_a_read_keeps_no_descriptor(
    node: FakeNode, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = node.hold(b"small")

    def fails(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    async with http.get(f"/v1/objects/{digest}") as response:
        assert response.status == 200
    open_before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pread", fails)
    async with http.get(f"/v1/objects/{digest}") as response:
        assert response.status >= 500
    assert len(os.listdir("/proc/self/fd")) == open_before


async def test_many_readers_get_whole_objects(node: FakeNode, http: aiohttp.ClientSession) -> None:
    data = bytes(range(256)) * 40000
    digest = node.hold(data)

    async def one() -> bool:
        async with http.get(f"/v1/objects/{digest}") as answer:
            return await answer.read() == data

    assert all(await asyncio.gather(*(one() for _ in range(20))))


async def test_the_page_runs_its_own_scripts_only(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as answer:
        page, policy = await answer.text(), answer.headers["Content-Security-Policy"]
    assert page.count("<script") == page.count("<script>") == 2
    assert page.count("<style") == page.count("<style>") == 2 and '<link rel="stylesheet' not in page
    assert "innerHTML" not in page and "insertAdjacent" not in page and " style=" not in page and "src=" not in page
    assert policy == page_policy(page)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy != page_policy(page.replace("POLL_MS = 1000", "POLL_MS = 1")), "the policy names these very scripts"


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "command"),
    [
        ("/v1/command", {"command": "switchover gpu-02"}, "switchover gpu-02"),
        ("/v1/models/fraud/pin", {"version": 12}, "pin fraud 12"),
        ("/v1/models/fraud/pin", {"version": "12"}, "pin fraud 12"),
        ("/v1/models/fraud/pin", {"version": "stable"}, "pin fraud stable"),
        ("/v1/models/fraud/unpin", None, "unpin fraud"),
        ("/v1/models/fraud/update", None, "update fraud"),
        ("/v1/models/fraud/update", {"version": 13}, "update fraud 13"),
        ("/v1/models/fraud/rollback", {}, "rollback fraud"),
        ("/v1/models/fraud/alias", {"alias": "stable", "version": 12}, "alias fraud stable 12"),
    ],
)
async def test_commands(node: FakeNode, http: aiohttp.ClientSession, path: str, body: object, command: str) -> None:
    async with http.post(path, json=body) if body is not None else http.post(path) as answer:
        assert (answer.status, await answer.json()) == (200, {"done": command})
    assert node.commands == [(command, "http 127.0.0.1")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/command", b""),
        ("/v1/command", b"pin fraud 12"),
        ("/v1/command", b'{"command": 3}'),
        ("/v1/command", b'{"command": "pause", "comand": "x"}'),
        ("/v1/command", b'{"command": "pause", "command": "resume"}'),
        ("/v1/command", b'{"command": "pause", "by": "a\\u0007b"}'),
        ("/v1/command", b"[" * 60000),
        ("/v1/command", b'{"command": ' + b"9" * 5000 + b"}"),
        ("/v1/command", b"\xff\xfe"),
        ("/v1/models/fraud/pin", b'{"version": "12 and more"}'),
        ("/v1/models/fraud/pin", b'{"version": 12.5}'),
        ("/v1/models/fraud/pin", b'{"version": NaN}'),
        ("/v1/models/fraud/pin", b'{"version": -1}'),
        ("/v1/models/fraud/pin", b'{"version": true}'),
        ("/v1/models/fraud/alias", b'{"alias": "a b", "version": 1}'),
        ("/v1/models/fraud/alias", b'{"alias": "12", "version": 1}'),
        ("/v1/promise", b"{}"),
        ("/v1/promise", b'{"epoch": 0, "holder": "n2", "nonce": "x"}'),
        ("/v1/promise", b'{"epoch": true, "holder": "n2", "nonce": "x"}'),
        ("/v1/promise", b'{"epoch": 9223372036854775808, "holder": "n2", "nonce": "x"}'),
        ("/v1/promise", b'{"epoch": 1, "holder": "../n2", "nonce": "x"}'),
        ("/v1/promise", b'{"epoch": 1, "holder": "n2", "nonce": ""}'),
        ("/v1/promise", b'{"epoch": 1, "holder": "n2", "nonce": "\\ud800"}'),
    ],
)
async def test_bad_bodies_are_400_and_reach_nobody(
    node: FakeNode, http: aiohttp.ClientSession, path: str, body: bytes
) -> None:
    async with http.post(path, data=body) as answer:
        assert answer.status == 400, await answer.text()
    assert not node.commands and not node.promises


async def test_a_large_body_of_a_command_is_refused(http: aiohttp.ClientSession, server: HttpServer) -> None:
    async with http.post("/v1/command", data=b" " * 70000) as answer:
        assert answer.status == 413
    body = b"11000\r\n" + b" " * 0x11000 + b"\r\n0\r\n\r\n"
    answer_ = await ask(
        server, "POST /v1/command HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\nConnection: close\n", body
    )
    assert status_of(answer_) == 413


async def test_a_compressed_body_is_not_unpacked(node: FakeNode, http: aiohttp.ClientSession) -> None:
    body = gzip.compress(b'{"command": "pause"}')
    async with http.post("/v1/command", data=body, headers={"Content-Encoding": "gzip"}) as answer:
        assert answer.status == 400
    assert not node.commands


async def test_promise(node: FakeNode, http: aiohttp.ClientSession) -> None:
    node.is_primary = False  # every node promises for itself
    async with http.post("/v1/promise", json={"epoch": 3, "holder": "n2", "nonce": "k"}) as answer:
        assert await answer.json() == {
            "node": "n1", "granted": True, "epoch": 3, "holder": "n2", "nonce": "k", "applied": "0-0",
        }  # fmt: skip
    assert node.promises == [(3, "n2", "k")]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.PolicyRefusal(reason="pinned"), 409),
        (errors.NoSuchVersion(reason="none"), 404),
        (errors.LeaseLost(epoch=3, holder="n2"), 503),
        (errors.TimedOut(what="x", reached="y"), 504),
        (errors.DiskFailed(path="p", operation="fsync", errno_name="EIO"), 500),
        (AssertionError("a secret of the inside"), 500),
        (OSError(5, "a secret of the inside"), 500),
    ],
)
async def test_errors_become_answers(
    node: FakeNode, http: aiohttp.ClientSession, failure: Exception, status: int
) -> None:
    node.failure = failure
    async with http.post("/v1/command", json={"command": "pause"}) as answer:
        text = await answer.text()
        assert answer.status == status
        expected = type(failure).__name__ if isinstance(failure, ModelsyncError) else "InternalError"
        assert json.loads(text)["error"] == expected
        assert "secret" not in text and "Traceback" not in text
    node.failure = None
    async with http.get("/v1/status") as answer:
        assert answer.status == 200, "the daemon goes on"


WRITES = [
    ("PUT", "/v1/models/fraud"),
    ("POST", "/v1/command"),
    ("POST", "/v1/promise"),
    ("POST", "/v1/models/fraud/pin"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"])
async def test_a_write_needs_the_token(node: FakeNode, method: str, path: str, given: str | None) -> None:
    async with serving(node, token=TOKEN) as server:
        authorization = f"Authorization: {given}\n" if given is not None else ""
        answer = await ask(
            server, f"{method} {path} HTTP/1.1\nHost: localhost\nContent-Length: 0\nConnection: close\n{authorization}"
        )
    assert status_of(answer) == 401
    assert b"WWW-Authenticate: Bearer" in answer
    assert TOKEN.encode() not in answer
    assert not node.commands and not node.promises and not node.published


async def test_with_the_token_a_write_is_done_and_reading_needs_none(node: FakeNode) -> None:
    async with serving(node, token=TOKEN) as server, aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http:
        headers = {"Authorization": f"bearer {TOKEN}"}
        async with http.post("/v1/command", json={"command": "pause"}, headers=headers) as answer:
            assert answer.status == 200
        async with http.get("/v1/status") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
async def test_a_page_of_another_site_cannot_drive_a_local_daemon(
    node: FakeNode, http: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    async with http.post("/v1/command", json={"command": "pause"}, headers=headers) as answer:
        assert answer.status == status
    assert len(node.commands) == (status == 200)


async def test_the_daemon_s_own_page_may_write_and_a_rebound_name_may_not_even_read(
    http: aiohttp.ClientSession, server: HttpServer
) -> None:
    origin = f"http://127.0.0.1:{server.port}"
    async with http.post("/v1/command", json={"command": "pause"}, headers={"Origin": origin}) as answer:
        assert answer.status == 200
    for name, status in [("localhost", 200), ("[::1]:80", 200), ("evil.example", 421), ("", 421)]:
        async with http.get("/v1/status", headers={"Host": name}) as answer:
            assert answer.status == status, name


async def test_a_replica_sends_writes_to_the_primary(node: FakeNode, http: aiohttp.ClientSession) -> None:
    node.is_primary, node.primary_url = False, "http://10.0.0.9:8470/"
    for method, path in WRITES:
        if path == "/v1/promise":
            continue
        body = b'{"command": "pause"}'
        async with http.request(method, path + "?note=a%20b", data=body, allow_redirects=False) as answer:
            assert answer.status == 307
            assert answer.headers["Location"] == f"http://10.0.0.9:8470{path}?note=a%20b"
    assert not node.commands and not node.published


@pytest.mark.parametrize(
    "url", [None, "", "10.0.0.9:8470", "javascript:alert(1)", "http://", "http://u@h:1", "http://[::", "file:///etc"]
)
async def test_without_a_usable_primary_a_write_is_a_503(
    node: FakeNode, http: aiohttp.ClientSession, url: str | None
) -> None:
    node.is_primary, node.primary_url = False, url
    async with http.post("/v1/command", json={"command": "pause"}, allow_redirects=False) as answer:
        assert (answer.status, (await answer.json())["error"]) == (503, "NoPrimary")
        assert "Retry-After" in answer.headers


# --- hostile bytes ---------------------------------------------------------------------------------------------------

GET = "GET /v1/status HTTP/1.1\nHost: localhost\nConnection: close\n"
POST = "POST /v1/command HTTP/1.1\nHost: localhost\nConnection: close\n"
SMUGGLED = b"GET /v1/models/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        POST + "Content-Length: 5\nTransfer-Encoding: chunked\n",
        POST + "Content-Length: 5\nContent-Length: 6\n",
        POST + "Content-Length: +5\n",
        POST + "Content-Length: -1\n",
        POST + "Content-Length: 1e3\n",
        POST + "Transfer-Encoding: gzip\n",
        POST + "Transfer-Encoding: chunked, identity\n",
        POST + "Transfer-Encoding: xchunked\n",
        POST + "Transfer-Encoding : chunked\n",
        GET + "X: " + "y" * 20000 + "\n",
        GET + "".join(f"X{n}: y\n" for n in range(2000)),
        GET + "no colon\n",
        GET + " : folded\n",
        GET + "X: a\0b\n",
        "GET /" + "a" * 20000 + " HTTP/1.1\nHost: localhost\n",
        "GET / HTTP/9.9\nHost: localhost\n",
        "GET /v1/sta tus HTTP/1.1\nHost: localhost\n",
        "GET /\x01 HTTP/1.1\nHost: localhost\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
    ],
)
async def test_malformed_requests_are_4xx_and_the_rest_is_not_another_request(server: HttpServer, head: str) -> None:
    answer = await ask(server, head.encode("latin-1"), SMUGGLED)
    assert 400 <= status_of(answer) < 500 or answer == b"", answer[:200]
    assert b"no model smuggled" not in answer, "what follows a malformed request must not be taken for a request"
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/fraud/versions/1/files/../../../../../../etc/passwd",
        "/v1/models/fraud/versions/1/files/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/fraud/versions/1/files/..%2f..%2fetc%2fpasswd",
        "/v1/models/fraud/versions/1/files//etc/passwd",
        "/v1/models/fraud/versions/1/files/%2fetc%2fpasswd",
        "/v1/models/fraud/versions/1/files/model.bin%00.txt",
        "/v1/models/fraud/versions/1/files/sub%5c..%5cx",
        "/v1/models/fraud/versions/1/files/%ff%fe",
        "/v1/models/fraud/versions/1/files/%252e%252e/x",
        "/v1/models/..%2f..%2fetc",
        "/v1/models/%00",
        "/v1/models/%2e%2e",
        "/v1/objects/..%2f..%2fetc%2fpasswd",
        "/v1/objects/%2e%2e/%2e%2e/etc/passwd",
        "/v1/objects//etc/passwd",
        "/v1/objects/b3:" + "../" * 21 + "x",
        "/../../etc/passwd",
        "/static/../../etc/passwd",
        "http://evil.example/v1/models/%2e%2e",
    ],
)
async def test_no_path_of_a_request_reaches_the_disk(node: FakeNode, server: HttpServer, path: str) -> None:
    answer = await ask(server, f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close\n")
    assert 400 <= status_of(answer) < 500, answer[:300]
    assert b"root:" not in answer
    # What is looked up in a manifest may be odd, but never something that could climb.
    assert not any(part in ("", ".", "..") for path in node.looked_up for part in path.split("/"))


async def test_pipelined_requests_are_answered_in_order(server: HttpServer) -> None:
    answer = await ask(server, "GET /healthz HTTP/1.1\nHost: localhost\n\n" * 200 + GET)
    assert answer.count(b"HTTP/1.1 200 OK") == 201


# --- slow and many connections ---------------------------------------------------------------------------------------


async def drip(port: int, stop: asyncio.Event) -> bool:
    """Open a connection and send a header byte now and then; True if the server closed it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nX-Slow: ")
    try:
        while not stop.is_set():
            writer.write(b"a")
            with contextlib.suppress(TimeoutError):
                if await asyncio.wait_for(reader.read(100), 0.25) == b"":
                    return True
    except ConnectionError:
        return True
    finally:
        writer.close()
    return False


async def test_a_thousand_slow_heads_do_not_stop_honest_pulls_and_are_closed(node: FakeNode) -> None:
    digest, stop = next(iter(node.objects)), asyncio.Event()
    async with serving(node, head_timeout_s=3.0) as server:
        slow = [asyncio.create_task(drip(server.port, stop)) for _ in range(1000)]
        await asyncio.sleep(1.0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http:
            started_s = time.monotonic()
            for _ in range(20):
                async with http.get(f"/v1/objects/{digest}", headers={"Connection": "close"}) as answer:
                    assert await answer.read() == DATA
            assert time.monotonic() - started_s < 5.0
        done, waiting = await asyncio.wait(slow, timeout=10)
        stop.set()
        assert not waiting, f"{len(waiting)} slow connections are still open"
        assert all(task.result() for task in done)


async def test_at_the_limit_the_oldest_waiting_connection_makes_room(node: FakeNode) -> None:
    async with serving(node, max_connections=10, head_timeout_s=60.0) as server:
        slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(10)]
        for _, writer in slow:
            writer.write(b"GET / HTT")
        await asyncio.sleep(0.1)
        answer = await ask(server, GET)
        assert status_of(answer) == 200
        assert await asyncio.wait_for(slow[0][0].read(), 5) == b"", "the oldest went"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow[-1][0].read(), 0.2)
        for _, writer in slow:
            writer.close()


async def test_when_all_are_at_work_a_newcomer_is_told_so(node: FakeNode) -> None:
    digest = node.hold(b"x" * (32 << 20))
    async with serving(node, max_connections=3) as server:
        busy = [await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 10) for _ in range(3)]
        for reader, writer in busy:
            writer.write(f"GET /v1/objects/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
        assert status_of(await ask(server, GET)) == 503
        busy[0][1].transport.abort()
        await asyncio.sleep(0.2)
        assert status_of(await ask(server, GET)) == 200, "a place became free"
        for _, writer in busy:
            writer.transport.abort()


async def test_a_receiver_that_takes_nothing_is_cut_off(node: FakeNode) -> None:
    digest = node.hold(b"x" * (32 << 20))
    async with serving(node, max_connections=1, stalled_receiver_s=1.0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 10)
        writer.write(f"GET /v1/objects/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert status_of(await ask(server, GET)) == 503
        await asyncio.sleep(4)
        assert status_of(await ask(server, GET)) == 200
        writer.transport.abort()


async def test_an_idle_connection_is_closed_and_one_at_work_is_not(node: FakeNode) -> None:
    release = asyncio.Event()

    async def slow_status() -> dict[str, object]:
        await release.wait()
        return {}

    node.status = slow_status  # type: ignore[method-assign,assignment]
    async with serving(node, head_timeout_s=0.5, idle_timeout_s=0.5) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(0.5 + 2 * SWEEP_S + 0.3)
        release.set()
        assert (await asyncio.wait_for(reader.readuntil(b"{}\n"), 5)).startswith(b"HTTP/1.1 200")
        started_s = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert time.monotonic() - started_s < 0.5 + 2 * SWEEP_S + 1
        writer.close()


# --- starting and stopping -------------------------------------------------------------------------------------------


async def test_an_address_in_use_is_said_so(node: FakeNode, server: HttpServer) -> None:
    second = HttpServer(node, host="127.0.0.1", port=server.port, token=None, node="n2", fleet="test")
    with pytest.raises(CannotListen, match="in use"):
        await second.start()
    await second.stop()
    foreign = HttpServer(node, host="203.0.113.1", port=0, token=None, node="n2", fleet="test")
    with pytest.raises(CannotListen, match=r"203\.0\.113\.1"):
        await foreign.start()


async def test_a_stop_lets_a_running_request_end_and_waits_no_longer_than_it_must(node: FakeNode) -> None:
    async def slow(seconds: float) -> dict[str, object]:
        await asyncio.sleep(seconds)
        return {"slept": seconds}

    node.status = lambda: slow(0.4)  # type: ignore[method-assign,assignment,return-value]
    async with serving(node, drain_s=1.0) as server:
        pending = asyncio.create_task(ask(server, GET))
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.2)
        await server.stop()
        assert b'"slept": 0.4' in await pending
        assert await asyncio.wait_for(idle_reader.read(), 2) == b""
        idle_writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", server.port)

    node.status = lambda: slow(60)  # type: ignore[method-assign,assignment,return-value]
    async with serving(node, drain_s=0.5) as server:
        pending = asyncio.create_task(ask(server, GET))
        await asyncio.sleep(0.2)
        started_s = time.monotonic()
        await server.stop()
        assert time.monotonic() - started_s < 3
        assert await pending == b""


async def test_a_stop_with_a_download_that_nobody_reads(node: FakeNode) -> None:
    digest = node.hold(b"x" * (32 << 20))
    async with serving(node, drain_s=0.5) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 10)
        writer.write(f"GET /v1/objects/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        started_s = time.monotonic()
        await server.stop()
        assert time.monotonic() - started_s < 3
        writer.transport.abort()


async def test_an_epoch_is_believed_of_the_fleet_only_and_every_answer_carries_one(
    node: FakeNode, http: aiohttp.ClientSession
) -> None:
    async with http.get("/healthz", headers={"X-Modelsync-Epoch": "7"}) as answer:
        assert answer.headers["X-Modelsync-Epoch"] == "7"
    for nonsense in ("0", "-1", "9" * 16, "07", "x"):
        async with http.get("/healthz", headers={"X-Modelsync-Epoch": nonsense}) as answer:
            assert answer.headers["X-Modelsync-Epoch"] == "7"
    assert node.highest_epoch == 7


async def test_a_replica_without_a_primary_carries_out_a_resume_and_nothing_else(
    node: FakeNode, http: aiohttp.ClientSession
) -> None:
    node.is_primary, node.primary_url = False, None
    async with http.post("/v1/command", json={"command": "resume"}) as answer:
        assert answer.status == 200
    async with http.post("/v1/command", json={"command": "pause"}) as answer:
        assert answer.status == 503
    assert [text for text, _ in node.commands] == ["resume"]
