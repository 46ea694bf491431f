"""What a resumable publish sends: the plan of its files, read once for their digests, and then the chunks asked for.

It knows no HTTP library; ``upload_client`` sends it. A file that is not what it was ends the upload.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable

from blake3 import blake3

from modelsync.core.errors import SourceChanged
from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.core.uploads import UploadPlan, frame_head, plan_of
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.http.outgoing import OutgoingFile, open_same, require_same


def planned(files: tuple[OutgoingFile, ...], on_read: Callable[[int], None]) -> UploadPlan:
    """Read every file. Blocks. Raises SourceChanged, DiskFailed, BadName.

    Args:
        on_read: told how many bytes were read since it was last told.
    """
    digests, chunks = [], bytearray()
    for file in files:
        digests.append((file.name, file.size_bytes, _digest_of(file, chunks, on_read)))
    return plan_of(digests, bytes(chunks))


def _digest_of(file: OutgoingFile, chunks: bytearray, on_read: Callable[[int], None]) -> Digest:
    whole, buffer, read_bytes = blake3(), memoryview(bytearray(CHUNK_BYTES)), 0
    descriptor = open_same(file)
    try:
        with local_faults(file.path, "read"):
            while size := os.preadv(descriptor, [buffer], read_bytes):
                chunks += blake3(buffer[:size]).digest()
                if file.size_bytes > CHUNK_BYTES:
                    whole.update(buffer[:size])
                read_bytes += size
                on_read(size)
        if read_bytes != file.size_bytes:
            raise SourceChanged(path=str(file.path))
        require_same(descriptor, file)
    finally:
        os.close(descriptor)
    only = 0 < file.size_bytes <= CHUNK_BYTES
    return Digest(bytes(chunks[-32:])) if only else Digest(whole.digest())


class OutgoingChunks:
    """The chunks of some runs of a plan, framed, in order; one is in memory.

    Args:
        on_sent: told the bytes of each chunk that was handed on.
    """

    def __init__(
        self,
        files: tuple[OutgoingFile, ...],
        plan: UploadPlan,
        runs: Iterable[tuple[int, int]],
        on_sent: Callable[[int], None],
    ) -> None:
        self._files = files
        self._plan = plan
        self._runs = list(runs)
        self._on_sent = on_sent
        self.failure: SourceChanged | None = None
        """Why it broke off, where that was the file's doing: an HTTP library hides it in its own."""

    @property
    def size_bytes(self) -> int:
        """For the Content-Length header."""
        count = sum(beyond - first for first, beyond in self._runs)
        return self._plan.bytes_of(self._runs) + len(frame_head(0)) * count

    async def blocks(self) -> AsyncIterator[bytes]:
        """The bytes, from the start. Sets ``failure`` and raises SourceChanged if a file is not what it was."""
        opened, descriptor = -1, -1
        try:
            for first, beyond in self._runs:
                for chunk in range(first, beyond):
                    number, offset, size = self._plan.place_of(chunk)
                    if number != opened:
                        if descriptor >= 0:
                            os.close(descriptor)
                            descriptor = -1
                        descriptor, opened = await asyncio.to_thread(open_same, self._files[number]), number
                    data = await asyncio.to_thread(os.pread, descriptor, size, offset)
                    require_same(descriptor, self._files[number])
                    if len(data) != size:
                        raise SourceChanged(path=str(self._files[number].path))
                    yield frame_head(chunk)
                    yield data
                    self._on_sent(size)
        except SourceChanged as error:
            self.failure = error
            raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)
