"""What people would otherwise use, each as a ``host.Contender``: the same data, and what it promises said in its notes.

Where a program neither verifies nor fsyncs, a check by openssl (whose SHA-256 uses the processor's instructions, as
coreutils' does not) and a `sync` of what was written are part of the clock, so that all promise the same; `cp` and the
plain rsync are also shown without, and say so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from payload import bytes_below

PACKAGES = {
    "rsync": "rsync", "nginx": "nginx-light", "aria2c": "aria2", "curl": "curl", "openssl": "openssl",
    "rclone": "rclone", "syncthing": "syncthing", "casync": "casync",
}  # fmt: skip
"""The Debian package of each program."""
PORT = 8080
"""Of every server: each host has a network of its own."""
URL = f"http://127.0.0.1:{PORT}"


class Directory:
    """What most contenders share: a source to serve and a target to fill, side by side on one disk."""

    needs: tuple[str, ...] = ()
    verified = "no"
    durable = "sync"
    trees = True
    """Whether it can move a directory of small files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.served = root / "served"
        self.target = root / "target"
        self.served.mkdir(parents=True)
        self.target.mkdir()
        self.source = self.served
        self._server: subprocess.Popen[bytes] | None = None

    def prepare(self, source: Path, old: Path | None) -> None:
        for path in self.served.glob("[!.]*"):  # a dot: the mark of a folder of syncthing
            path.unlink() if path.is_file() else shutil.rmtree(path)
        self.source = self.served / source.name
        shutil.copytree(source, self.source, copy_function=os.link) if source.is_dir() else os.link(source, self.source)
        if old is not None:
            shutil.copytree(old, self.got) if old.is_dir() else shutil.copyfile(old, self.got)

    @property
    def got(self) -> Path:
        return self.target / self.source.name

    def clear(self) -> int:
        size_bytes = bytes_below(self.got)
        aside = self.root / "aside"  # a removed inode slows down later creates for a minute on ext4: at the end
        if self.got.is_dir():
            aside.mkdir(exist_ok=True)
            self.got.rename(aside / str(time.monotonic_ns()))
        else:
            self.got.unlink()
        return size_bytes

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(10)

    def _serve(self, *command: object) -> None:
        self._server = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        for _ in range(200):
            if subprocess.run(["curl", "-s", "-o", "/dev/null", URL], check=False).returncode not in (7,):
                return
            time.sleep(0.05)
        raise SystemExit(f"{command[0]} does not listen")


def sync(path: Path) -> None:
    """Make a file durable, or all of the file system for a tree."""
    subprocess.run(["sync", *(["-f"] if path.is_dir() else []), path], check=True)


class Digests:
    """SHA-256 of a source, made before the clock starts, and compared with what arrived while it runs."""

    def __init__(self, source: Path) -> None:
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        self.of = {path.relative_to(source): _sha256(path) for path in files}

    def check(self, got: Path) -> None:
        names = [got / name for name in self.of]
        for first in range(0, len(names), 1000):
            command = ["openssl", "dgst", "-sha256", "-r", *names[first : first + 1000]]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            for line, name in zip(said, names[first : first + 1000], strict=True):
                assert line.split()[0] == self.of[name.relative_to(got)], f"{name} is damaged"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Copy(Directory):
    """The floor: no network, nothing verified."""

    def fetch(self) -> None:
        subprocess.run(["cp", "-r", self.source, self.target], check=True)
        sync(self.got)


class Rsync(Directory):
    """A daemon on loopback; ``--whole-file`` where there is no old version, its delta where there is one."""

    needs = ("rsync", "curl")
    durable = "--fsync"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        config = root / "rsyncd.conf"
        user = f"uid = {os.getuid()}\ngid = {os.getgid()}\n"
        config.write_text(f"use chroot = no\n{user}[m]\npath = {self.served}\nread only = yes\n")
        self._serve("rsync", "--daemon", "--no-detach", "--config", config, "--port", PORT, "--address", "127.0.0.1")

    def fetch(self) -> None:
        how = "--no-whole-file" if self.got.exists() else "--whole-file"
        # --ignore-times: the copy may have the size and second of the new file, which it would take for unchanged
        command = [
            "rsync",
            "-r",
            "--delete",
            "--ignore-times",
            how,
            "--fsync",
            f"rsync://127.0.0.1:{PORT}/m/{self.source.name}",
        ]
        subprocess.run([*command, f"{self.target}/"], check=True)


