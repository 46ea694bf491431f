"""Uploads over real sockets: what arrives, what is refused before it is sent, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from tests.integration.http_fixture import TOKEN, FakeNode, raw, serving, status_of

from modelsync.core import errors
from modelsync.core.errors import BadName, DiskFull, NotAModel, PeerRefused, PolicyRefusal, SourceChanged
from modelsync.core.ids import ModelName
from modelsync.edges.http import bodies as http_bodies
from modelsync.edges.http import staging as http_staging
from modelsync.edges.http.control import ControlClient
from modelsync.edges.http.outgoing import files_of
from modelsync.edges.http.server import HttpServer
from modelsync.edges.http.upload_client import put as put_files

FRAUD = ModelName("fraud")
B = "XyZ"


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    (tmp_path / "node").mkdir()
    return FakeNode(tmp_path / "node")


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """A multipart body; each part is its Content-Disposition parameters and its content."""
    body = b""
    for parameters, content in parts:
        body += f"--{B}\r\nContent-Disposition: form-data; {parameters}\r\n\r\n".encode() + content + b"\r\n"
    return body + (f"--{B}--\r\n".encode() if end else b"")


def file(path: str, content: bytes = b"1") -> tuple[str, bytes]:
    return f'name="file"; filename="{path}"', content


async def put(
    server: HttpServer, body: bytes, *headers: str, path: str = "/v1/models/fraud", multipart: bool = True
) -> bytes:
    kind = [f"Content-Type: multipart/form-data; boundary={B}"] if multipart else []
    lines = [f"PUT {path} HTTP/1.1", "Host: localhost", "Connection: close", *kind, *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return await asyncio.to_thread(raw, server.port, "\r\n".join(lines).encode() + b"\r\n\r\n" + body)


async def settled(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within five seconds."""
    for _ in range(250):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


def disk_of(monkeypatch: pytest.MonkeyPatch, free_bytes: Callable[[], int]) -> None:
    """Let the staging believe that this much is free."""
    real = shutil.disk_usage
    monkeypatch.setattr(http_staging.shutil, "disk_usage", lambda path: real(path)._replace(free=free_bytes()))


# --- what arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "header", "name"),
    [
        ("", None, "fraud"),
        ("?filename=model.joblib", None, "model.joblib"),
        ("?filename=a/b.bin", 'attachment; filename="other"', "a/b.bin"),
        ("", 'attachment; filename="model.onnx"', "model.onnx"),
        ("", "attachment; filename*=UTF-8''zw%C3%B6lf.bin", "zwölf.bin"),
        ("", "attachment", "fraud"),
    ],
)
async def test_a_raw_body_is_one_file(node: FakeNode, query: str, header: str | None, name: str) -> None:
    async with serving(node) as server:
        headers = [f"Content-Disposition: {header}"] if header else []
        answer = await put(server, b"weights", *headers, path=f"/v1/models/fraud{query}", multipart=False)
    assert status_of(answer) == 201
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1]) == {
        "model": "fraud", "version": 13, "id": "7-42", "unchanged": False,
        "digest": "b3:0d197521d9a48760576da1c87dfd828a60d397ea1e16f92a5b7c44b4f4060ce1",
    }  # fmt: skip
    assert node.published[0][1] == {name: b"weights"}
    assert node.staged() == []


async def test_fields_come_in_the_query_or_in_the_form(node: FakeNode) -> None:
    fields = [('name="note"', b"gr\xc3\xbc\xc3\x9fe"), ('name="metadata"', b'{"auc": 0.91}'), ('name="version"', b"7")]
    async with serving(node) as server:
        query = "/v1/models/fraud?note=a%20b%26c&author=me&version=7&metadata=%7B%22auc%22:0.91%7D"
        assert status_of(await put(server, b"1", path=query, multipart=False)) == 201
        assert status_of(await put(server, form(*fields, file("a/b"), file("c")))) == 201
        assert status_of(await put(server, form(file("c"), *fields))) == 201, "fields may come last"
    uploads = [upload for upload, _ in node.published]
    assert [(u.note, u.author, u.version, u.metadata) for u in uploads] == [
        ("a b&c", "me", 7, {"auc": 0.91}),
        ("grüße", "", 7, {"auc": 0.91}),
        ("grüße", "", 7, {"auc": 0.91}),
    ]
    assert node.published[1][1] == {"a/b": b"1", "c": b"1"}


