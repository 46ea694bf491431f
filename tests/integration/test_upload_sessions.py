"""Uploads that break off and go on, over real sockets and a real store: what is kept, what is refused, what is sent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from blake3 import blake3
from tests.integration.http_fixture import TOKEN, FakeNode, serving

from modelsync.core import errors, uploads
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.core.uploads import CHUNKS_TYPE, PLAN_TYPE, UploadPlan, frame_head
from modelsync.edges.disk import durable
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.http import upload_client
from modelsync.edges.http.control import ControlClient
from modelsync.edges.http.outgoing import files_of
from modelsync.edges.http.outgoing_plan import OutgoingChunks, planned
from modelsync.edges.uploads import kept as kept_uploads
from modelsync.edges.uploads.kept import Uploads
from modelsync.ports import Published, Upload

MIB = CHUNK_BYTES
FRAUD = ModelName("fraud")


class Primary(FakeNode):
    """A node whose store is real: what was uploaded is taken in, and its bytes are looked at."""

    store: IngestingStore

    async def publish(self, upload: Upload) -> Published:
        if upload.received is None:
            return await super().publish(upload)
        self._fail()
        entries = await asyncio.to_thread(self.store.take_in, upload.received)
        contents = {entry.path: self.store.object_path(entry.digest).read_bytes() for entry in entries}
        self.published.append((upload, contents))
        return Published(upload.model, Version(13), Digest(bytes(32)), EntryId(7, 42), self.unchanged)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[IngestingStore]:
    store = IngestingStore(tmp_path / "state")
    store.open()
    yield store
    store.close()


@pytest.fixture
def node(tmp_path: Path, store: IngestingStore) -> Primary:
    node = Primary(tmp_path)
    node.store = store
    return node


@contextlib.asynccontextmanager
async def primary(node: Primary, **limits: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A server over a fresh look at the store's uploads, and a client of it."""
    token = limits.pop("token", None)
    async with serving(node, uploads=Uploads(node.store), token=token, **limits) as server:
        base = f"http://127.0.0.1:{server.port}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with aiohttp.ClientSession(base, headers=headers) as session:
            yield session


def source(tmp_path: Path, **sizes: int) -> Path:
    root = tmp_path / "source"
    root.mkdir(exist_ok=True)
    for name, size in sizes.items():
        (root / name).write_bytes(os.urandom(size))
    return root


def plan(path: Path) -> UploadPlan:
    return planned(files_of(path), lambda size: None)


async def begin(client: aiohttp.ClientSession, made: UploadPlan, model: str = "fraud") -> dict[str, Any]:
    url, data = f"/v1/models/{model}/uploads", uploads.encode_plan(made)
    async with client.post(url, data=data, headers={"Content-Type": PLAN_TYPE}) as answer:
        return {"status": answer.status, **await answer.json()}


def frames(path: Path, made: UploadPlan, *chunks: int) -> bytes:
    root = path if path.is_dir() else path.parent
    body = b""
    for chunk in chunks:
        number, offset, size = made.place_of(chunk)
        body += frame_head(chunk) + (root / made.files[number].path).read_bytes()[offset : offset + size]
    return body


