"""The manifest: what a version is, byte for byte. PROTOCOL.md section 2.

This file alone decides the manifest's form and what a legal published path is. It must not know how bytes are hashed
(digests are handed in) nor where manifests lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import Digest, EntryId, ModelName, Version, model_name, version

FORMAT = 2
READABLE = (1, 2)
"""Format 1 had no seed maps, and differs in nothing else."""
CHUNK_BYTES = 1 << 20
"""1 MiB: BLAKE3 runs at full speed from 64 KiB up, and a smaller chunk makes a smaller delta."""
MAX_INLINE_CHUNKS = 16
"""Above it the chunk digests are an object of their own, so that a manifest stays small enough to read often."""
MAX_PATH_BYTES = 4096
MAX_FILES = 100_000
MAX_TEXT_BYTES = 64 << 10
"""For author and note: they are shown in lists."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One published file. ``chunks`` or ``chunk_list`` is set, by the number of chunks alone."""

    path: str
    size_bytes: int
    mode: int
    """0o644, or 0o755 for a file that could be executed."""
    digest: Digest
    chunks: tuple[Digest, ...] = ()
    chunk_list: Digest | None = None
    chunk_bytes: int = CHUNK_BYTES
    seeds: Digest | None = None
    """A map of ranges that lie in files of earlier versions (core.transfer.seeds): a hint, not what the file is."""

    @property
    def chunk_count(self) -> int:
        return -(-self.size_bytes // self.chunk_bytes)

    def chunk_range(self, index: int) -> tuple[int, int]:
        """(offset, size) in bytes of a chunk."""
        offset = index * self.chunk_bytes
        return offset, min(self.chunk_bytes, self.size_bytes - offset)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The immutable list of a version's files; the digest of its bytes is the version's identity."""

    model: ModelName
    version: Version
    id: EntryId
    created_ms: int
    author: str
    note: str
    parent: Digest | None
    content: Digest
    metadata: Mapping[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    def referenced(self) -> frozenset[Digest]:
        """Every object of the version: files, chunk lists and seed maps."""
        documents = {named for entry in self.files for named in (entry.chunk_list, entry.seeds) if named is not None}
        return frozenset(entry.digest for entry in self.files) | documents


def content_bytes(files: Iterable[FileEntry]) -> bytes:
    """The canonical text whose digest is a manifest's ``content``: paths, sizes, modes, digests and nothing else."""
    return canonical.encode([[entry.path, entry.size_bytes, entry.mode, str(entry.digest)] for entry in files])


def published_path(text: object) -> str:
    """Check a path as it stands in a manifest, an upload or a URL.

    Raises:
        BadName: absolute, empty, with ``.`` or ``..`` or empty parts, backslashes, control characters, too long.
    """
    rule = "a relative path with / between its parts, none of them empty, . or .., without control characters"
    if not isinstance(text, str) or not text:
        raise BadName(kind="path", value=repr(text)[:80], rule=rule)
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise BadName(kind="path", value=repr(text)[:80], rule="UTF-8") from error
    parts = text.split("/")
    bad_part = any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    if bad_part or "\\" in text or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise BadName(kind="path", value=repr(text)[:80], rule=rule)
    if len(encoded) > MAX_PATH_BYTES:
        raise BadName(kind="path", value=repr(text)[:80], rule=f"at most {MAX_PATH_BYTES} bytes")
    return text


def encode(manifest: Manifest) -> bytes:
    """The manifest's canonical bytes.

    Raises: MalformedMessage for what ``decode`` would refuse: a version that no replica can read is not published.
    """
    value = {
        "format": FORMAT,
        "model": manifest.model,
        "version": manifest.version,
        "id": str(manifest.id),
        "created_ms": manifest.created_ms,
        "author": manifest.author,
        "note": manifest.note,
        "parent": str(manifest.parent) if manifest.parent else None,
        "content": str(manifest.content),
        "metadata": canonical.with_floats_tagged(dict(manifest.metadata)),
        "files": [_encode_file(entry) for entry in manifest.files],
    }
    data = canonical.encode(value)
    _require(len(data) <= canonical.MAX_DOCUMENT_BYTES, f"{len(data)} bytes: metadata or the list of files is too long")
    _checked(value)
    return data


def _encode_file(entry: FileEntry) -> dict[str, Any]:
    record: dict[str, Any] = {
        "path": entry.path,
        "size_bytes": entry.size_bytes,
        "mode": entry.mode,
        "digest": str(entry.digest),
        "chunk_bytes": entry.chunk_bytes,
    }
    if entry.chunk_list is not None:
        record["chunk_list"] = str(entry.chunk_list)
    else:
        record["chunks"] = [str(chunk) for chunk in entry.chunks]
    if entry.seeds is not None:
        record["seeds"] = str(entry.seeds)
    return record


def decode(data: bytes) -> Manifest:
    """Parse a manifest from outside. Raises MalformedMessage for anything that ``encode`` would not have written."""
    return _checked(canonical.decode_canonical(data, "manifest"))


def _checked(value: Any) -> Manifest:
    try:
        return _decode(value)
    except BadName as error:
        raise MalformedMessage(what="manifest", reason=str(error)) from error


_KEYS = {"format", "model", "version", "id", "created_ms", "author", "note", "parent", "content", "metadata", "files"}
_FILE_KEYS = {"path", "size_bytes", "mode", "digest", "chunk_bytes"}


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise MalformedMessage(what="manifest", reason=reason)


def _decode(value: Any) -> Manifest:
    _require(isinstance(value, dict), "it is not an object")
    format_ = value.get("format")
    _require(
        format_ in READABLE and not isinstance(format_, bool),
        f"format {format_!r}: this release reads formats {' and '.join(map(str, READABLE))}",
    )
    _require(value.keys() == _KEYS, f"keys {sorted(value.keys() ^ _KEYS)} are missing or unknown")
    _require(isinstance(value["metadata"], dict), "metadata is not an object")
    _require(isinstance(value["files"], list) and 0 < len(value["files"]) <= MAX_FILES, "files: 1 to 100,000 of them")
    for key in ("author", "note"):
        _require(isinstance(value[key], str) and len(value[key].encode()) <= MAX_TEXT_BYTES, f"{key} is not short text")
    _require(_natural(value["created_ms"]), "created_ms is not a number of milliseconds")
    files = tuple(_decode_file(item) for item in value["files"])
    _require(format_ > 1 or all(entry.seeds is None for entry in files), "a manifest of format 1 has no seed maps")
    paths = [entry.path for entry in files]
    _require(paths == sorted(set(paths)), "files are not sorted by path, or a path stands twice")
    _require_no_nesting(paths)
    return Manifest(
        model=model_name(value["model"]),
        version=version(value["version"]),
        id=EntryId.parse(value["id"]),
        created_ms=value["created_ms"],
        author=value["author"],
        note=value["note"],
        parent=Digest.parse(value["parent"]) if value["parent"] is not None else None,
        content=Digest.parse(value["content"]),
        metadata=canonical.with_floats_restored(value["metadata"]),
        files=files,
    )


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require_no_nesting(paths: list[str]) -> None:
    """A path that is also a directory of another could not be laid out on disk."""
    known = set(paths)
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            _require("/".join(parts[:depth]) not in known, f"{path!r} lies below a path that is a file")


def _decode_file(value: Any) -> FileEntry:
    _require(isinstance(value, dict), "a file is not an object")
    extra = value.keys() - _FILE_KEYS - {"seeds"}
    _require(value.keys() >= _FILE_KEYS and extra in ({"chunks"}, {"chunk_list"}), "a file's keys are not as agreed")
    _require(_natural(value["size_bytes"]), "size_bytes is not a size")
    _require(value["mode"] in (0o644, 0o755), "mode is neither 0644 nor 0755")
    _require(value["chunk_bytes"] == CHUNK_BYTES, f"chunk_bytes is not {CHUNK_BYTES}")
    entry = FileEntry(
        path=published_path(value["path"]),
        size_bytes=value["size_bytes"],
        mode=value["mode"],
        digest=Digest.parse(value["digest"]),
        chunks=_decode_chunks(value.get("chunks", [])),
        chunk_list=Digest.parse(value["chunk_list"]) if "chunk_list" in value else None,
        seeds=Digest.parse(value["seeds"]) if "seeds" in value else None,
    )
    inline = entry.chunk_count <= MAX_INLINE_CHUNKS
    _require(inline == (entry.chunk_list is None), "chunks are inline up to 16 and a list of their own above")
    _require(not inline or len(entry.chunks) == entry.chunk_count, "the number of chunks does not fit the size")
    _require(entry.chunk_count != 1 or entry.chunks == (entry.digest,), "the only chunk is not the file's digest")
    return entry


def _decode_chunks(value: Any) -> tuple[Digest, ...]:
    _require(isinstance(value, list) and len(value) <= MAX_INLINE_CHUNKS, "chunks is not a short list")
    return tuple(Digest.parse(item) for item in value)


def decode_chunk_list(data: bytes, entry: FileEntry) -> tuple[Digest, ...]:
    """Split a chunk list object into digests. Raises MalformedMessage if its length does not fit the file's size."""
    if len(data) != 32 * entry.chunk_count:
        raise MalformedMessage(what="chunk list", reason=f"{len(data)} bytes for {entry.chunk_count} chunks")
    return tuple(Digest(data[at : at + 32]) for at in range(0, len(data), 32))