async def test_an_unchanged_model_is_a_200(node: FakeNode) -> None:
    node.unchanged = True
    async with serving(node) as server:
        answer = await put(server, b"", multipart=False)
    assert status_of(answer) == 200 and b'"unchanged": true' in answer


async def test_chunked_bodies_and_many_pieces(node: FakeNode) -> None:
    content = os.urandom(3_000_000)

    async def pieces() -> AsyncIterator[bytes]:
        body = form(file("a", content), file("b", content[:1000]))
        for at in range(0, len(body), 7001):
            yield body[at : at + 7001]

    async with serving(node) as server, aiohttp.ClientSession() as http:
        headers = {"Content-Type": f"multipart/form-data; boundary={B}"}
        url = f"http://127.0.0.1:{server.port}/v1/models/fraud"
        async with http.put(url, data=pieces(), headers=headers) as answer:
            assert answer.status == 201
    assert node.published[0][1] == {"a": content, "b": content[:1000]}


# --- what is refused, with nothing left ------------------------------------------------------------------------------

BAD_PATHS = [
    "../x",
    "/etc/x",
    "a/../../x",
    "a//b",
    ".",
    "..",
    "a/.",
    "a\\\\b",
    "..\\\\x",
    "",
    "x" * 256,
    "a/" * 2100 + "b",
    "a\x01b",
]


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_a_path_that_could_climb_is_a_400(node: FakeNode, path: str) -> None:
    async with serving(node) as server:
        answer = await put(server, form(file("good"), file(path), file("also-good")))
    assert status_of(answer) == 400, answer[:300]
    assert node.staged() == [] and not node.published
    assert sorted(p.name for p in node.root.parent.glob("**/*")) == ["node", "tmp"], "nothing anywhere"


@pytest.mark.parametrize("path", ["..%2fx", "%2fetc%2fx", "a%00b", "a%5cb", "", "%ff"])
async def test_a_raw_body_s_file_name_is_checked_too(node: FakeNode, path: str) -> None:
    async with serving(node) as server:
        answer = await put(server, b"1", path=f"/v1/models/fraud?filename={path}", multipart=False)
        if path in ("", "%ff"):  # "" falls back to the model's name; %ff stays as these three characters
            assert status_of(answer) in (201, 400)
        else:
            assert status_of(answer) == 400
    assert node.staged() == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(file("a"), file("a")), 400),
        (form(file("a"), file("a/b")), 400),
        (form(file("a/b"), file("a")), 400),
        (form(), 422),
        (form(('name="note"', b"x")), 422),
        (form(file("a"), ('name="unknown"', b"x")), 400),
        (form(file("a"), ('name="note"', b"x"), ('name="note"', b"y")), 400),
        (form(file("a"), ('name="note"', b"\xff")), 400),
        (form(file("a"), ('name="note"', b"x" * 70000)), 400),
        (form(file("a"), ('name="metadata"', b"x" * (2 << 20))), 400),
        (form(file("a"), ('name="metadata"', b"[]")), 400),
        (form(file("a"), ('name="metadata"', b'{"a": NaN}')), 400),
        (form(file("a"), ('name="metadata"', b'{"a": 1, "a": 2}')), 400),
        (form(file("a"), ('name="metadata"', b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}")), 400),
        (form(file("a"), ('name="version"', b"012")), 400),
        (form(file("a"), ('name="version"', b"-1")), 400),
        (form(file("a"), end=False), 400),
        (form(file("a"))[:-20], 400),
        (b"", 400),
        (b"just text", 400),
        (os.urandom(5 << 20), 400),
    ],
)
async def test_bad_forms(node: FakeNode, body: bytes, status: int) -> None:
    async with serving(node) as server:
        answer = await put(server, body)
    assert status_of(answer) == status, answer[:300]
    assert node.staged() == [] and not node.published


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        (["Content-Encoding: gzip"], "", 415),
        (["Content-Type: multipart/mixed; boundary=x"], "", 415),
        (["Content-Type: multipart/form-data"], "", 400),
        ([], "?notes=typo", 400),
        ([], "?version=0", 400),
        (["Expect: 200-ok"], "", 417),
        (["Content-Length: 1e9"], "", 400),
    ],
)
async def test_bad_heads(node: FakeNode, headers: list[str], query: str, status: int) -> None:
    async with serving(node) as server:
        answer = await put(server, b"1", *headers, path=f"/v1/models/fraud{query}", multipart=False)
    assert status_of(answer) == status, answer[:300]
    assert not node.published
    assert not (node.root / "tmp").exists() or node.staged() == []


