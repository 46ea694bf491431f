"""One process's worth of work on the disk, to be killed, stopped and starved at any of its system calls.

    python -m tests.fault.driver WORK ROOT [PEER-URL]    does it once
    python -m tests.fault.driver serve                   does it in a fork for each line of JSON on standard input

The second form exists because a Python start under strace costs half a second and a fork nothing. The fork stops itself
before it begins, so that a tracer sees the work from its first call.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.disk import FRAUD, activate, describe, is_settled, sources
from tests.unit.test_catalog import record

from modelsync.core import manifest as manifests
from modelsync.core.errors import ModelsyncError
from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.edges.disk import store as store_file
from modelsync.edges.disk.catalog_files import CatalogFiles
from modelsync.edges.disk.durable import replace_file
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.disk.live import Live
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Peer, Progress

FAILED = 3
"""The exit code where an error of ours ended it; any other but 0 is a fault of the program."""


def use_small_disks() -> None:
    """The sweeps' file systems are smaller than what a store leaves free. For a process that does nothing else."""
    store_file.RESERVE_BYTES = 0


def publish(root: Path, _: str) -> None:
    """What a primary does with a new version, and then as any host: PROTOCOL.md section 5, (a) to (g)."""
    store, live = opened(root)
    try:
        source = root / "models" / "2"
        manifest, digest = describe(store, source, 2)
        files = CatalogFiles(root / "state")
        files.save(record(1, 2))
        files.save_sources({"fraud": tuple(sources(source))})
        if not is_settled(store, live, manifest, digest):
            activate(store, live, manifest, digest)
    finally:
        store.close()


def pull(root: Path, url: str) -> None:
    """What a replica does: steps 1 to 8. The manifest's digest, which Redis would say, lies beside STATE."""
    store, live = opened(root)
    fetcher = Fetcher(store, RateLimiter(), direct_from_bytes=CHUNK_BYTES, room_bytes=lambda: 0)
    progress, peers = Progress(), [Peer("primary", url)]
    try:
        digest = Digest.parse((root / "wanted").read_text())
        manifest = manifests.decode(fetcher.document(digest, peers, 1 << 20, progress))
        for entry in store.missing(manifest):
            if entry.chunk_list is not None:
                fetcher.document(entry.chunk_list, peers, 1 << 20, progress)
            chunks = store.chunk_digests(entry)
            assert chunks is not None
            fetcher.file(entry, chunks, peers, progress)
        if not is_settled(store, live, manifest, digest):
            activate(store, live, manifest, digest)
    finally:
        fetcher.close()
        store.close()


def collect(root: Path, _: str) -> None:
    """Garbage collection after an update: only what runs is kept, `previous` included in what goes."""
    store, live = opened(root)
    try:
        active = live.active(FRAUD)
        assert active is not None
        store.collect({FRAUD: frozenset({active})})
    finally:
        store.close()


def files(root: Path, _: str) -> None:
    """The small files that are replaced whole."""
    store, _live = opened(root)
    try:
        CatalogFiles(root / "state").save(record(1, 2))
        replace_file(root / "state" / "state.json", b'{"epoch": 2}')
    finally:
        store.close()


WORK: dict[str, Callable[[Path, str], None]] = {"publish": publish, "pull": pull, "collect": collect, "files": files}


def opened(root: Path) -> tuple[IngestingStore, Live]:
    store, live = IngestingStore(root / "state"), Live(root / "live", root / "state/store", root / "state")
    store.open()
    try:
        live.open()
    except BaseException:
        store.close()
        raise
    return store, live


def outcome(work: str, root: Path, url: str) -> str:
    """Do it; returns the error of ours that ended it, as ``Class: sentence``, or nothing."""
    try:
        WORK[work](root, url)
    except ModelsyncError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def serve() -> None:
    for line in sys.stdin:
        work, root, url = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            error = outcome(work, Path(root), url)
            os.write(writer, error.encode()[:4000])
            os._exit(FAILED if error else 0)
        os.close(writer)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        with open(reader, "rb") as pipe:
            text = pipe.read().decode()
        print(json.dumps([os.waitstatus_to_exitcode(status), text]), flush=True)


def main() -> int:
    use_small_disks()
    if sys.argv[1:] == ["serve"]:
        serve()
        return 0
    error = outcome(sys.argv[1], Path(sys.argv[2]), (sys.argv[3:] or [""])[0])
    print(error or "done")
    return FAILED if error else 0


if __name__ == "__main__":
    sys.exit(main())
