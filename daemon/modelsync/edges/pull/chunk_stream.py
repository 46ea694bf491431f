"""The bytes of one answer into a file: received, verified while hot, and only then handed on to be written and counted.

Buffers of a chunk's size go round; recv, BLAKE3 and pwrite all release the GIL. This file must not know who is
asked for what (fetch orders that), nor what an answer's head must look like (connections).
"""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from modelsync.core.errors import DigestMismatch, PeerRefused
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.core.transfer.chunk_map import ChunkMap
from modelsync.core.transfer.ranges import Run
from modelsync.core.transfer.seeds import Span
from modelsync.edges.disk.chunk_writer import ChunkWriter
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.partial_file import RunningHash
from modelsync.edges.pull.attempt import Attempt
from modelsync.edges.pull.codec import Undecodable
from modelsync.edges.pull.connections import read_exactly
from modelsync.edges.pull.framed import Framed
from modelsync.edges.pull.placing import Placing
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Peer, Progress


@dataclass(frozen=True, slots=True)
class FilePull:
    """One file under way; ``verified`` and ``copied`` grow."""

    entry: FileEntry
    chunks: Sequence[Digest]
    path: Path
    descriptor: int
    progress: Progress
    writer: ChunkWriter
    whole: RunningHash = field(default_factory=RunningHash)
    """The file's own digest, as far as its bytes came in order."""
    copied: dict[int, Span | None] = field(default_factory=dict)
    """Chunks from old versions, which only the file's own digest will prove: nobody else is given them before. With
    each the range whose own chunk list says that it is this chunk; None where only a publisher's map leads there."""
    verified: ChunkMap = field(init=False)
    placing: Placing = field(init=False)

    def __post_init__(self) -> None:
        verified = ChunkMap(self.starts, self.entry.size_bytes)
        placing = Placing(self.entry, self.writer, self.whole, verified, self.progress)
        object.__setattr__(self, "verified", verified)
        object.__setattr__(self, "placing", placing)

    @property
    def starts(self) -> range:
        """Each chunk's offset."""
        return range(0, self.entry.size_bytes, self.entry.chunk_bytes)

    @property
    def sizes(self) -> list[int]:
        """Each chunk's size in bytes."""
        return [self.entry.chunk_range(index)[1] for index in range(self.entry.chunk_count)]

    def missing(self) -> list[int]:
        """Chunks of which the file has no bytes yet."""
        here = {*self.verified, *self.copied}
        return [index for index in range(self.entry.chunk_count) if index not in here]


def receive(
    response: http.client.HTTPResponse | Framed,
    peer: Peer,
    pull: FilePull,
    run: Run,
    limiter: RateLimiter,
    attempt: Attempt | None = None,
) -> None:
    """A run of chunks from a body that holds exactly them, as they are or in frames.

    Args:
        attempt: where to note how far it is, if it is one of several requests.
    Raises:
        Overtaken: the attempt is not needed any more.
        PeerUnavailable, DigestMismatch: the peer is to blame; the chunks before are verified, written and counted.
        DiskFull, DiskFailed: the file must be discarded.
        TimedOut: cancelled.
    """
    for index in range(run.first, run.last + 1):
        if isinstance(response, Framed):
            if not _receive_frame(response, peer, pull, index, limiter, attempt):
                if index == run.first:
                    raise PeerRefused(peer=peer.id, status=206, reason="frames that end before the first")
                break
        else:
            limiter.take(pull.entry.chunk_range(index)[1], pull.progress.cancelled)
            _receive_chunk(response, peer, pull, index, attempt)
    if isinstance(response, Framed):
        response.finish(pull.progress)


def _receive_frame(
    response: Framed, peer: Peer, pull: FilePull, index: int, limiter: RateLimiter, attempt: Attempt | None
) -> bool:
    """False: the peer sends no more in frames; what is missing is asked for again."""
    try:
        data = response.next(pull.entry.chunk_range(index)[1], pull.progress, limiter, attempt)
    except Undecodable as error:
        expected = str(pull.chunks[index])
        raise DigestMismatch(
            path=pull.entry.path, chunk=index, expected=expected, actual=f"undecodable: {error}", source=peer.id
        ) from error
    if data is None:
        return False
    _verify(pull, index, data, peer)
    with local_faults(pull.path, "write"):
        pull.placing.copy(index, data, attempt)
    return True


def _receive_chunk(
    response: http.client.HTTPResponse, peer: Peer, pull: FilePull, index: int, attempt: Attempt | None
) -> None:
    buffer = pull.placing.buffer()
    try:
        data = buffer[: pull.entry.chunk_range(index)[1]]
        read_exactly(response, data, peer, pull.progress, attempt)
        pull.progress.add(wire_bytes=len(data))
        _verify(pull, index, data, peer)
    except BaseException:
        pull.placing.give_back(buffer)
        raise
    with local_faults(pull.path, "write"):
        pull.placing.put(index, buffer, attempt)


def _verify(pull: FilePull, index: int, data: memoryview, peer: Peer) -> None:
    """A chunk's bytes, from whichever kind of body: nothing is written of them before this. Raises DigestMismatch."""
    actual = Digest(blake3(data).digest())
    if actual != pull.chunks[index]:
        raise mismatch(pull.entry.path, index, pull.chunks[index], actual, peer)


def mismatch(path: str, chunk: int | None, expected: Digest, actual: Digest, peer: Peer) -> DigestMismatch:
    return DigestMismatch(path=path, chunk=chunk, expected=str(expected), actual=str(actual), source=peer.id)