async def test_too_many_files_are_refused(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_staging, "MAX_FILES", 50)
    async with serving(node) as server:
        assert status_of(await put(server, form(*(file(f"f{n}", b"") for n in range(50))))) == 201
        assert status_of(await put(server, form(*(file(f"f{n}", b"") for n in range(51))))) == 400
        deep = form(*(file("/".join(f"d{n}{m}" for m in range(30)) + "/x", b"") for n in range(3)))
        assert status_of(await put(server, deep)) == 400, "directories count as well"
    assert node.staged() == []


async def test_thousands_of_files(node: FakeNode) -> None:
    async with serving(node) as server:
        assert status_of(await put(server, form(*(file(f"d{n % 10}/f{n}", b"x") for n in range(3000))))) == 201
    assert len(node.published[0][1]) == 3000


async def test_a_publish_that_fails_leaves_nothing(node: FakeNode) -> None:
    for failure, status in [(errors.NotAModel(path="a", reason="b"), 422), (ValueError("bug"), 500)]:
        node.failure = failure
        async with serving(node) as server:
            assert status_of(await put(server, form(file("a")))) == status
        assert node.staged() == []


# --- before the first byte -------------------------------------------------------------------------------------------


async def test_a_full_disk_is_a_507_before_the_body_is_asked_for(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_of(monkeypatch, lambda: 1000)
    async with serving(node) as server:
        answer = await put(server, b"", "Content-Length: 1001", "Expect: 100-continue", multipart=False)
        assert status_of(answer) == 507 and b"100 Continue" not in answer
        assert status_of(await put(server, b"x" * 500, multipart=False)) == 201, "it lies there twice for a moment"
    assert node.staged() == []


async def test_an_endless_body_stops_at_the_reserve(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    most_used = 0

    def free_bytes() -> int:
        nonlocal most_used
        used = sum(path.stat().st_size for path in (node.root / "tmp").glob("**/*") if path.is_file())
        most_used = max(most_used, used)
        return (20 << 20) - used

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * (1 << 20)

    disk_of(monkeypatch, free_bytes)
    async with serving(node, reserve_bytes=5 << 20) as server, aiohttp.ClientSession() as http:
        with contextlib.suppress(aiohttp.ClientError):  # it may not read the answer, since it never stops to send
            async with http.put(f"{url_of(server)}/v1/models/fraud", data=endless()) as answer:
                assert answer.status == 507
        assert await settled(lambda: node.staged() == [])
    assert 10 << 20 < most_used <= 15 << 20
    assert not node.published


async def test_a_size_limit_holds_with_and_without_a_length(node: FakeNode) -> None:
    async with serving(node, max_upload_bytes=1000) as server:
        refused = await put(server, b"", "Content-Length: 1001", "Expect: 100-continue", multipart=False)
        assert status_of(refused) == 413 and b"100 Continue" not in refused
        chunked = b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"
        assert status_of(await put(server, chunked, "Transfer-Encoding: chunked", multipart=False)) == 413
        assert status_of(await put(server, b"x" * 500, multipart=False)) == 201, "it lies there twice for a moment"
    assert node.staged() == []


async def test_a_replica_redirects_and_a_token_is_asked_for_before_the_body(node: FakeNode) -> None:
    node.is_primary, node.primary_url = False, "http://10.0.0.9:1"
    head = ["Content-Length: 1000000000000", "Expect: 100-continue"]
    async with serving(node) as server:
        answer = await put(server, b"", *head, multipart=False)
        assert status_of(answer) == 307 and b"100 Continue" not in answer
        assert b"Location: http://10.0.0.9:1/v1/models/fraud\r\n" in answer
    async with serving(node, token=TOKEN) as server:
        answer = await put(server, b"", *head, multipart=False)
        assert status_of(answer) == 401 and b"100 Continue" not in answer
    assert not (node.root / "tmp").exists()


async def test_the_primary_says_continue_and_then_takes_the_body(node: FakeNode) -> None:
    async with serving(node) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"PUT /v1/models/fraud HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 201")
        writer.close()


# --- senders that stop -----------------------------------------------------------------------------------------------


async def start(server: HttpServer, length: int = 1000) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"PUT /v1/models/fraud HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\nabc".encode())
    return reader, writer


