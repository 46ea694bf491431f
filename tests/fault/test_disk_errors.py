"""A full, failing or read-only disk (FAULTS, rows 4 to 6): a clear error, the old version, and later the new one.

Samples; `tools/faults enospc eio` is all.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.disk import activate, describe
from tests.fault import driver as work
from tests.fault import sweeps
from tests.fault.power import mounted
from tests.fault.sweeps import Sweep
from tests.fault.tracing import Driver
from tests.fault.worlds import WORLDS

from modelsync.core.errors import DiskFull, DiskReadOnly

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(
    ("world", "stride", "least"),
    [("publish", 3, 11), ("pull", 2, 10), ("files", 1, 6), ("publish-many", 40, 6), ("first", 40, 6)],
)
def test_no_space_at_any_call(driver: Driver, directory: Path, world: str, stride: int, least: int) -> None:
    points = list(sweeps.enospc(Sweep(driver, WORLDS[world], directory), sweeps.sample(stride)))
    assert "\n".join(str(point) for point in points if point.faults) == ""
    assert len(points) >= least


@pytest.mark.parametrize(
    ("world", "stride", "least"),
    [("publish", 2, 12), ("pull", 2, 8), ("collect", 1, 4), ("files", 2, 4), ("publish-many", 3, 5)],
)
def test_a_failed_fsync_is_never_tried_again(
    driver: Driver, directory: Path, world: str, stride: int, least: int
) -> None:
    points = list(sweeps.eio(Sweep(driver, WORLDS[world], directory), sweeps.sample(stride)))
    assert "\n".join(str(point) for point in points if point.faults) == ""
    assert len(points) >= least


@pytest.mark.usefixtures("can_mount")
@pytest.mark.parametrize("world", ["publish", "pull", "publish-many"])
@pytest.mark.parametrize("left_bytes", [0, 4096, 100_000, 1_000_000])
def test_a_disk_that_is_really_full(directory: Path, world: str, left_bytes: int) -> None:
    chosen = WORLDS[world]
    with mounted(directory / "disk.img", new=True) as disk:
        root = disk / "root"
        root.mkdir()
        chosen.prepare(root)
        with chosen.peer(root) as url:
            _fill(disk / "hog", left_bytes)
            error = work.outcome(chosen.work, root, url)
            if world != "publish-many" or left_bytes < 100_000:  # many small files may fit into that
                assert error.startswith("DiskFull: "), error
            assert chosen.broken(root) == []
            assert list((root / "state/tmp").iterdir()) == []
            assert list((root / "state/partial").iterdir()) == []
            (disk / "hog").unlink()
            assert chosen.unfinished(root, url) == []


def _fill(path: Path, left_bytes: int) -> None:
    """Leave so many bytes free, in one piece or none."""
    with open(path, "wb", buffering=0) as file:
        block = b"x" * 65536
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
        file.flush()
        subprocess.run(["sync", "--file-system", str(path.parent)], check=True)
        file.truncate(max(0, file.tell() - left_bytes))
        subprocess.run(["sync", "--file-system", str(path.parent)], check=True)


@pytest.mark.usefixtures("can_mount")
def test_space_is_checked_before_anything_is_written(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = WORLDS["publish"]
    with mounted(directory / "disk.img", new=True) as disk:
        root = disk / "root"
        root.mkdir()
        chosen.prepare(root)
        store, _ = work.opened(root)
        monkeypatch.setattr(work.store_file, "RESERVE_BYTES", 64 << 20)
        with pytest.raises(DiskFull) as caught:
            describe(store, root / "models/2", 2)
        assert caught.value.needed_bytes is not None and caught.value.free_bytes is not None
        assert caught.value.needed_bytes > caught.value.free_bytes
        assert list((root / "state/tmp").iterdir()) == []
        store.close()


@pytest.mark.usefixtures("can_mount")
def test_a_disk_that_becomes_read_only(directory: Path) -> None:
    """As ext4 does by itself after an error: the journal is aborted under the open store."""
    chosen = WORLDS["publish"]
    image = directory / "disk.img"
    with mounted(image, new=True) as disk:
        root = disk / "root"
        root.mkdir()
        chosen.prepare(root)
        subprocess.run(["sync", "--file-system", str(disk)], check=True)
        store, live = work.opened(root)
        manifest, digest = describe(store, root / "models/2", 2)
        subprocess.run(["mount", "-o", "remount,abort", str(disk)], check=False, capture_output=True)
        for attempt in (
            lambda: describe(store, root / "models/2", 2),
            lambda: activate(store, live, manifest, digest),
            lambda: store.build_tree(manifest, digest),
        ):
            with pytest.raises(DiskReadOnly) as caught:
                attempt()
            assert caught.value.errno_name == "EROFS"
        assert chosen.broken(root) == []
        store.close()
        assert work.outcome("publish", root, "").startswith("DiskReadOnly: The file system is read-only")
    with mounted(image) as disk:
        assert chosen.broken(disk / "root") == []
        assert chosen.unfinished(disk / "root", "") == []
