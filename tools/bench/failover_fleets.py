"""The fleets whose primaries fall: on network namespaces, on hosts with a real systemd, or plain processes.

Each says where its daemons answer and what applications read, and knows its own way to lose a primary.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the harnesses of the tests, which are no package that is installed

from tests.fleet import lab  # noqa: E402
from tests.namespaces import entered, why_not  # noqa: E402
from tests.netfleet import NetFleet  # noqa: E402

NAMES = ("alpha", "beta", "gamma")


class Falling(Protocol):
    """What a measurement needs of a fleet."""

    urls: dict[str, str]
    live: dict[str, Path]

    def fell(self, name: str) -> float:
        """Lose the primary. Returns CLOCK_MONOTONIC just before."""

    def back(self, name: str) -> None:
        """Let it come back."""


def status(url: str) -> dict[str, Any]:
    """The status document; empty while there is none."""
    try:
        with urllib.request.urlopen(f"{url}/v1/status", timeout=2) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except (OSError, ValueError):
        return {}


def in_step(urls: Sequence[str]) -> bool:
    """Everyone sees everyone, one primary, and every model live everywhere in the version that is wanted."""
    documents = [status(url) for url in urls]
    if not all(documents) or len({(d["primary"], d["epoch"]) for d in documents}) > 1 or not documents[0]["primary"]:
        return False
    return all(_in_step(document, len(urls)) for document in documents)


def _in_step(document: dict[str, Any], hosts: int) -> bool:
    nodes = document["nodes"]
    lines = [node["models"].get(model["name"]) for node in nodes for model in document["models"]]
    return (
        document["redis"] == "ok"
        and [node["state"] for node in nodes] == ["ok"] * hosts
        and sum(node["role"] == "primary" for node in nodes) == 1
        and all(line is not None and line["active"] == line["wanted"] for line in lines)
    )


class Namespaces:
    """Power cuts: the host's link goes first, so that nobody hears of the death of its daemon."""

    def __init__(self, fleet: NetFleet) -> None:
        self._fleet = fleet
        self.urls = {name: daemon.url for name, daemon in fleet.daemons.items()}
        self.live = {name: daemon.live for name, daemon in fleet.daemons.items()}

    def fell(self, name: str) -> float:
        at_s = time.monotonic()
        self._fleet.net.unplug(name)
        self._fleet.daemons[name].kill()
        return at_s

    def back(self, name: str) -> None:
        self._fleet.net.plug(name)
        self._fleet.start(name)


class Hosts:
    """SIGKILL of the daemon beneath a real systemd with the shipped unit, which releases the lease and restarts it."""

    def __init__(self, fleet: lab.Fleet) -> None:
        self._fleet = fleet
        self._pids = {host: self._daemon_of(host) for host in lab.HOSTS}
        addresses = {host: fleet.run("ip", host).stdout.decode().strip() for host in lab.HOSTS}
        self.urls = {host: f"http://{address}:8461" for host, address in addresses.items()}
        roots = {host: Path(f"/proc/{_parent(pid)}/root") for host, pid in self._pids.items()}
        self.live = {host: root / lab.LIVE.lstrip("/") for host, root in roots.items()}

    def fell(self, name: str) -> float:
        pid = self._daemon_of(name)
        at_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return at_s

    def back(self, name: str) -> None:
        """systemd does that."""

    def _daemon_of(self, host: str) -> int:
        """The machine's own number of a host's daemon; hosts of other labs have the same names, but not its network."""
        network = os.stat(f"/run/netns/fleetlab-{self._fleet.environment['FLEETLAB_NAME']}-{host}").st_ino
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
                ours = any(word.endswith(b"/modelsyncd") for word in words) and b"--release" not in words
                if ours and os.stat(entry / "ns/net").st_ino == network:
                    return int(entry.name)
        raise SystemExit(f"no daemon runs on {host}")


def _parent(pid: int) -> int:
    """Its systemd, whose root outlives the daemon."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


@contextlib.contextmanager
def namespaces(scratch: Path) -> Iterator[Namespaces]:
    if lacking := why_not():
        raise SystemExit(f"tools/bench/failover: {lacking}")
    with NetFleet(scratch, *NAMES) as fleet, told_on_failure(lambda: {n: d.tail() for n, d in fleet.daemons.items()}):
        yield Namespaces(fleet)


@contextlib.contextmanager
def told_on_failure(logs: Callable[[], dict[str, str]]) -> Iterator[None]:
    """What the daemons said last, where a measurement ends in a fault."""
    try:
        yield
    except BaseException:
        for name, text in logs().items():
            print(f"--- the end of {name}'s log\n{text}", file=sys.stderr)
        raise


@contextlib.contextmanager
def hosts(scratch: Path) -> Iterator[Hosts]:
    try:
        with lab.fleet(scratch) as fleet:
            words = fleet.command("net", "sleep", "infinity")
            inside = subprocess.Popen(words, env=fleet.environment, stdout=subprocess.DEVNULL)
            try:
                time.sleep(0.5)  # until it has entered the network
                journals = told_on_failure(lambda: {host: fleet.journal(host)[-6000:] for host in lab.HOSTS})
                with journals, entered(f"/proc/{inside.pid}/ns/net"):
                    yield Hosts(fleet)
            finally:
                inside.kill()
                inside.wait()
    except lab.CannotMakeHosts as why:
        raise SystemExit(f"tools/bench/failover: {why}") from why