async def test_a_sender_that_falls_silent_is_a_408(node: FakeNode) -> None:
    async with serving(node, body_silence_s=0.5) as server:
        reader, writer = await start(server)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)).startswith(b"HTTP/1.1 408")
        assert await settled(lambda: node.staged() == [])
        writer.close()


async def test_a_sender_that_trickles_is_a_408(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bodies, "GRACE_S", 0.5)
    async with serving(node, body_silence_s=30.0) as server:
        reader, writer = await start(server)
        answer = asyncio.create_task(reader.readuntil(b"\r\n"))
        for _ in range(20):
            writer.write(b"x")
            await asyncio.sleep(0.1)
            if answer.done():
                break
        assert (await asyncio.wait_for(answer, 1)).startswith(b"HTTP/1.1 408")
        assert node.staged() == []
        writer.close()


@pytest.mark.parametrize("manner", ["close", "abort"])
async def test_a_sender_that_leaves_leaves_nothing(node: FakeNode, manner: str) -> None:
    async with serving(node, body_silence_s=30.0) as server:
        _, writer = await start(server)
        assert await settled(lambda: len(node.staged()) == 2)
        writer.transport.abort() if manner == "abort" else writer.close()
        assert await settled(lambda: node.staged() == [])
    assert not node.published


async def test_a_stop_during_an_upload_leaves_nothing(node: FakeNode) -> None:
    async with serving(node, body_silence_s=30.0, drain_s=0.3) as server:
        _, writer = await start(server)
        assert await settled(lambda: len(node.staged()) == 2)
        await server.stop()
        assert node.staged() == []
        writer.close()


async def test_uploads_at_once_are_limited(node: FakeNode) -> None:
    async with serving(node, max_uploads=2, body_silence_s=30.0) as server:
        writers = [(await start(server))[1] for _ in range(2)]
        assert await settled(lambda: len(node.staged()) == 4)
        assert status_of(await put(server, b"1", multipart=False)) == 503
        writers[0].transport.abort()
        assert await settled(lambda: len(node.staged()) == 2)
        assert status_of(await put(server, b"1", multipart=False)) == 201
        writers[1].transport.abort()


# --- the client ------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub dir").mkdir(parents=True)
    (root / "sub dir" / "ü;'.bin").write_bytes(os.urandom(2_500_000))
    (root / "empty").touch()
    return root


async def publish(
    client: ControlClient,
    url: str,
    name: ModelName,
    path: Path,
    progress: Callable[[int, int], None] = lambda sent, total: None,
    **said: str,
) -> dict[str, object]:
    """In one request, as the publisher does it for what is small."""
    files = files_of(path)
    return await put_files(client, url, name, files, whole=not path.is_dir(), said=said, content=None, on_sent=progress)


def url_of(server: HttpServer) -> str:
    return f"http://127.0.0.1:{server.port}"


async def test_publishing_through_a_replica(node: FakeNode, source: Path, tmp_path: Path) -> None:
    replica = FakeNode(tmp_path, is_primary=False)
    seen: list[tuple[int, int]] = []
    async with (
        serving(node, token=TOKEN) as first,
        serving(replica, token=TOKEN) as second,
        ControlClient(TOKEN) as client,
    ):
        replica.primary_url = url_of(first)
        answer = await publish(client,
            url_of(second), FRAUD, source, note="a&b=ü", author="me", version="7", metadata='{"lr": 0.1}',
            progress=lambda sent, total: seen.append((sent, total)),
        )  # fmt: skip
        await publish(client, url_of(second), FRAUD, source / "sub dir" / "ü;'.bin", note="single")
    assert answer["version"] == 13
    (upload, files), (_, single) = node.published
    assert (upload.note, upload.author, upload.version, upload.metadata) == ("a&b=ü", "me", 7, {"lr": 0.1})
    content = (source / "sub dir" / "ü;'.bin").read_bytes()
    assert files == {"empty": b"", "sub dir/ü;'.bin": content}
    assert single == {"ü;'.bin": content}
    assert seen[-1][0] == seen[-1][1] > len(content)
    assert seen == sorted(seen) and len(set(seen)) == len(seen), "nothing was sent to the replica in vain"
    assert not replica.published and not (tmp_path / "tmp").exists()


