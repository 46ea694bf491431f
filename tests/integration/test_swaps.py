"""Applications beneath one resolved `current` while it is switched 1,000 times: none fails, none sees a mixture."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from tests.disk import FRAUD, Content, describe

from modelsync.core.ids import EntryId, Version
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.disk.live import Live
from modelsync.ports import ActiveRecord

SWAPS = 1000
VERSIONS = 5
READERS = 2


def read_on(live: Path, stop: Event, told: Any) -> None:
    """Resolve `current` once, open every file beneath it, and see that all are of one version; again and again."""
    reads, failed, mixed, seen = 0, 0, 0, set()
    while not stop.is_set():
        try:
            tree = os.path.realpath(live / FRAUD / "current")
            found = {Path(root, name).read_bytes() for root, _, names in os.walk(tree) for name in names}
        except OSError:
            failed += 1
            continue
        reads += 1
        mixed += len(found) != 1
        seen |= found
    told.put((reads, failed, mixed, len(seen)))


def test_a_thousand_swaps_under_readers(tmp_path: Path) -> None:
    store = IngestingStore(tmp_path / "state")
    store.open()
    live = Live(tmp_path / "live", tmp_path / "state/store", tmp_path / "state")
    live.open()
    digests = []
    for number in range(1, VERSIONS + 1):
        files = {f"{part}/weights": b"%d" % number for part in range(6)}
        (tmp_path / str(number)).mkdir()
        manifest, digest = describe(store, Content(files).write(tmp_path / str(number)), number)
        store.build_tree(manifest, digest)
        digests.append(digest)
    live.switch(ActiveRecord(FRAUD, Version(1), digests[0], EntryId(1, 1), 0))

    context = multiprocessing.get_context("spawn")
    stop, told = context.Event(), context.Queue()
    readers = [context.Process(target=read_on, args=(tmp_path / "live", stop, told)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    for at in range(SWAPS):
        now = at % VERSIONS
        before = digests[now - 1]
        live.switch(ActiveRecord(FRAUD, Version(now + 1), digests[now], EntryId(1, at + 2), 0, None, before))
    stop.set()
    for reads, failed, mixed, seen in [told.get(timeout=30) for _ in readers]:
        assert (failed, mixed) == (0, 0)
        assert reads > 10 and seen == VERSIONS, "the readers were there while it was switched"
    for reader in readers:
        reader.join(10)
    store.close()