async def patch(client: aiohttp.ClientSession, upload: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": CHUNKS_TYPE, **headers}
    async with client.patch(upload, data=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def publish(client: aiohttp.ClientSession, upload: str, **said: str) -> tuple[int, dict[str, Any]]:
    async with client.post(f"{upload}/publish", json=said) as answer:
        return answer.status, await answer.json()


def left(node: Primary) -> list[str]:
    return sorted(os.listdir(node.store.root / "uploads"))


# --- planned ---------------------------------------------------------------------------------------------------------


async def test_what_is_missing_is_asked_for_and_published_when_it_is_there(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=3 * MIB + 7, b=10, c=0)
    made = plan(root)
    async with primary(node) as client:
        opened = await begin(client, made)
        assert opened["status"] == 201 and opened["missing"] == [[0, 5]] and opened["missing_bytes"] == 3 * MIB + 17
        assert (await patch(client, opened["upload"], frames(root, made, 4, 2)))[1] == {"missing_bytes": 2 * MIB + 7}
        status, refused = await publish(client, opened["upload"])
        assert status == 409 and refused["error"] == "UploadIncomplete" and not node.published
        await patch(client, opened["upload"], frames(root, made, 0, 1, 2, 3))
        status, answer = await publish(client, opened["upload"], note="grüße", version="7", metadata='{"auc": 0.9}')
    assert (status, answer["version"]) == (201, 13)
    upload, contents = node.published[0]
    assert contents == {name: (root / name).read_bytes() for name in "abc"}
    assert (upload.note, upload.version, upload.metadata) == ("grüße", 7, {"auc": 0.9})
    assert left(node) == []
    for entry in (file.entry for file in upload.received or ()):
        assert node.store.object_path(entry.digest).stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("restart", [False, True])
async def test_a_sender_that_dies_within_a_chunk_loses_that_chunk_alone(
    node: Primary, tmp_path: Path, restart: bool
) -> None:
    root = source(tmp_path, a=8 * MIB)
    made = plan(root)
    body = frames(root, made, *range(8))

    async def broken() -> AsyncIterator[bytes]:
        yield body[: 3 * MIB + 500_000]
        await asyncio.sleep(0.3)
        raise ConnectionError

    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(primary(node))
        opened = await begin(client, made)
        with pytest.raises((ConnectionError, aiohttp.ClientError)):
            await patch(client, opened["upload"], broken())
        if restart:
            await stack.aclose()
            client = await stack.enter_async_context(primary(node))
        again = await begin(client, made)
        assert again["upload"] == opened["upload"] and again["missing"] == [[3, 8]]
        await patch(client, again["upload"], frames(root, made, *range(3, 8)))
        assert (await publish(client, again["upload"]))[0] == 201
    assert node.published[0][1] == {"a": (root / "a").read_bytes()}


async def test_what_lies_damaged_after_a_crash_is_asked_for_again(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=4 * MIB)
    made = plan(root)
    async with primary(node) as client:
        opened = await begin(client, made)
        await patch(client, opened["upload"], frames(root, made, 0, 1, 2))
    part = node.store.root / "uploads" / opened["upload"].rpartition("/")[2] / "0"
    with part.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"flip")
    async with primary(node) as client:
        assert (await begin(client, made))["missing"] == [[1, 2], [3, 4]]


async def test_bytes_that_are_held_are_not_asked_for(node: Primary, tmp_path: Path) -> None:
    """A whole file by its digest, chunks of another version's file, and a file of another model."""
    root = source(tmp_path, a=4 * MIB, b=3 * MIB, small=100)
    async with primary(node) as client:
        made = plan(root)
        opened = await begin(client, made)
        await patch(client, opened["upload"], frames(root, made, *range(8)))
        await publish(client, opened["upload"])
        with (root / "b").open("r+b") as file:
            file.seek(2 * MIB)
            file.write(b"x")
        made = plan(root)
        opened = await begin(client, made, "other")
        assert opened["missing"] == [[4, 7]], "the objects a and small are held"


async def test_chunks_of_a_version_that_is_held_are_copied(
    node: Primary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = source(tmp_path, a=6 * MIB)
    made, old = plan(root / "a"), (root / "a").read_bytes()
    async with primary(node) as client:
        opened = await begin(client, made)
        await patch(client, opened["upload"], frames(root, made, *range(6)))
        await publish(client, opened["upload"])
        held = [(made.files[0].digest, made.chunks)]
        monkeypatch.setattr(kept_uploads.HeldChunks, "files", lambda self: iter(held))
        (root / "a").write_bytes(old[: 2 * MIB] + b"new" + old[2 * MIB + 3 :] + old[:MIB])
        made = plan(root / "a")
        opened = await begin(client, made)
        assert opened["missing"] == [[2, 3]], "the moved chunk as well"
        await patch(client, opened["upload"], frames(root, made, 2))
        assert (await publish(client, opened["upload"]))[0] == 201
    assert node.published[1][1] == {"a": (root / "a").read_bytes()}


async def test_a_plan_that_lies_publishes_nothing(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=2 * MIB)
    honest = plan(root)
    chunks = honest.chunks
    lie = uploads.plan_of([("a", 2 * MIB, Digest(blake3(b"other").digest()))], chunks)
    async with primary(node) as client:
        opened = await begin(client, lie)
        await patch(client, opened["upload"], frames(root, lie, 0, 1))
        status, answer = await publish(client, opened["upload"])
        assert (status, answer["error"]) == (422, "DigestMismatch") and left(node) == []
        opened = await begin(client, honest)
        await patch(client, opened["upload"], frames(root, honest, 0, 1))
        await publish(client, opened["upload"])
        wrong_chunks = uploads.plan_of([("a", 2 * MIB, honest.files[0].digest)], chunks[32:] + chunks[:32])
        assert (await begin(client, wrong_chunks))["error"] == "DigestMismatch", "a held object's chunks are known"
    assert len(node.published) == 1 and left(node) == []


async def test_a_chunk_of_other_bytes_is_refused_and_the_upload_goes_on(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=2 * MIB)
    made = plan(root)
    async with primary(node) as client:
        opened = await begin(client, made)
        body = bytearray(frames(root, made, 0, 1))
        body[MIB + 100] ^= 1
        status, answer = await patch(client, opened["upload"], bytes(body))
        assert (status, answer["error"], answer["details"]["chunk"]) == (422, "DigestMismatch", 1)
        assert (await begin(client, made))["missing"] == [[1, 2]]


async def test_bodies_of_chunks_that_are_none(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=2 * MIB)
    made = plan(root)
    async with primary(node) as client:
        opened = await begin(client, made)
        for body in (frame_head(2) + b"x", frames(root, made, 0)[:-1], b"\0"):
            assert (await patch(client, opened["upload"], body))[0] == 400
        more = frames(root, made, 0, 1, 0)
        assert (await patch(client, opened["upload"], more))[0] == 413, "more than there can be to send"
        async with client.patch(opened["upload"], data=b"x", headers={"Upload-Offset": "0"}) as answer:
            assert answer.status == 415
    assert not node.published


async def test_two_uploads_at_once(node: Primary, tmp_path: Path) -> None:
    """Of other bytes: two uploads. Of the same: one, and neither sender disturbs the other."""
    root, other = source(tmp_path, a=4 * MIB), tmp_path / "other"
    other.mkdir()
    (other / "a").write_bytes(os.urandom(2 * MIB))
    made, made_other = plan(root), plan(other)
    async with primary(node) as client:
        one, two, three = await begin(client, made), await begin(client, made), await begin(client, made_other)
        assert one["upload"] == two["upload"] != three["upload"]
        bodies = (frames(root, made, 0, 1, 2, 3), frames(root, made, 3, 2, 1, 0))
        answers = await asyncio.gather(
            *(patch(client, one["upload"], body) for body in bodies),
            patch(client, three["upload"], frames(other, made_other, 0, 1)),
        )
        assert [status for status, _ in answers] == [200] * 3
        outcomes = await asyncio.gather(*(publish(client, upload["upload"]) for upload in (one, two, three)))
    assert sorted(status for status, _ in outcomes) == [200, 201, 201], "who comes second is told what became of it"
    assert sorted(len(contents["a"]) for _, contents in node.published) == [2 * MIB, 4 * MIB]


async def test_a_disk_too_small_is_said_before_the_first_byte(
    node: Primary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(source(tmp_path, a=8 * MIB))
    monkeypatch.setattr(durable, "free_bytes", lambda path: (64 << 20) + 7 * MIB)
    async with primary(node) as client:
        assert (await begin(client, made))["status"] == 507
        async with client.post(f"/v1/models/fraud/uploads?size_bytes={4 * MIB}") as answer:
            assert answer.status == 507, "a plain file lies there twice for a moment"
        async with client.post(f"/v1/models/fraud/uploads?size_bytes={3 * MIB}") as answer:
            assert answer.status == 201
    assert len(left(node)) == 1


async def test_a_publish_that_fails_for_now_can_be_tried_again(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=2 * MIB, b=5)
    made = plan(root)
    async with primary(node) as client:
        opened = await begin(client, made)
        await patch(client, opened["upload"], frames(root, made, 0, 1, 2))
        node.failure = errors.RedisUnavailable(operation="publish", reason="away")
        assert (await publish(client, opened["upload"]))[0] == 503
        node.failure = None
        assert (await publish(client, opened["upload"]))[0] == 201
        opened = await begin(client, made)
        node.failure = errors.PolicyRefusal(reason="no")
        assert opened["missing"] == [] and (await publish(client, opened["upload"]))[0] == 409
    assert left(node) == [], "what is refused for good is not kept"


async def test_a_node_that_is_no_primary_any_more_takes_nothing(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=MIB)
    made = plan(root)
    async with primary(node) as client:
        opened = await begin(client, made)
        node.is_primary, node.primary_url = False, "http://other:1"
        status, answer = await patch(client, opened["upload"], frames(root, made, 0))
        assert (status, answer["error"]) == (503, "LeaseLost") and answer["details"]["holder"] == "http://other:1"
        url, data = "/v1/models/fraud/uploads", uploads.encode_plan(made)
        async with client.post(url, data=data, headers={"Content-Type": PLAN_TYPE}, allow_redirects=False) as redirect:
            assert redirect.status == 307 and redirect.headers["Location"] == "http://other:1/v1/models/fraud/uploads"


# --- plain, as curl does it ------------------------------------------------------------------------------------------


async def open_file(client: aiohttp.ClientSession, query: str = "") -> str:
    async with client.post(f"/v1/models/fraud/uploads{query}") as answer:
        assert answer.status == 201, await answer.text()
        assert answer.headers["Upload-Offset"] == "0" and answer.headers["Upload-Complete"] == "?0"
        return answer.headers["Location"]


async def offset_of(client: aiohttp.ClientSession, upload: str) -> int:
    async with client.head(upload) as answer:
        return int(answer.headers["Upload-Offset"])


async def append(
    client: aiohttp.ClientSession, upload: str, body: Any, offset: int, **headers: str
) -> tuple[int, dict[str, Any]]:
    async with client.patch(upload, data=body, headers={"Upload-Offset": str(offset), **headers}) as answer:
        return answer.status, await answer.json() if answer.status != 204 else {}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_file_goes_on_where_it_stopped(node: Primary, restart: bool) -> None:
    data = os.urandom(5 * MIB)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()

    async def broken() -> AsyncIterator[bytes]:
        yield data[: 3 * MIB]
        await asyncio.sleep(0.3)
        raise ConnectionError

    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(primary(node))
        upload = await open_file(client, f"?filename=m.bin&size_bytes={len(data)}&note=n&digest={digest}")
        with pytest.raises((ConnectionError, aiohttp.ClientError)):
            await append(client, upload, broken(), 0)
        if restart:
            await stack.aclose()
            client = await stack.enter_async_context(primary(node))
        at = await offset_of(client, upload)
        assert 2 * MIB <= at <= 3 * MIB
        assert (await append(client, upload, data[at : at + 10], at))[0] == 204
        status, answer = await append(client, upload, data[at + 10 :], at + 10)
        assert (status, answer["version"]) == (201, 13)
        async with client.get(upload) as shown:
            assert (await shown.json())["published"]["version"] == 13, "an answer that was lost can be had"
            assert shown.headers["Upload-Complete"] == "?1"
        assert (await append(client, upload, b"", len(data)))[1]["version"] == 13
    assert node.published[0][1] == {"m.bin": data} and node.published[0][0].note == "n"
    assert len(node.published) == 1 and left(node) == []


async def test_what_was_not_synced_before_the_machine_went_down_does_not_count(node: Primary) -> None:
    async with primary(node) as client:
        upload = await open_file(client)
        await append(client, upload, b"x" * 100, 0)
    boot = node.store.root / "uploads" / upload.rpartition("/")[2] / "boot"
    boot.write_bytes(b"another boot\n")
    async with primary(node) as client:
        assert await offset_of(client, upload) == 0


async def test_curl_goes_on_by_itself(node: Primary, tmp_path: Path) -> None:
    """`curl -T FILE URL`, and `curl -C OFFSET -T FILE URL` after it broke off."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    data = os.urandom(3 * MIB)
    (tmp_path / "m.bin").write_bytes(data)
    (tmp_path / "cut.bin").write_bytes(data[:MIB])

    async def curl(*words: str) -> str:
        run = await asyncio.create_subprocess_exec(
            "curl", "-sS", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        return (await run.communicate())[0].decode()

    async with primary(node) as client:
        base = str(client._base_url).rstrip("/")
        assert '"version": 13' in await curl("-T", str(tmp_path / "m.bin"), f"{base}/v1/models/fraud")
        upload = base + await open_file(client, f"?size_bytes={len(data)}")
        await curl("-X", "PATCH", "-H", "Upload-Offset: 0", "--data-binary", f"@{tmp_path / 'cut.bin'}", upload)
        head = await curl("-I", upload)
        assert f"Upload-Offset: {MIB}" in head
        assert '"version": 13' in await curl("-C", str(MIB), "-T", str(tmp_path / "m.bin"), upload)
        assert '"version": 13' in await curl("-T", str(tmp_path / "m.bin"), base + await open_file(client))
    assert [contents["fraud"] for _, contents in node.published] == [data] * 3


async def test_hostile_offsets(node: Primary) -> None:
    async with primary(node) as client:
        upload = await open_file(client, "?size_bytes=10")
        assert (await append(client, upload, b"abc", 0))[0] == 204
        for offset in (0, 2, 4, 11):
            status, answer = await append(client, upload, b"x", offset)
            assert (status, answer["error"], answer["details"]["offset_bytes"]) == (409, "WrongOffset", 3)
        for text in ("-1", "", "3.0", "9" * 17, "0x3"):
            async with client.patch(upload, data=b"x", headers={"Upload-Offset": text}) as answer:
                assert answer.status == 400, text
        assert (await append(client, upload, b"x" * 8, 3))[0] == 409, "more than was declared, said beforehand"

        async def unsized() -> AsyncIterator[bytes]:
            yield b"x" * 8

        assert (await append(client, upload, unsized(), 3))[0] == 409, "and found on the way"
        for content_range in (
            "bytes 3-4/11",
            "bytes 3-9/10",
            "bytes 2-3/10",
            "bytes */10",
            "lines 3-4/10",
            "bytes 3-4",
        ):
            async with client.put(upload, data=b"xy", headers={"Content-Range": content_range}) as answer:
                assert answer.status in (400, 409), content_range
        assert await offset_of(client, upload) == 3, "nothing of it was written"
        async with client.put(upload, data=b"defghij", headers={"Content-Range": "bytes 3-9/10"}) as answer:
            assert answer.status == 201
    assert node.published[0][1] == {"fraud": b"abcdefghij"}


async def test_a_file_of_another_digest_is_not_published(node: Primary) -> None:
    digest = f"b3:{blake3(b'right').hexdigest()}"
    async with primary(node) as client:
        for path in ("", "/uploads"):
            for bad in ("b3:12", "md5:" + 64 * "0", "sha256:" + 64 * "G"):
                method = client.post if path else client.put
                async with method(f"/v1/models/fraud{path}?digest={bad}") as answer:
                    assert answer.status == 400
        async with client.put(f"/v1/models/fraud?digest={digest}", data=b"wrong") as answer:
            assert (answer.status, (await answer.json())["error"]) == (422, "DigestMismatch")
        async with client.put(f"/v1/models/fraud?digest={digest}", data=b"right") as answer:
            assert answer.status == 201
        upload = await open_file(client, f"?digest={digest}&size_bytes=5")
        assert (await append(client, upload, b"wrong", 0))[0] == 422
        async with client.head(upload) as answer:
            assert answer.status == 404, "none of its bytes is worth keeping"
    assert len(node.published) == 1 and left(node) == []


async def test_what_is_wrong_with_the_words_is_said_at_the_beginning(node: Primary) -> None:
    async with primary(node) as client:
        for query in (
            "?filename=../x",
            "?size_bytes=-1",
            "?size_bytes=1e3",
            "?version=0",
            "?metadata=[",
            "?colour=red",
        ):
            async with client.post(f"/v1/models/fraud/uploads{query}") as answer:
                assert answer.status == 400, query
        async with client.post("/v1/models/fraud/uploads", data=b"x") as answer:
            assert answer.status == 413
    assert left(node) == []


# --- strangers -------------------------------------------------------------------------------------------------------


async def test_ids_that_nobody_gave_out(node: Primary) -> None:
    async with primary(node) as client:
        await open_file(client)
        for upload in ("0" * 32, "..%2f..%2fstate.json", "about.json", "%00", "x" * 5000):
            for method in ("GET", "PATCH", "PUT", "DELETE"):
                async with client.request(method, f"/v1/uploads/{upload}", headers={"Upload-Offset": "0"}) as answer:
                    assert answer.status in (400, 404), upload
    assert len(left(node)) == 1 and not node.published


async def test_without_the_token_an_id_is_of_no_use(node: Primary) -> None:
    async with primary(node, token=TOKEN) as client:
        upload = await open_file(client, "?size_bytes=3")
        async with aiohttp.ClientSession(str(client._base_url)) as stranger:
            assert (await append(stranger, upload, b"abc", 0))[0] == 401
            async with stranger.delete(upload) as answer:
                assert answer.status == 401
            async with stranger.post("/v1/models/fraud/uploads") as answer:
                assert answer.status == 401
        assert await offset_of(client, upload) == 0


async def test_a_sender_that_is_gone_does_not_keep_its_successor_waiting(node: Primary) -> None:
    """A half-open connection would hold the upload for as long as a silence may last: the newest request has it."""
    gone = asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        await gone.wait()

    async with primary(node, body_silence_s=30.0) as client:
        upload = await open_file(client, f"?size_bytes={2 * MIB}")
        old = asyncio.create_task(append(client, upload, hanging(), 0))
        while await offset_of(client, upload) < MIB:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            status, _ = await append(client, upload, b"y" * MIB, MIB)
        assert status == 201
        gone.set()
        assert isinstance((await asyncio.gather(old, return_exceptions=True))[0], aiohttp.ClientError)
    assert node.published[0][1] == {"fraud": b"x" * MIB + b"y" * MIB}


async def test_a_slow_sender_is_shed_and_what_it_sent_is_kept(node: Primary) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        await asyncio.sleep(5)

    async with primary(node, body_silence_s=0.3) as client:
        upload = await open_file(client)
        with contextlib.suppress(aiohttp.ClientError):
            assert (await append(client, upload, slow(), 0))[0] == 408
        assert await offset_of(client, upload) == MIB


async def test_uploads_are_bounded_and_old_ones_go(node: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 3)
    async with primary(node) as client:
        first = await open_file(client)
        others = [await open_file(client) for _ in range(2)]
        async with client.post("/v1/models/fraud/uploads") as answer:
            assert answer.status == 503 and answer.headers["Retry-After"]
        later = time.time() + uploads.GIVES_WAY_S + 1
        monkeypatch.setattr(kept_uploads.time, "time", lambda: later)
        await append(client, others[0], b"x", 0)
        await open_file(client)
        async with client.head(first) as answer:
            assert answer.status == 404, "it had stood still longest"
    monkeypatch.setattr(kept_uploads.time, "time", lambda: later + 2 * uploads.IDLE_S)
    assert len(Uploads(node.store).sweep()) == 3 and left(node) == []


async def test_what_cannot_be_understood_is_swept(node: Primary) -> None:
    root = node.store.root / "uploads"
    (root / "0").mkdir(parents=True)
    (root / ("a" * 32)).mkdir()
    (root / ("b" * 32)).mkdir()
    (root / ("b" * 32) / "about.json").write_text('{"kind": "plan", "model": "fraud"}')
    (root / "stray").write_text("x")
    async with primary(node) as client:
        upload = await open_file(client)
    assert left(node) == sorted([upload.rpartition("/")[2], "stray"])


# --- our own sender --------------------------------------------------------------------------------------------------


async def test_the_sender_refuses_a_file_that_changed(node: Primary, tmp_path: Path) -> None:
    root = source(tmp_path, a=4 * MIB)
    files = files_of(root)
    made = planned(files, lambda size: None)

    def rewrite(size: int) -> None:
        with (root / "a").open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"other")

    async with serving(node, uploads=Uploads(node.store)) as server, ControlClient() as control:
        opened = await upload_client.begin(control, f"http://127.0.0.1:{server.port}", FRAUD, made)
        with pytest.raises(errors.SourceChanged):
            await upload_client.send(control, opened, OutgoingChunks(files, made, opened.missing, rewrite))
    assert not node.published
