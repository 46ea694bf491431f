"""Pulling objects into the store: steps 1 to 3 of an activation.

This file orders one object's pull: what an earlier try left, who is asked for what is missing, how it gets its name.
It must not know how an answer is read (connections) nor how its bytes reach the disk (chunk_stream).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial as partial_call
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from modelsync.core.compression.frames import Compression
from modelsync.core.errors import (
    DigestMismatch,
    LocalFault,
    ModelsyncError,
    OutOfDescriptors,
    PeerRefused,
    PeerUnavailable,
)
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.core.past_cache import DIRECT_FROM_BYTES
from modelsync.core.swarm.suspects import Suspects
from modelsync.core.transfer import seeds
from modelsync.core.transfer.ranges import Run, runs
from modelsync.core.transfer.seeds import Assembly, Span
from modelsync.edges.disk import partial_file
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.store import Store
from modelsync.edges.host import page_cache
from modelsync.edges.objectstore.client import ObjectStore
from modelsync.edges.pull.batch_fetch import BatchPull
from modelsync.edges.pull.chunk_stream import FilePull, mismatch, receive
from modelsync.edges.pull.connections import Connections, read_exactly, require_going_on, without_frames
from modelsync.edges.pull.copying import Slots
from modelsync.edges.pull.old_bytes import OldBytes
from modelsync.edges.pull.opening import Opener
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.edges.pull.seeding import Seeding
from modelsync.edges.pull.swarm import Look, SwarmPull, Tools
from modelsync.ports import Peer, Progress

Answer = TypeVar("Answer")

SWARM_FROM_BYTES = 16 << 20
"""Below it an object comes from one peer after another: reading maps would take longer than it saves the primary."""

SILENT_S = 60.0
"""How long a peer that did not answer is asked after the others: a host without power costs TIMEOUT_S each time."""
_LOOK_S = 0.5
"""How often a pull that waits for another one looks whether it was cancelled itself."""


class Fetcher:
    """Pulls objects into one store. Its methods block; call them from a thread.

    Args:
        headers: what every request carries, read anew for each.
        me: this node's id.
        swarm_from_bytes: objects of so many bytes are pulled from all peers at once.
        compression: ``[transfer] compression``, read anew for each request.
        direct_from_bytes, room_bytes: as of ``Opener``.
    """

    def __init__(
        self,
        store: Store,
        limiter: RateLimiter,
        headers: Callable[[], Mapping[str, str]] = dict,
        me: str = "",
        swarm_from_bytes: int = SWARM_FROM_BYTES,
        depot: ObjectStore | None = None,
        compression: Callable[[], Compression] = lambda: "auto",
        direct_from_bytes: int = DIRECT_FROM_BYTES,
        room_bytes: Callable[[], int] = page_cache.room_bytes,
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._connections = Connections(headers, depot, limiter, compression)
        self.suspects = Suspects()
        self._tools = Tools(me, self._connections, limiter, self.suspects)
        self._swarm_from_bytes = swarm_from_bytes
        self.opener = Opener(direct_from_bytes, room_bytes)
        self._old_bytes = OldBytes(store)
        self._slots = Slots()
        self._silent_until_s: dict[str, float] = {}
        self._guard = threading.Lock()
        self._under_way: dict[Digest, threading.Event] = {}

    def close(self) -> None:
        self._connections.close()

    # --- documents --------------------------------------------------------------------------------------------------

    def document(
        self, digest: Digest, peers: Sequence[Peer], max_bytes: int, progress: Progress, *, keep: bool = True
    ) -> bytes:
        """A manifest or chunk list, from the first peer that has it right; kept in the store unless the caller does.

        Raises: the last peer's fault, when all have failed.
        """
        data = self._store.read_document(digest)
        if data is not None:
            return data
        data = self._from_any(peers, progress, lambda peer: self._read_document(peer, digest, max_bytes, progress))
        if keep:
            self._store.put_document(data)
        return data

    def _read_document(self, peer: Peer, digest: Digest, max_bytes: int, progress: Progress) -> bytes:
        with self._connections.get(peer, digest, None) as response:
            if response.length is None or response.length > max_bytes:
                raise PeerRefused(
                    peer=peer.id, status=200, reason=f"{response.length} bytes, at most {max_bytes} are read"
                )
            data = bytearray(response.length)
            read_exactly(response, memoryview(data), peer, progress)
            progress.add(wire_bytes=len(data))
            actual = Digest(blake3(data).digest())
            if actual != digest:
                raise mismatch(str(digest), None, digest, actual, peer)
        return bytes(data)

    def _from_any(self, peers: Sequence[Peer], progress: Progress, ask: Callable[[Peer], Answer]) -> Answer:
        """Ask one peer after another; those that gave wrong bytes in this pull, or were silent lately, come last."""
        fault: ModelsyncError = PeerUnavailable(peer="any", reason="no peer that could have it is known")
        now_s = time.monotonic()
        for peer in self._best_first([peer for peer in peers if peer.holds or peer.owner], progress, now_s):
            require_going_on(progress)
            try:
                return ask(peer)
            except (PeerRefused, PeerUnavailable, DigestMismatch) as error:
                if isinstance(error, PeerUnavailable):
                    self._silent_until_s[peer.id] = time.monotonic() + SILENT_S
                elif isinstance(error, DigestMismatch):
                    self.suspects.accuse(peer.id, time.monotonic())
                fault = without_frames(error)
                progress.blamed.append(fault)
        require_going_on(progress)
        raise fault

    def _best_first(self, peers: Sequence[Peer], progress: Progress, now_s: float) -> list[Peer]:
        lies = Counter(error.source for error in progress.blamed if isinstance(error, DigestMismatch))
        suspects = set(self.suspects.names(now_s))
        silent = {name for name, until_s in list(self._silent_until_s.items()) if until_s > now_s}
        return sorted(peers, key=lambda peer: (not peer.holds, lies[peer.id], peer.id in suspects, peer.id in silent))

    # --- files ------------------------------------------------------------------------------------------------------

    def file(
        self,
        entry: FileEntry,
        chunks: Sequence[Digest],
        peers: Sequence[Peer],
        progress: Progress,
        look: Look | None = None,
    ) -> None:
        """Pull one file's bytes and give them their name, resuming what an earlier try left behind.

        Args:
            peers: who may be asked, the best first.
            look: gives them anew, for a pull that outlasts one of them.
        Raises:
            PeerUnavailable, PeerRefused, DigestMismatch: every peer has failed; verified chunks are kept for next time.
            DiskFull, DiskFailed: the file was discarded.
            TimedOut: cancelled.
        """
        with self._alone(entry.digest, progress):
            if self._store.has(entry.digest):
                progress.add(done_bytes=entry.size_bytes)
                return
            partial = self._store.partial_path(entry.digest)
            try:
                with local_faults(partial, "pull"):
                    self._pull(partial, entry, chunks, peers, progress, look or (lambda: peers))
            except OutOfDescriptors:
                raise  # that says nothing about the bytes
            except LocalFault:
                # After a failed write or fsync the kernel may have dropped pages that a read still shows: what lies
                # there is not trusted again, and on a full disk it would only be in the way.
                self._store.partials.forget(entry.digest)
                with contextlib.suppress(OSError):
                    os.unlink(partial)
                raise

    def files(self, entries: Sequence[FileEntry], peers: Sequence[Peer], progress: Progress) -> None:
        """Pull many small files at once; raises as ``file``."""
        batch = BatchPull(self._store, self._connections, self._limiter, progress)
        with contextlib.ExitStack() as alone, local_faults(self._store.partial, "pull"):
            ordered = sorted(entries, key=lambda entry: entry.digest.raw)  # two batches never wait for each other
            for entry in ordered:
                alone.enter_context(self._alone(entry.digest, progress))
            batch.run(ordered, lambda ask: self._from_any(peers, progress, ask))

    @contextlib.contextmanager
    def _alone(self, digest: Digest, progress: Progress) -> Iterator[None]:
        """Two models may hold one file: its second pull waits for the first and then finds it held."""
        while True:
            with self._guard:
                if digest not in self._under_way:
                    done = self._under_way[digest] = threading.Event()
                    break
                other = self._under_way[digest]
            other.wait(_LOOK_S)
            require_going_on(progress)
        try:
            yield
        finally:
            with self._guard:
                del self._under_way[digest]
            done.set()

    def _pull(
        self,
        partial: Path,
        entry: FileEntry,
        chunks: Sequence[Digest],
        peers: Sequence[Peer],
        progress: Progress,
        look: Look,
    ) -> None:
        copied: Mapping[int, Span | None] = {}
        for may_copy in (entry.chunk_count > 1, False):
            with self.opener.opened(partial, entry, chunks, progress) as pull:  # (1)
                self._resume(pull, copied)
                with self._shown(pull):
                    if may_copy:
                        self._seed(pull, peers, look)
                    self._receive(pull, peers, look)  # (2)
                    if self._finish(pull, partial):  # (2) and (3)
                        return
            # Something that was copied is not what it ought to be: look at each chunk, as after a kill.
            copied = pull.copied
            progress.add(done_bytes=-entry.size_bytes)

    def _resume(self, pull: FilePull, copied: Mapping[int, Span | None]) -> None:
        """Count what of the file is right already, and note where chunks that were copied to it are not."""
        entry, progress = pull.entry, pull.progress
        going_on = partial_call(require_going_on, progress)
        for index in partial_file.verified_chunks(pull.descriptor, pull.writer.read, entry, pull.chunks, going_on):
            pull.verified.add(index)
        progress.add(done_bytes=sum(entry.chunk_range(index)[1] for index in pull.verified))
        progress.blamed += self._old_bytes.blamed(pull, copied)

    @contextlib.contextmanager
    def _shown(self, pull: FilePull) -> Iterator[None]:
        """Let others have what is verified of it, also after a failure; once it is whole it is served as what it is.

        Of a small one only who reads through here asks for parts, while it lasts.
        """
        digest, partials = pull.entry.digest, self._store.partials
        partials.enter(digest, pull.path, pull.verified)
        try:
            yield
            partials.forget(digest)
        finally:
            if pull.entry.size_bytes < self._swarm_from_bytes:
                partials.forget(digest)
            else:
                partials.pause(digest)

    def _receive(self, pull: FilePull, peers: Sequence[Peer], look: Look, spared: Collection[int] = ()) -> None:
        """Every missing chunk but those that are spared."""
        if pull.entry.size_bytes >= self._swarm_from_bytes:
            SwarmPull(pull, self._tools, look, {*pull.copied, *spared}).run()
            return
        while missing := runs(pull.entry, {*pull.verified, *pull.copied, *spared}):
            self._from_any(peers, pull.progress, partial_call(self._run, pull, missing[0]))

    def _seed(self, pull: FilePull, peers: Sequence[Peer], look: Look) -> None:
        """Fill what this host holds already, after pulling what it does not: so the file's digest is fed in order."""
        with contextlib.closing(Seeding(self._store, pull, self._slots)) as seeding:
            plans = self._old_bytes.plans(
                pull, lambda digest, progress: self.document(digest, peers, seeds.MAX_MAP_BYTES, progress)
            )
            if not plans:
                return
            self._receive(pull, peers, look, [plan.index for plan in plans])
            for plan in (plan for plan in plans if plan.gaps):
                buffer = seeding.gather(plan)
                self._from_any(peers, pull.progress, partial_call(self._fill_gaps, pull, plan, buffer))
                seeding.place(plan.index, buffer)  # not right: the whole chunk is asked for, as if there were no map
            seeding.fill([plan for plan in plans if not plan.gaps])

    def _fill_gaps(self, pull: FilePull, plan: Assembly, buffer: memoryview, peer: Peer) -> None:
        start = pull.entry.chunk_range(plan.index)[0]
        for offset, size in plan.gaps:
            self._limiter.take(size, pull.progress.cancelled)
            with self._connections.get(peer, pull.entry.digest, (offset, offset + size)) as response:
                read_exactly(response, buffer[offset - start : offset - start + size], peer, pull.progress)
            pull.progress.add(wire_bytes=size)

    def _run(self, pull: FilePull, run: Run, peer: Peer) -> None:
        """Receive what is still missing of a range; an earlier peer may have delivered the beginning of it.

        At least its last chunk is missing: a peer that delivered all of a range has not failed.
        """
        while run.first in pull.verified:
            run = Run(run.first + 1, run.last)
        entry = pull.entry
        with self._connections.chunks(peer, entry.digest, run.byte_range(entry), entry.chunk_bytes) as response:
            receive(response, peer, pull, run, self._limiter)

    def _finish(self, pull: FilePull, partial: Path) -> bool:
        """Steps 2 and 3: the whole file's digest beside its fsync, then its name; False where a copy may be wrong."""
        entry = pull.entry
        pull.writer.cut()
        whole = partial_file.HashBeside(pull.writer.read, pull.whole) if entry.chunk_count != 1 else None
        try:
            os.fchmod(pull.descriptor, 0o444)
            os.fsync(pull.descriptor)
        finally:
            actual = whole.result() if whole else pull.chunks[0]
        if actual != entry.digest and pull.copied:
            return False
        if actual != entry.digest:
            self._store.partials.forget(entry.digest)
            os.unlink(partial)
            raise DigestMismatch(
                path=entry.path, chunk=None, expected=str(entry.digest), actual=str(actual), source="manifest"
            )
        for index in pull.copied:  # whoever reads it through has this file open and goes by this map
            pull.verified.add(index)
        self._store.adopt(partial, entry.digest)
        return True
