"""What a resumable upload is: its plan, what of it is missing, and how its chunks are framed. PROTOCOL.md section 6.

This file alone decides the form of a plan and of a body of chunks, and which uploads may be kept. It must not know
where bytes lie nor how they arrive. A sender plans before it sends: with every chunk's digest known, the receiver asks
for what it does not hold, in any order, and nothing else need be remembered by either side when one of them dies.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage, NotAModel, UploadsFull
from modelsync.core.ids import MAX_INTEGER, Digest
from modelsync.core.manifest import CHUNK_BYTES, MAX_FILES, FileEntry, published_path

FORMAT = 1
PLAN_TYPE = "application/vnd.modelsync.upload-plan"
CHUNKS_TYPE = "application/vnd.modelsync.upload-chunks"
MAX_PLAN_BYTES = 32 << 20
"""Of one plan: 32 bytes for each MiB, so about 1 TiB."""
MAX_PLANS_BYTES = 64 << 20
"""Of all plans that are in memory at once."""
MAX_UPLOADS = 32
"""Kept at once, under way or broken off."""
IDLE_S = 24 * 3600.0
"""A broken upload is kept until the next morning."""
GIVES_WAY_S = 600.0
"""After so long without a byte an upload gives its place to a new one, if there is no other."""
DIGEST_BYTES = 32
_NUMBER_BYTES = 4
_MISSING = re.compile(b"\x00+")


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a plan; its chunks are ``[first_chunk, first_chunk + chunk_count)`` of the plan's."""

    path: str
    size_bytes: int
    digest: Digest
    first_chunk: int

    @property
    def chunk_count(self) -> int:
        return -(-self.size_bytes // CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """All that an upload will consist of. ``chunks``: the raw digests of all chunks, one after another."""

    files: tuple[PlannedFile, ...]
    chunks: bytes
    _firsts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def chunk_count(self) -> int:
        return len(self.chunks) // DIGEST_BYTES

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def digest_of(self, chunk: int) -> bytes:
        return self.chunks[DIGEST_BYTES * chunk : DIGEST_BYTES * (chunk + 1)]

    def place_of(self, chunk: int) -> tuple[int, int, int]:
        """(number of the file, offset in it, size) of a chunk, in bytes."""
        number = bisect_right(self._firsts, chunk) - 1
        file = self.files[number]
        offset = (chunk - file.first_chunk) * CHUNK_BYTES
        return number, offset, min(CHUNK_BYTES, file.size_bytes - offset)

    def entry_of(self, number: int) -> FileEntry:
        """A file as a manifest has it, all its chunks inline."""
        file = self.files[number]
        span = range(file.first_chunk, file.first_chunk + file.chunk_count)
        chunks = tuple(Digest(self.digest_of(chunk)) for chunk in span)
        return FileEntry(file.path, file.size_bytes, 0o644, file.digest, chunks=chunks)

    def bytes_of(self, runs: Iterable[tuple[int, int]]) -> int:
        """How many bytes runs of chunks are."""
        return sum(self.place_of(chunk)[2] for first, beyond in runs for chunk in range(first, beyond))


def plan_of(files: Sequence[tuple[str, int, Digest]], chunks: bytes) -> UploadPlan:
    """A plan of (path, size_bytes, digest) and all chunks. Raises MalformedMessage, BadName, NotAModel."""
    planned, first = [], 0
    for path, size_bytes, digest in files:
        file = PlannedFile(published_path(path), size_bytes, digest, first)
        planned.append(file)
        if file.chunk_count == 1 and chunks[DIGEST_BYTES * first : DIGEST_BYTES * (first + 1)] != digest.raw:
            raise _malformed(f"the only chunk of {path[:80]!r} has another digest than the file")
        first += file.chunk_count
    if len(chunks) != DIGEST_BYTES * first:
        raise _malformed(f"{len(chunks)} bytes of chunk digests where {DIGEST_BYTES * first} belong")
    if not 0 < len(planned) <= MAX_FILES:
        raise NotAModel(path="upload", reason=f"it holds {len(planned)} files; 1 to {MAX_FILES} can be published")
    _require_tree([file.path for file in planned])
    # A file without chunks shares its first chunk with the next one, which bisect then finds.
    return UploadPlan(tuple(planned), chunks, tuple(file.first_chunk for file in planned))


def _require_tree(paths: Sequence[str]) -> None:
    known = set(paths)
    if list(paths) != sorted(known):
        raise _malformed("the files are not sorted by path, each once")
    if any(path[:at] in known for path in paths for at, char in enumerate(path) if char == "/"):
        raise _malformed("a path is a file and a directory")


def encode_plan(plan: UploadPlan) -> bytes:
    """The length of the head in 4 bytes (big-endian), the head as canonical JSON, all chunk digests."""
    files = [[file.path, file.size_bytes, str(file.digest)] for file in plan.files]
    head = canonical.encode({"format": FORMAT, "chunk_bytes": CHUNK_BYTES, "files": files})
    return len(head).to_bytes(_NUMBER_BYTES, "big") + head + plan.chunks


def decode_plan(data: bytes) -> UploadPlan:
    """Parse a plan from outside. Raises MalformedMessage, BadName, NotAModel."""
    if len(data) > MAX_PLAN_BYTES:
        raise _malformed(f"it is larger than {MAX_PLAN_BYTES} bytes: upload fewer or smaller files at once")
    beyond = _NUMBER_BYTES + int.from_bytes(data[:_NUMBER_BYTES], "big")
    if beyond > len(data):
        raise _malformed("it ends within its head")
    head = canonical.decode(data[_NUMBER_BYTES:beyond], "upload plan")
    if not isinstance(head, dict) or head.keys() != {"format", "chunk_bytes", "files"}:
        raise _malformed("its head is not an object of format, chunk_bytes and files")
    if head["format"] != FORMAT or head["chunk_bytes"] != CHUNK_BYTES:
        raise _malformed(f"format {FORMAT} with chunks of {CHUNK_BYTES} bytes is taken")
    if not isinstance(head["files"], list):
        raise _malformed("files is not a list")
    return plan_of([_file_of(line) for line in head["files"]], data[beyond:])


def _file_of(line: object) -> tuple[str, int, Digest]:
    if not isinstance(line, list) or len(line) != 3:
        raise _malformed("a file is not [path, size_bytes, digest]")
    path, size_bytes, digest = line
    if type(size_bytes) is not int or not 0 <= size_bytes <= MAX_INTEGER:
        raise _malformed("a size is not a whole number of bytes")
    try:
        return path, size_bytes, Digest.parse(digest)
    except BadName as error:
        raise _malformed(str(error)) from error


def missing_runs(flags: bytes | bytearray) -> list[tuple[int, int]]:
    """Runs ``[first, beyond)`` of the chunks that are not there; ``flags`` has one byte a chunk, 0 or 1."""
    return [run.span() for run in _MISSING.finditer(flags)]


def runs_of(value: object, plan: UploadPlan) -> list[tuple[int, int]]:
    """What a receiver says it misses, as hostile input. Raises MalformedMessage."""
    runs, at = [], 0
    for line in value if isinstance(value, list) else [None]:
        if not isinstance(line, list) or len(line) != 2 or any(type(number) is not int for number in line):
            raise _malformed("what is missing is not a list of [first, beyond]")
        first, beyond = line
        if not at <= first < beyond <= plan.chunk_count:
            raise _malformed("what is missing is not in order within the plan")
        runs.append((first, beyond))
        at = beyond
    return runs


def frame_head(chunk: int) -> bytes:
    """What stands before a chunk's bytes in a body: its number in the plan, 4 bytes, big-endian."""
    return chunk.to_bytes(_NUMBER_BYTES, "big")


class FrameReader:
    """A body of chunks, read as it arrives; one chunk is in memory.

    Args:
        plan: which chunk has which size.
    """

    def __init__(self, plan: UploadPlan) -> None:
        self._plan = plan
        self._head = bytearray()
        self._buffer = bytearray(CHUNK_BYTES)
        self._filled = 0
        self._chunk = -1
        self._size = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Each (chunk, its bytes) that is whole; the bytes are good until the next one is asked for.

        Raises: MalformedMessage: a number that the plan does not have.
        """
        view = memoryview(data)
        while view:
            if self._chunk < 0:
                view = self._take_head(view)
                continue
            size = min(len(view), self._size - self._filled)
            self._buffer[self._filled : self._filled + size] = view[:size]
            self._filled += size
            view = view[size:]
            if self._filled == self._size:
                yield self._chunk, memoryview(self._buffer)[: self._size]
                self._chunk, self._filled = -1, 0

    def _take_head(self, view: memoryview) -> memoryview:
        size = min(len(view), _NUMBER_BYTES - len(self._head))
        self._head += view[:size]
        if len(self._head) == _NUMBER_BYTES:
            chunk = int.from_bytes(self._head, "big")
            if chunk >= self._plan.chunk_count:
                raise _malformed(f"chunk {chunk} of a plan of {self._plan.chunk_count}")
            self._head.clear()
            self._chunk, self._size = chunk, self._plan.place_of(chunk)[2]
        return view[size:]

    def finish(self) -> None:
        """Raises MalformedMessage if the body ended within a chunk."""
        if self._chunk >= 0 or self._head:
            raise _malformed("the body ends within a chunk")


@dataclass(frozen=True, slots=True)
class Kept:
    """An upload as the rules of keeping see it."""

    id: str
    touched_s: float
    """When its last byte came, by the clock that ``now_s`` is of."""
    plan_bytes: int
    busy: bool


def expired(uploads: Iterable[Kept], now_s: float) -> list[str]:
    """Those that nobody has gone on with for too long."""
    return [one.id for one in uploads if not one.busy and now_s - one.touched_s > IDLE_S]


def gives_way(uploads: Sequence[Kept], plan_bytes: int, now_s: float) -> list[str]:
    """Which uploads must go so that one more may come, those first that have stood still longest.

    Raises: UploadsFull: too many are under way.
    """
    count, held_bytes, going = len(uploads), sum(one.plan_bytes for one in uploads), []
    for one in sorted(uploads, key=lambda kept: kept.touched_s):
        if count < MAX_UPLOADS and held_bytes + plan_bytes <= MAX_PLANS_BYTES:
            break
        if not one.busy and now_s - one.touched_s > GIVES_WAY_S:
            going.append(one.id)
            count, held_bytes = count - 1, held_bytes - one.plan_bytes
    if count >= MAX_UPLOADS or held_bytes + plan_bytes > MAX_PLANS_BYTES:
        raise UploadsFull(uploads=count, most=MAX_UPLOADS)
    return going


def _malformed(reason: str) -> MalformedMessage:
    return MalformedMessage(what="upload", reason=reason)
