"""The floor: what any program must do at least, in one process and without a network.

``bare_path.py SOURCE TARGET`` waits for a rename into SOURCE, copies and hashes the file, fsyncs it, names it by its
digest, fsyncs the directory, and swaps the symbolic link TARGET/live/current.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from blake3 import blake3


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def take(path: Path, target: Path) -> None:
    data = path.read_bytes()
    objects, live = target / "objects", target / "live"
    temporary, name = objects / "new.tmp", blake3(data).hexdigest()
    temporary.write_bytes(data)
    sync(temporary)
    temporary.rename(objects / name)
    sync(objects)
    link = live / "current.tmp"
    link.symlink_to(f"../objects/{name}")
    link.rename(live / "current")
    sync(live)


def main(source: Path, target: Path) -> None:
    for directory in ("objects", "live"):
        (target / directory).mkdir(parents=True, exist_ok=True)
    witness = [sys.executable, "-I", "-S", str(Path(__file__).with_name("arrivals.py")), str(source)]
    with subprocess.Popen(witness, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line != "ready\n":
                take(source / line.split(" ", 2)[2].rstrip("\n"), target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