async def test_a_refusal_half_way_is_read_by_the_sender(
    node: FakeNode, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stops reading; the client must see why, not a reset."""
    (source / "large").write_bytes(bytes(40 << 20))
    left = iter([1 << 40] * 4)
    disk_of(monkeypatch, lambda: next(left, 0))
    async with serving(node) as server, ControlClient() as client:
        with pytest.raises(DiskFull):
            await publish(client, url_of(server), FRAUD, source)
    assert node.staged() == []


@pytest.mark.parametrize(
    "failure", [PolicyRefusal(reason="pinned to 12"), NotAModel(path="a", reason="b"), errors.LeaseLost(3, "n2")]
)
async def test_refusals_come_back_as_themselves(node: FakeNode, source: Path, failure: errors.ModelsyncError) -> None:
    node.failure = failure
    async with serving(node) as server, ControlClient() as client:
        for attempt in (publish(client, url_of(server), FRAUD, source), client.command(url_of(server), "pause")):
            with pytest.raises(type(failure)) as caught:
                await attempt
            assert caught.value.details() == failure.details()
            assert caught.value.exit_code == failure.exit_code


async def test_a_wrong_token_is_a_refusal_by_policy(node: FakeNode, source: Path) -> None:
    async with serving(node, token=TOKEN) as server, ControlClient("wrong") as client:
        with pytest.raises(PolicyRefusal, match="token"):
            await publish(client, url_of(server), FRAUD, source)


async def test_a_file_that_changes_while_it_is_sent(node: FakeNode, source: Path) -> None:
    large = source / "large"
    large.write_bytes(bytes(8 << 20))

    def truncate(sent: int, total: int) -> None:
        if sent > 4 << 20 and large.stat().st_size > 100:
            os.truncate(large, 100)

    async with serving(node) as server, ControlClient() as client:
        with pytest.raises(SourceChanged, match="large"):
            await publish(client, url_of(server), FRAUD, source, progress=truncate)
        assert await settled(lambda: node.staged() == [])
    assert not node.published


async def test_a_file_rewritten_at_its_old_size_while_it_is_sent(node: FakeNode, source: Path) -> None:
    large = source / "large"
    large.write_bytes(bytes(8 << 20))

    def rewrite(sent: int, total: int) -> None:
        if 4 << 20 < sent < 6 << 20:
            with large.open("r+b") as file:
                file.write(b"other")

    async with serving(node) as server, ControlClient() as client:
        with pytest.raises(SourceChanged, match="large"):
            await publish(client, url_of(server), FRAUD, source, progress=rewrite)
        assert await settled(lambda: node.staged() == [])
    assert not node.published


async def test_what_cannot_be_published_is_refused_here(node: FakeNode, tmp_path: Path) -> None:
    empty, linked, piped = tmp_path / "e", tmp_path / "l", tmp_path / "p"
    for directory in (empty, linked, piped):
        directory.mkdir()
    (linked / "a").symlink_to("/etc/passwd")
    os.mkfifo(piped / "a")
    (tmp_path / "back\\slash").touch()
    async with serving(node) as server, ControlClient() as client:
        for path in (empty, linked, piped, tmp_path / "absent"):
            with pytest.raises(NotAModel):
                await publish(client, url_of(server), FRAUD, path)
        with pytest.raises(BadName):
            await publish(client, url_of(server), FRAUD, tmp_path / "back\\slash")


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:1/v1/other", "file:///v1/command", "http://u:p@127.0.0.1:1/v1/command", "//[::", "https://"],
)
async def test_a_redirect_elsewhere_is_not_followed(location: str) -> None:
    server, url = await answering(f"HTTP/1.1 307 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
    async with ControlClient(TOKEN) as client:
        with pytest.raises(PeerRefused):
            await client.command(url, "pause")
    server.close()


async def test_redirects_in_a_circle_end(node: FakeNode) -> None:
    async with serving(node) as server, ControlClient() as client:
        node.is_primary, node.primary_url = False, url_of(server)
        with pytest.raises(PeerRefused, match="redirected more than"):
            await client.command(url_of(server), "pause")


async def answering(answer: bytes, delay_s: float = 0.0) -> tuple[asyncio.Server, str]:
    """A server that says the same to everyone."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(delay_s)
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", errors.PeerUnavailable),
        (b"SSH-2.0-OpenSSH\r\n", errors.PeerRefused),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", errors.PeerUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", errors.MalformedMessage),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{NaN}", errors.MalformedMessage),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (17 << 20), errors.MalformedMessage),
        (b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", errors.PeerRefused),
        (b"HTTP/1.1 500 X\r\nContent-Length: 5\r\n\r\nwhat?", errors.PeerRefused),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", None),
    ],
)
async def test_answers_that_are_none(answer: bytes, kind: type[Exception] | None) -> None:
    server, url = await answering(answer)
    async with ControlClient() as client:
        if kind is None:
            assert await client.status(url) == {}
        else:
            with pytest.raises(kind):
                await client.status(url)
    server.close()


