"""Manifests: written and read back, and every way in which one can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core import canonical
from modelsync.core import manifest as manifests
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import CHUNK_BYTES, FileEntry, Manifest

A, B, C = (Digest(blake3(text).digest()) for text in (b"a", b"b", b"c"))


def entry(path: str = "model.bin", size_bytes: int = 1, **fields: Any) -> FileEntry:
    count = -(-size_bytes // CHUNK_BYTES)
    if count > manifests.MAX_INLINE_CHUNKS:
        fields.setdefault("chunk_list", B)
    else:
        fields.setdefault("chunks", (A,) if count == 1 else (B,) * count)
    return FileEntry(path, size_bytes, fields.pop("mode", 0o644), A, **fields)


def manifest(*files: FileEntry, **fields: Any) -> Manifest:
    return Manifest(
        model=ModelName("fraud"),
        version=Version(3),
        id=EntryId(7, 42),
        created_ms=1_700_000_000_000,
        author=fields.pop("author", "ann"),
        note=fields.pop("note", "retrained"),
        parent=fields.pop("parent", None),
        content=C,
        metadata=fields.pop("metadata", {}),
        files=files or (entry(),),
    )


PARTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=5)
PATHS = st.lists(PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)
FILES = st.builds(
    entry,
    PATHS,
    st.sampled_from([0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 16 * CHUNK_BYTES, 16 * CHUNK_BYTES + 1, 1 << 40]),
    mode=st.sampled_from([0o644, 0o755]),
)


@st.composite
def manifests_(draw: Any) -> Manifest:
    by_path: dict[str, FileEntry] = {}
    for item in draw(st.lists(FILES, min_size=1, max_size=6)):
        if not any(p.startswith(item.path + "/") or item.path.startswith(p + "/") for p in by_path):
            by_path[item.path] = item
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    metadata = draw(st.dictionaries(text, st.floats(allow_nan=False) | text, max_size=3))
    files = [by_path[path] for path in sorted(by_path)]
    return manifest(*files, metadata=metadata, note=draw(text), parent=draw(st.none() | st.just(B)))


@given(manifests_())
def test_written_and_read_back(made: Manifest) -> None:
    data = manifests.encode(made)
    assert manifests.decode(data) == made
    assert manifests.encode(manifests.decode(data)) == data


def test_the_bytes() -> None:
    data = manifests.encode(manifest(entry(size_bytes=17 << 20, mode=0o755), metadata={"alpha": 0.1}))
    assert data.decode() == (
        f'{{"author":"ann","content":"{C}","created_ms":1700000000000,'
        f'"files":[{{"chunk_bytes":1048576,"chunk_list":"{B}","digest":"{A}","mode":493,"path":"model.bin",'
        f'"size_bytes":17825792}}],"format":2,"id":"7-42","metadata":{{"alpha":{{"$float":"0.1"}}}},"model":"fraud",'
        f'"note":"retrained","parent":null,"version":3}}'
    )


def test_content_is_paths_sizes_modes_and_digests() -> None:
    files = (entry("a"), entry("b", mode=0o755))
    assert manifests.content_bytes(files).decode() == f'[["a",1,420,"{A}"],["b",1,493,"{A}"]]'
    assert manifests.content_bytes(manifest(*files, note="x").files) == manifests.content_bytes(files)


def test_sums_and_references() -> None:
    made = manifest(entry("a", 5), entry("b", 17 << 20))
    assert made.size_bytes == 5 + (17 << 20)
    assert made.referenced() == {A, B}


def test_ranges_of_chunks() -> None:
    item = entry(size_bytes=2 * CHUNK_BYTES + 7)
    assert item.chunk_count == 3
    assert [item.chunk_range(index) for index in range(3)] == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, CHUNK_BYTES),
        (2 * CHUNK_BYTES, 7),
    ]
    assert entry(size_bytes=0).chunk_count == 0


# --- what is refused --------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]


def at(key: str, value: Any) -> Change:
    return lambda document: document.__setitem__(key, value)


def in_file(key: str, value: Any) -> Change:
    return lambda document: document["files"][0].__setitem__(key, value)


def files(*changes: dict[str, Any]) -> Change:
    def change(document: dict[str, Any]) -> None:
        document["files"] = [{**document["files"][0], **each} for each in changes]

    return change


REFUSED: list[tuple[Change, str]] = [
    (at("format", 3), "format 3: this release reads formats 1 and 2"),
    (at("format", True), "format True: this release reads formats 1 and 2"),
    (lambda d: d.pop("format"), "format None: this release reads formats 1 and 2"),
    (at("extra", 1), "keys ['extra'] are missing or unknown"),
    (lambda d: d.pop("note"), "keys ['note'] are missing or unknown"),
    (at("metadata", []), "metadata is not an object"),
    (at("files", []), "files: 1 to 100,000 of them"),
    (at("files", {}), "files: 1 to 100,000 of them"),
    (at("files", [1]), "a file is not an object"),
    (at("author", 1), "author is not short text"),
    (at("note", "é" * 32_769), "note is not short text"),
    (at("created_ms", -1), "created_ms is not a number of milliseconds"),
    (at("created_ms", True), "created_ms is not a number of milliseconds"),
    (at("model", "../x"), "'../x' is not a legal model name: "),
    (at("version", 0), "0 is not a legal version: "),
    (at("version", True), "True is not a legal version: "),
    (at("id", "07-1"), "'07-1' is not a legal entry id: "),
    (at("parent", "b3:12"), "'b3:12' is not a legal digest: "),
    (at("content", None), "None is not a legal digest: "),
    (in_file("size_bytes", -1), "size_bytes is not a size"),
    (in_file("size_bytes", "1"), "size_bytes is not a size"),
    (in_file("mode", 0o777), "mode is neither 0644 nor 0755"),
    (in_file("chunk_bytes", 4096), "chunk_bytes is not 1048576"),
    (in_file("owner", 0), "a file's keys are not as agreed"),
    (in_file("chunk_list", str(B)), "a file's keys are not as agreed"),
    (lambda d: d["files"][0].pop("chunks"), "a file's keys are not as agreed"),
    (in_file("chunks", []), "the number of chunks does not fit the size"),
    (in_file("chunks", [str(A), str(A)]), "the number of chunks does not fit the size"),
    (in_file("chunks", [str(B)]), "the only chunk is not the file's digest"),
    (in_file("chunks", "x"), "chunks is not a short list"),
    (in_file("chunks", [str(A)] * 17), "chunks is not a short list"),
    (in_file("size_bytes", 17 << 20), "chunks are inline up to 16 and a list of their own above"),
    (in_file("path", "/etc/passwd"), "'/etc/passwd' is not a legal path: "),
    (files({"path": "b"}, {"path": "a"}), "files are not sorted by path, or a path stands twice"),
    (files({"path": "a"}, {"path": "a"}), "files are not sorted by path, or a path stands twice"),
    (files({"path": "a"}, {"path": "a-b"}, {"path": "a/b"}), "'a/b' lies below a path that is a file"),
    (files({"path": "a"}, {"path": "a/b/c"}), "'a/b/c' lies below a path that is a file"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=[reason[:40] for _, reason in REFUSED])
def test_refused(change: Change, reason: str) -> None:
    document = canonical.decode(manifests.encode(manifest()), "manifest")
    change(document)
    with pytest.raises(MalformedMessage) as caught:
        manifests.decode(canonical.encode(document))
    assert caught.value.what == "manifest"
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize("data", [b"[]", b"null", b'"x"', b"1"])
def test_refused_whole(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="it is not an object"):
        manifests.decode(data)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (manifest(note="x" * 65_537), "note is not short text"),
        (manifest(entry("b"), entry("a")), "files are not sorted by path, or a path stands twice"),
        (manifest(entry("../a")), "'../a' is not a legal path: "),
        (replace(manifest(), files=()), "files: 1 to 100,000 of them"),
        (manifest(metadata={"x": {1: 2}}), "a key is not text"),
        (manifest(metadata={"x": object()}), "a value of type object"),
    ],
)
def test_what_no_replica_could_read_is_not_written(made: Manifest, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        manifests.encode(made)
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\0", "a\nb", "\x7f", "x" * 256, "\ud800", 1, None,
     "/".join(["x" * 250] * 17)],
)  # fmt: skip
def test_paths_that_are_refused(path: object) -> None:
    with pytest.raises(BadName) as caught:
        manifests.published_path(path)
    assert caught.value.kind == "path"


@pytest.mark.parametrize("path", ["a", "a/b.c", "...", ".hidden", "é/\U0001f600", "x" * 255, "a b", "-rf", "~"])
def test_paths_that_are_legal(path: str) -> None:
    assert manifests.published_path(path) == path


def test_chunk_lists() -> None:
    item = entry(size_bytes=17 << 20)
    assert manifests.decode_chunk_list(A.raw * 16 + B.raw, item) == (A,) * 16 + (B,)
    with pytest.raises(MalformedMessage) as caught:
        manifests.decode_chunk_list(A.raw * 16, item)
    assert caught.value.details() == {"what": "chunk list", "reason": "512 bytes for 17 chunks"}
