"""An object store on a mounted path, of file systems that do less than a disk of this host's: NFS, CIFS, FUSE."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from modelsync.core.errors import ModelsyncError
from modelsync.edges.objectstore.bucket import Bucket

bucket = Bucket("file://" + sys.argv[1], None)
try:
    print(bucket.create("versions/m/1", b"1"), bucket.create("versions/m/1", b"2"), bucket.read("versions/m/1", 9)[0])
except ModelsyncError as error:
    print(type(error).__name__, error)
bucket.close()
"""


def answered(store: Path, *words: str) -> str:
    """What a writer says of whom strace changes a system call."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing")
    store.mkdir()
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *words, sys.executable, "-c", PROGRAM, str(store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.mark.parametrize("error", ["EPERM", "EOPNOTSUPP"])
def test_without_hard_links_it_is_refused_with_the_reason(tmp_path: Path, error: str) -> None:
    inject = ("-e", "trace=link,linkat", "-e", f"inject=link,linkat:error={error}")
    said = answered(tmp_path / "store", *inject)
    assert said.startswith("ObjectStoreRefused") and "takes no hard links" in said
    assert sorted(path.name for path in (tmp_path / "store").rglob("*") if path.is_file()) == []


def test_directories_that_cannot_be_synced_are_the_server_s(tmp_path: Path) -> None:
    store = tmp_path / "store"
    paths = [word for path in (store, store / "versions", store / "versions" / "m") for word in ("-P", str(path))]
    assert answered(store, *paths, "-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL") == "True False b'1'"


def test_a_stale_handle_is_no_fault_of_this_host_s_disk(tmp_path: Path) -> None:
    """A host whose own disk fails hands over; one whose server is gone waits."""
    store = tmp_path / "store"
    path = ("-P", str(store / "versions" / "m" / "1"))
    said = answered(store, *path, "-e", "trace=fsync", "-e", "inject=fsync:error=ESTALE")
    assert said.startswith("ObjectStoreUnavailable") and "Stale file handle" in said