async def test_silence_is_a_timeout_and_for_a_promise_an_unavailable_peer() -> None:
    server, url = await answering(b"", delay_s=3.0)
    async with ControlClient(timeout_s=0.2) as client:
        with pytest.raises(errors.TimedOut):
            await client.status(url)
        with pytest.raises(errors.PeerUnavailable):
            await client.promise(url, 3, "n2", "k")  # type: ignore[arg-type]
    server.close()


@pytest.mark.parametrize("fault", [
    errors.DiskFull(path="/state"), errors.StaleEpoch(offered=1, accepted=2), errors.PolicyRefusal(reason="no"),
    errors.RedisUnavailable(operation="x", reason="y"), errors.NoPrimary(fleet="f"),
    errors.TimedOut(what="x", reached="y"),
    errors.DiskFailed(path="/state", operation="fsync", errno_name="EIO"),
])  # fmt: skip
async def test_between_daemons_a_peer_s_fault_stays_the_peer_s(node: FakeNode, fault: errors.ModelsyncError) -> None:
    """A full disk of one host, revived as our own, once ended every daemon that asked it for a promise."""
    node.failure = fault
    async with serving(node) as server, ControlClient() as client:
        for asked in (client.promise(url_of(server), 3, "n2", "k"), client.catalog(url_of(server))):  # type: ignore[arg-type]
            with pytest.raises((errors.PeerRefused, errors.PeerUnavailable)):
                await asked


async def test_between_daemons_a_wrong_token_is_the_peer_s_refusal(node: FakeNode) -> None:
    async with serving(node, token="another") as server, ControlClient("wrong") as client:
        with pytest.raises(errors.PeerRefused):
            await client.promise(url_of(server), 3, "n2", "k")  # type: ignore[arg-type]


async def test_a_small_object_is_verified(node: FakeNode) -> None:
    digest = node.hold(b"chunk list")
    async with serving(node) as server, ControlClient() as client:
        assert await client.get_object(url_of(server), digest, 100) == b"chunk list"
        with pytest.raises(errors.MalformedMessage):
            await client.get_object(url_of(server), digest, 9)
        node.objects[digest].write_bytes(b"chunk lisp")
        with pytest.raises(errors.DigestMismatch):
            await client.get_object(url_of(server), digest, 100)


# --- memory ----------------------------------------------------------------------------------------------------------

UPLOAD = """
import asyncio, sys, tempfile
from pathlib import Path
from modelsync.core.ids import ModelName
from modelsync.edges.http.control import ControlClient
from tests.integration.http_fixture import FakeNode, serving
from tests.integration.test_http_upload import publish

def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

async def main(source, root):
    node = FakeNode(Path(root), keep_contents=False)
    async with serving(node) as server, ControlClient() as client:
        url = f"http://127.0.0.1:{server.port}"
        await publish(client, url, ModelName("warm"), Path(source) / "small")
        before = peak_kb()
        await publish(client, url, ModelName("raw"), Path(source) / "large")
        await publish(client, url, ModelName("form"), Path(source))
    print(before, peak_kb(), [sorted(files) for _, files in node.published])

asyncio.run(main(*sys.argv[1:]))
"""


def test_three_hundred_megabytes_pass_through_little_memory(tmp_path: Path) -> None:
    """Client and server together, twice: as one file and as a form."""
    (tmp_path / "source").mkdir()
    (tmp_path / "node").mkdir()
    (tmp_path / "source" / "small").write_bytes(b"x" * 1000)
    with (tmp_path / "source" / "large").open("wb") as large:
        large.truncate(300 << 20)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UPLOAD), str(tmp_path / "source"), str(tmp_path / "node")],
        capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "PYTHONPATH": "daemon:."},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    before_kb, after_kb, files = run.stdout.split(" ", 2)
    assert files.strip() == "[['small'], ['large'], ['large', 'small']]"
    assert int(after_kb) - int(before_kb) < 40 << 10
