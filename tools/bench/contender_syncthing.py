"""syncthing as a contender: two of it, connected directly; nothing of theirs asks the outside anything.

The receiver is stopped (SIGSTOP) while the sender scans what it will send, as ours is; the clock runs from SIGCONT
until the last file has its name. It verifies each block by SHA-256 and fsyncs each file by itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from contenders import Directory

from fleet import until

_FOLDER = (
    '<folder id="m" label="m" path="{path}" type="{kind}" rescanIntervalS="0" fsWatcherEnabled="false" '
    'ignorePerms="true"><device id="{me}"/><device id="{other}"/><minDiskFree unit="%">0</minDiskFree></folder>'
)
_DEVICE = '<device id="{id}" compression="metadata"><address>{address}</address></device>'
_QUIET = (
    "<options><listenAddress>tcp://127.0.0.1:{port}</listenAddress><globalAnnounceEnabled>false</globalAnnounceEnabled>"
    "<localAnnounceEnabled>false</localAnnounceEnabled><relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled>"
    "<urAccepted>-1</urAccepted><crashReportingEnabled>false</crashReportingEnabled><startBrowser>false</startBrowser>"
    "<reconnectionIntervalS>1</reconnectionIntervalS><autoUpgradeIntervalH>0</autoUpgradeIntervalH></options>"
)
KEY = "bench"


class _End:
    """One syncthing."""

    def __init__(self, home: Path, number: int) -> None:
        self.home, self.port, self.gui = home, 22000 + number, 8384 + number
        subprocess.run(["syncthing", "generate", "--home", home, "--no-default-folder"], check=True, **_SILENT)
        text = (home / "config.xml").read_text()
        self.id = re.search(r'<device id="([A-Z0-9-]+)"', text)[1]  # type: ignore[index]

    def configure(self, other: _End, path: Path, kind: str) -> None:
        (path / ".stfolder").mkdir(exist_ok=True)
        devices = [_DEVICE.format(id=end.id, address=f"tcp://127.0.0.1:{end.port}") for end in (self, other)]
        gui = f'<gui enabled="true"><address>127.0.0.1:{self.gui}</address><apikey>{KEY}</apikey></gui>'
        folder = _FOLDER.format(path=path, kind=kind, me=self.id, other=other.id)
        options = _QUIET.format(port=self.port)
        text = f'<configuration version="36">{folder}{"".join(devices)}{gui}{options}</configuration>'
        (self.home / "config.xml").write_text(text)

    def start(self) -> None:
        command = ["syncthing", "serve", "--home", self.home, "--no-browser", "--no-restart", "--no-upgrade"]
        # As if a monitor had started it: else this process is only a monitor, and stopping it stops nothing.
        environment = os.environ | {"STMONITORED": "yes"}
        self.process = subprocess.Popen([*map(str, command)], env=environment, **_SILENT)
        until(lambda: self.get("/rest/system/ping"), "syncthing", 60)

    def get(self, path: str, method: str = "GET") -> dict[str, object]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.gui}{path}", headers={"X-API-Key": KEY}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.loads(response.read() or b"{}") or {"done": True}
        except OSError:
            return {}


class Syncthing(Directory):
    needs = ("syncthing",)
    verified = "SHA-256 by block"
    durable = "by itself"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._sender, self._receiver = (_End(root / name, number) for number, name in enumerate(("a", "b")))
        self._sender.configure(self._receiver, self.served, "sendonly")
        self._receiver.configure(self._sender, self.target, "receiveonly")
        for end in (self._sender, self._receiver):
            end.start()
        until(self._connected, "the two to be connected", 60)

    def _connected(self) -> bool:
        connections = self._receiver.get("/rest/system/connections").get("connections")
        return isinstance(connections, dict) and any(each.get("connected") for each in connections.values())

    def prepare(self, source: Path, old: Path | None) -> None:
        if old is not None:  # both ends know the old version, as after an earlier transfer
            super().prepare(old, old)
            (self.served / old.name).rename(self.served / source.name)
            self.got.rename(self.target / source.name)
            self._scan(self._receiver)
            self._scan(self._sender)
            self._synced()
        os.kill(self._receiver.process.pid, signal.SIGSTOP)
        super().prepare(source, None)
        self._count = sum(1 for path in self.source.rglob("*") if path.is_file()) or 1
        self._size_bytes = sum(p.stat().st_size for p in [self.source, *self.source.rglob("*")] if p.is_file())
        self._was = self.got.stat().st_ino if self.got.exists() else 0
        self._scan(self._sender)

    def _scan(self, end: _End) -> None:
        end.get("/rest/db/scan?folder=m", "POST")

    def _synced(self) -> None:
        until(lambda: self._receiver.get("/rest/db/status?folder=m").get("needBytes") == 0, "the old version", 120)

    def fetch(self) -> None:
        os.kill(self._receiver.process.pid, signal.SIGCONT)
        until(self._has_all, "syncthing to have it", 300)

    def _has_all(self) -> bool:
        if self.source.is_file():
            return self.got.exists() and self.got.stat().st_ino != self._was
        found = [p for p in self.got.rglob("*") if p.is_file() and not p.name.startswith(".syncthing.")]
        time.sleep(0.2)  # a look at thousands of names is work; the clock may be late by this
        return len(found) == self._count

    def clear(self) -> int:
        size_bytes = super().clear()
        shutil.rmtree(self.source) if self.source.is_dir() else self.source.unlink()
        self._scan(self._sender)
        self._scan(self._receiver)
        self._synced()
        return size_bytes

    def stop(self) -> None:
        for end in (self._sender, self._receiver):
            end.process.terminate()
            end.process.wait(30)


_SILENT: dict[str, int] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