class CheckedRsync(Rsync):
    """What it takes to know that the bytes on this disk are the publisher's."""

    needs = ("rsync", "curl", "openssl")
    verified = "SHA-256 afterwards"

    def prepare(self, source: Path, old: Path | None) -> None:
        super().prepare(source, old)
        self._digests = Digests(self.source)

    def fetch(self) -> None:
        super().fetch()
        self._digests.check(self.got)


class Nginx(Directory):
    """Serves; what fetches is a subclass's."""

    verified = "SHA-256 afterwards"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        config = root / "nginx.conf"
        config.write_text(
            f"daemon off; user root; worker_processes 1; pid {root}/nginx.pid; error_log {root}/error.log;\n"
            "events { worker_connections 512; }\n"
            f"http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {root}/body;\n"
            f"server {{ listen 127.0.0.1:{PORT}; root {self.served}; autoindex on; }} }}\n"
        )
        self._serve("nginx", "-c", config, "-e", root / "error.log")

    def prepare(self, source: Path, old: Path | None) -> None:
        super().prepare(source, old)
        self._digests = Digests(self.source)


class Curl(Nginx):
    needs = ("nginx", "curl", "openssl")
    trees = False

    def fetch(self) -> None:
        subprocess.run(["curl", "-sf", "-o", self.got, f"{URL}/{self.source.name}"], check=True)
        self._digests.check(self.got)
        sync(self.got)


class Aria2c(Nginx):
    """Four connections, preallocated, checked by itself as it is told the digest."""

    needs = ("nginx", "aria2c", "curl")
    verified = "SHA-256 by itself"

    def fetch(self) -> None:
        lines = []
        for name, digest in self._digests.of.items():
            path = Path(self.source.name) / name
            lines.append(f"{URL}/{path}\n out={path}\n checksum=sha-256={digest}\n")
        listed = self.root / "list"
        listed.write_text("".join(lines))
        how = "--split=4 --max-connection-per-server=4 --max-concurrent-downloads=4 --file-allocation=falloc -q"
        subprocess.run(["aria2c", *how.split(), "--dir", self.target, "--input-file", listed], check=True)
        sync(self.got)


class Rclone(Nginx):
    """Over plain http, which has no digests: compared afterwards."""

    needs = ("nginx", "rclone", "curl", "openssl")

    def fetch(self) -> None:
        command = ["rclone", "copyto", "--config", "/dev/null", "--http-url", URL, "--transfers", "4", "--ignore-times"]
        subprocess.run([*command, f":http:{self.source.name}", self.got], check=True)
        self._digests.check(self.got)
        sync(self.got)


class Casync(Directory):
    """The old file as seed, a store that was made before the clock starts; its own chunks' digests are checked."""

    needs = ("casync",)
    verified = "by chunk"
    trees = False  # without an old version it is not run

    def prepare(self, source: Path, old: Path | None) -> None:
        assert old is not None
        super().prepare(source, old)
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        self._stores = [work / "old.castr", work / "new.castr"]
        self._index = work / ("new.caidx" if self.source.is_dir() else "new.caibx")
        for path, store in zip((old, self.source), self._stores, strict=True):
            self._run("make", f"--store={store}", work / f"{store.stem}{self._index.suffix}", path)
        self.wire_bytes = self._wire(self._index)

    def _wire(self, index: Path) -> int:
        had = {path.name for path in self._stores[0].glob("*/*")}
        new = (path for path in self._stores[1].glob("*/*") if path.name not in had)
        return sum(path.stat().st_size for path in new) + index.stat().st_size

    def wire(self) -> int:
        """It reads its store from the disk: its (compressed) chunks that the old version has not, and the index."""
        return self.wire_bytes

    def fetch(self) -> None:
        fresh = self.target / "fresh"
        self._run("extract", f"--store={self._stores[1]}", f"--seed={self.got}", self._index, fresh)
        if self.got.is_dir():
            self.got.rename(self.root / "work" / "gone")
        fresh.rename(self.got)
        sync(self.got)

    @staticmethod
    def _run(*words: object) -> None:
        subprocess.run(["casync", *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
