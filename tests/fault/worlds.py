"""The pieces of work that faults are put into: how each begins, what must hold at any moment, and how it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from tests.disk import FRAUD, Content, activate, describe, misnamed, noise, temporaries
from tests.fault import driver
from tests.integration.lying_peer import LyingPeer
from tests.unit.test_catalog import record

from modelsync.core.errors import ModelsyncError
from modelsync.edges.disk.catalog_files import CatalogFiles
from modelsync.edges.disk.durable import replace_file

MIB = 1 << 20
FEW = {"sub/vocab.txt": b"shared by both", "run.sh": b"#!/bin/sh\n", "tiny": b"1", "empty": b""}


def few(seed: int, size_bytes: int = MIB + 4321) -> Content:
    """One file above a chunk, a tiny one, an empty one, one in a subdirectory, one that can be executed."""
    return Content({**FEW, "model.bin": noise(seed, size_bytes), "tiny": b"%d" % seed}, frozenset({"run.sh"}))


def many(seed: int) -> Content:
    """Enough files that one syncfs stands for all their fsyncs."""
    return Content({**FEW, **{f"part/{n}": b"%d of %d" % (n, seed) for n in range(66)}}, frozenset({"run.sh"}))


@dataclass(frozen=True)
class World:
    """``first`` is active when the work begins (None: nothing was ever there), ``second`` when it has been done."""

    name: str
    work: str
    first: Content | None
    second: Content
    updated: bool = False
    """The second version is active before the work begins already, and the first one retained."""

    def allowed(self) -> list[Content | None]:
        return [self.second] if self.updated else [self.first] if self.work == "files" else [self.first, self.second]

    def final(self) -> Content | None:
        return self.first if self.work == "files" else self.second

    # --- making -------------------------------------------------------------------------------------------------------

    def prepare(self, root: Path) -> None:
        """Lay out the beginning in an empty directory."""
        (root / "live").mkdir(parents=True)
        self.second.write(root / "models" / "2")
        if self.first is None:
            return
        self.first.write(root / "models" / "1")
        store, live = driver.opened(root)
        try:
            activate(store, live, *describe(store, root / "models" / "1", 1))
            CatalogFiles(root / "state").save(record(1))
            replace_file(root / "state" / "state.json", b'{"epoch": 1}')
            if self.updated:
                activate(store, live, *describe(store, root / "models" / "2", 2))
        finally:
            store.close()

    @contextlib.contextmanager
    def peer(self, root: Path) -> Iterator[str]:
        """For a pull: a primary that has the second version, and its digest beside the state directory."""
        if self.work != "pull":
            yield ""
            return
        server = LyingPeer("primary")
        with tempfile.TemporaryDirectory() as directory:
            primary = Path(directory)
            self.second.write(primary / "models")
            store, _ = driver.opened(primary)
            _, digest = describe(store, primary / "models", 2)
            store.close()
            for path in [*primary.glob("state/objects/b3/*/*"), *primary.glob("state/manifests/*")]:
                server.hold(path.read_bytes())
        (root / "wanted").write_text(str(digest))
        try:
            yield server.peer.url
        finally:
            server.close()

    # --- what must hold ---------------------------------------------------------------------------------------------

    def broken(self, root: Path) -> list[str]:
        """What does not hold that must hold at any moment, after any crash."""
        try:
            return self._broken(root)
        except OSError as error:
            return [f"it cannot be read: {error}"]

    def _broken(self, root: Path) -> list[str]:
        faults = [] if self._resolves(root, "current", self.allowed()) else ["current is not a whole allowed version"]
        if not self._resolves(root, "previous", [None, self.first, self.second]) and not self.updated:
            faults.append("previous is not a whole version")
        faults += [f"wrong bytes under the name {path}" for path in misnamed(root / "state")]
        return faults + self._unreadable(root)

    @staticmethod
    def _resolves(root: Path, link: str, allowed: list[Content | None]) -> bool:
        path = root / "live" / "fraud" / link
        if not os.path.lexists(path):
            return None in allowed
        return any(content is not None and content.seen_at(path) for content in allowed)

    @staticmethod
    def _unreadable(root: Path) -> list[str]:
        state = root / "state"
        if not state.is_dir():
            return []
        try:
            CatalogFiles(state).load() if (state / "catalog").is_dir() else {}
            if (state / "active").is_dir():
                driver.Live(root / "live", state / "store", state).records()
        except ModelsyncError as error:
            return [str(error)]
        ledger = state / "state.json"
        if ledger.exists() and ledger.read_bytes() not in (b'{"epoch": 1}', b'{"epoch": 2}'):
            return ["state.json is neither the old nor the new one"]
        return []

    def unfinished(self, root: Path, url: str) -> list[str]:
        """Do the work again, undisturbed: what is not as it should be afterwards."""
        try:
            error = driver.outcome(self.work, root, url)
        except Exception as broken:  # no error of ours: the program itself broke on what the fault left
            error = repr(broken)
        faults = [f"the work done again: {error}"] if error else []
        if not self._resolves(root, "current", [self.final()]):
            faults.append("current is not the new version after the work was done again")
        if self.work in ("publish", "pull") and not self._resolves(root, "previous", [self.first]):
            faults.append("previous is not the old version after the work was done again")
        left = temporaries(root / "state", root / "live")
        faults += [f"left over: {path}" for path in left]
        if self.work == "collect":
            faults += self._garbage(root)
        return faults + self.broken(root)

    def lost(self, root: Path) -> list[str]:
        """What was done and is not there any more."""
        faults = [] if self._resolves(root, "current", [self.final()]) else ["current is not the new version"]
        if self.work in ("publish", "files"):
            known = CatalogFiles(root / "state").load()
            faults += [] if known == {FRAUD: record(1, 2)} else ["the catalog's file is not the new one"]
        if self.work == "files" and (root / "state/state.json").read_bytes() != b'{"epoch": 2}':
            faults.append("state.json is not the new one")
        if self.work in ("publish", "pull"):
            state = root / "state"
            active = driver.Live(root / "live", state / "store", state).records()
            faults += [] if active and active[FRAUD].version == 2 else ["the active record is not the new one"]
        return faults

    def _garbage(self, root: Path) -> list[str]:
        wanted = {blake3(data).hexdigest() for data in self.second.files.values()}
        extra = [str(path) for path in root.glob("state/objects/b3/*/*") if path.name not in wanted]
        trees = list(root.glob("state/store/fraud/*"))
        return [f"garbage: {path}" for path in extra] + ([f"{len(trees)} trees"] if len(trees) != 1 else [])


WORLDS = {
    world.name: world
    for world in (
        World("publish", "publish", few(1), few(2)),
        World("pull", "pull", few(1), few(2)),
        World("collect", "collect", few(1), few(2), updated=True),
        World("files", "files", few(1, 10), few(2, 10)),
        World("publish-many", "publish", few(1), many(2)),
        World("pull-many-chunks", "pull", few(1), few(2, 17 * MIB + 1)),
        World("first", "publish", None, few(2)),
    )
}


def copied(source: Path, target: Path) -> Path:
    """Hard links, modes and times included."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    return target


def scratch() -> Path:
    """A directory for roots and images: in memory where there is room, since the sweeps are about order, not speed."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    return Path(tempfile.mkdtemp(prefix="modelsync-faults-", dir=memory if enough else None))
