"""What is tested when nothing is named: three daemons, a server of models beside a replica, swaps, a killed primary."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from models import Variants

from fleet import NAME, Fleet, until
from modelsync import publish

HERE = Path(__file__).resolve().parent
RESTART_S = 6.0
"""How long a killed primary stays away: longer than its lease."""


@dataclass
class Swap:
    """One publish under the load, or the attempt."""

    at: float
    model: int
    variant: int
    took_s: float
    version: int | None = None
    error: str | None = None


class World:
    """Everything that runs beside the load. A context; nothing is left at its end."""

    def __init__(self, variants: list[Variants], budget_bytes: int, seed: int) -> None:
        self.variants = variants
        self.budget_bytes = budget_bytes
        self.swaps: list[Swap] = []
        self.events: list[tuple[float, str]] = []
        """(unix seconds, what happened)."""
        self._seed = seed
        self._fleet = Fleet("alpha", "beta", "gamma", sections="settle_s = 0.3\n")
        self._over = threading.Event()
        self._server: subprocess.Popen[bytes] | None = None
        self._swapper: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.url = ""

    @property
    def live(self) -> Path:
        return self._fleet.replica.live

    def __enter__(self) -> World:
        self._fleet.__enter__()
        try:
            self._publish_all()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        for process in (self._swapper, self._server):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(30)
        self._fleet.__exit__(*raised)

    def _publish_all(self) -> None:
        for each in self.variants:
            publish(each.question.name, each.paths[0], redis=self._fleet.redis_url, fleet=NAME, wait=0)
        until(lambda: all(self._fleet.replica.current(v.question.name) for v in self.variants), "every model", 60)

    def serve(self, *, cold: bool) -> str:
        """Start modelsync-serve beside the first replica; its URL.

        Args:
            cold: with nothing loaded: the first request then waits for the import of whole libraries, some seconds.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{address}"
        command = [sys.executable, "-m", "modelsync.serve", "--live", str(self.live), "--listen", address]
        command += ["--trust-pickle", "all", "--budget-bytes", str(self.budget_bytes)]
        command += [] if cold else ["--preload", self.variants[0].question.name]
        log = self._fleet.root / "serve.log"
        with log.open("wb") as out:
            self._server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            until(self._ready, "modelsync-serve to be ready", 30)
        except SystemExit:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
        return self.url

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    # --- swaps --------------------------------------------------------------------------------------------------------

    def start_swaps(self, every_s: float) -> None:
        """Publish a new version of some model every so many seconds, in another process."""
        command = [sys.executable, str(HERE / "swap.py"), "--redis", self._fleet.redis_url, "--fleet", NAME]
        command += ["--every", str(every_s), "--seed", str(self._seed)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ, start_new_session=True
        )
        assert process.stdin is not None
        json.dump([[each.question.name, *map(str, each.paths)] for each in self.variants], process.stdin)
        process.stdin.close()
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the process that publishes did not start")
        self._swapper = process
        self._reader = threading.Thread(target=self._read_swaps, args=(process,), daemon=True)
        self._reader.start()

    def _read_swaps(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.swaps.append(Swap(**json.loads(line)))

    def end(self) -> None:
        """The load has ended: nothing more is swapped or started. Blocks until every swap is known."""
        self._over.set()
        if self._swapper is not None and self._reader is not None:
            self._swapper.terminate()
            self._swapper.wait(30)
            self._reader.join()

    # --- the primary --------------------------------------------------------------------------------------------------

    def kill_primary(self) -> None:
        """SIGKILL it, see who takes over, and start it again later; events say when. Blocks until it is back."""
        killed = self._fleet.primary
        os.kill(killed.pid, signal.SIGKILL)
        killed.process.wait(10)
        started_s = time.monotonic()
        self.events.append((time.time(), f"{killed.name} killed"))
        others = [daemon for daemon in self._fleet.daemons if daemon is not killed]
        until(lambda: others[0].status().get("primary") in {daemon.name for daemon in others}, "a promotion", 60)
        self.events.append((time.time(), f"{others[0].status()['primary']} is primary"))
        if self._over.wait(max(0.0, RESTART_S - (time.monotonic() - started_s))):
            return  # the run has ended: nobody would see it come back
        with killed.log.open("ab") as log:
            command = [sys.executable, "-m", "modelsync.main", "--config", str(killed.root / "modelsync.toml")]
            killed.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.events.append((time.time(), f"{killed.name} back"))

    def expected(self) -> dict[tuple[int, int], float]:
        """What each version of each model must answer.

        A publish that failed for its caller may have been done all the same (its answer was lost with the primary): the
        number after the newest one known then stands for what was attempted.
        """
        known = {(number, 1): each.answers[0] for number, each in enumerate(self.variants)}
        heads = dict.fromkeys(range(len(self.variants)), 1)
        for swap in self.swaps:
            answer = self.variants[swap.model].answers[swap.variant]
            if swap.version is None:
                known.setdefault((swap.model, heads[swap.model] + 1), answer)
            else:
                known[swap.model, swap.version] = answer
                heads[swap.model] = swap.version
        return known
