"""From a command or an edit to `current` switched on every host, and how close together a rollout switches six.

Real daemons over a real Valkey on loopback, all fsyncs on, every version's bytes held by all before the clock starts.
A command counts from just before its PUBLISH to the last host's rename, as one witness hears them by inotify. A flip's
spread is taken from the daemons' own CLOCK_BOOTTIME just after the rename, since six renames within milliseconds would
wake one witness once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from arrivals import Witness
from report import Bar, Result, arguments, finish, percentile, table

from fleet import NAME, Daemon, Fleet, until

MODEL = "fraud"
HOSTS = ("a", "b", "c", "d", "e", "f")
TIMEOUT_S = 15.0
PAUSE_S = 0.1
"""Between trials: what follows a switch (reports, fsyncs) is no part of the next."""


def prepared(fleet: Fleet) -> None:
    """Two versions, held by every host."""
    for number in (1, 2):
        ready = fleet.root / "ready"
        ready.write_bytes(os.urandom(200 << 10))
        ready.rename(fleet.primary.models / f"{MODEL}.joblib")
        until(lambda number=number: all(held(daemon, number) for daemon in fleet.daemons), f"version {number}")


def held(daemon: Daemon, number: int) -> bool:
    node: dict[str, Any] = next((n for n in daemon.status().get("nodes", []) if n["id"] == daemon.name), {"models": {}})
    line = node["models"].get(MODEL, {})
    return line.get("active") == number and {1, number} <= set(line.get("held", ()))


def say(fleet: Fleet, command: str) -> None:
    with redis.Redis.from_url(fleet.redis_url) as client:
        client.publish(f"modelsync:{{{NAME}}}:control", command)


def lines(daemon: Daemon, event: str) -> Iterator[dict[str, Any]]:
    """A daemon's log entries of one event."""
    for text in daemon.log.read_text().splitlines():
        if f'"{event}"' in text:
            entry: dict[str, Any] = json.loads(text)
            if entry.get("event") == event:
                yield entry


def timed(fleet: Fleet, witness: Witness, command: str, client: redis.Redis) -> float:
    """Milliseconds from a command to the last host's switch."""
    witness.forget()
    began_ns = time.monotonic_ns()
    client.publish(f"modelsync:{{{NAME}}}:control", command)
    last_ns = witness.heard_of_all_ns(len(fleet.daemons), "current", TIMEOUT_S)
    time.sleep(PAUSE_S)
    return (last_ns - began_ns) / 1e6


def commands(trials: int, root: Path) -> dict[str, list[float]]:
    """``update`` and ``rollback`` by turns, and the pulls that they caused."""
    times_ms: dict[str, list[float]] = {"update": [], "rollback": []}
    with Fleet(*HOSTS[:3], root=root) as fleet:
        prepared(fleet)
        pulls = sum(len(list(lines(daemon, "version.pulled"))) for daemon in fleet.daemons)
        directories = [daemon.live / MODEL for daemon in fleet.daemons]
        with Witness(*directories) as witness, redis.Redis.from_url(fleet.redis_url) as client:
            for number in range(-2, trials):
                for command in ("rollback", "update"):
                    took_ms = timed(fleet, witness, f"{command} {MODEL}", client)
                    if number >= 0:
                        times_ms[command].append(took_ms)
        pulled = sum(len(list(lines(daemon, "version.pulled"))) for daemon in fleet.daemons) - pulls
        times_ms["pulls"] = [float(pulled)]
    return times_ms


def edits(trials: int, root: Path) -> list[float]:
    """A pin written into one host's configuration by three kinds of editors in turn, until it runs there."""
    times_ms = []
    with Fleet(*HOSTS[:2], root=root) as fleet:
        prepared(fleet)
        path = fleet.replica.root / "modelsync.toml"
        text = path.read_text()
        with Witness(fleet.replica.live / MODEL) as witness:
            for number in range(trials):
                target = 1 if number % 2 == 0 else 2
                witness.forget()
                began_ns = time.monotonic_ns()
                EDITORS[number % len(EDITORS)](path, f"{text}\n[pins]\n{MODEL} = {target}\n")
                times_ms.append((witness.heard_ns(0, "current", TIMEOUT_S) - began_ns) / 1e6)
                time.sleep(0.3 + 0.013 * (number % 23))  # so that it does not fall into step with the look at the file
    return times_ms


def in_place(path: Path, text: str) -> None:
    with path.open("r+") as file:
        file.write(text)
        file.truncate()


def by_rename(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def truncated(path: Path, text: str) -> None:
    """As a slow editor does: empty, then in two parts."""
    with path.open("w") as file:
        file.flush()
        time.sleep(0.02)
        file.write(text[: len(text) // 2])
        file.flush()
        time.sleep(0.02)
        file.write(text[len(text) // 2 :])


EDITORS: tuple[Callable[[Path, str], None], ...] = (in_place, by_rename, truncated)


def together(flips: int, root: Path) -> tuple[list[float], int, list[float]]:
    """Spreads in ms over six hosts; flips of a host that had not staged the rollout; commands to last switch, in ms."""
    with Fleet(*HOSTS, root=root) as fleet:
        prepared(fleet)
        took_ms = []
        for number in range(flips):
            target = 1 if number % 2 == 0 else 2
            began_s = time.monotonic()
            say(fleet, f"rollout {MODEL} {target} together")
            digest = wanted_digest(fleet, target)
            until(lambda digest=digest: all(d.current(MODEL).endswith(digest) for d in fleet.daemons), "the switch")
            took_ms.append(1000 * (time.monotonic() - began_s))
            time.sleep(2 * PAUSE_S)
        return *judged(fleet), took_ms


def wanted_digest(fleet: Fleet, number: int) -> str:
    with redis.Redis.from_url(fleet.redis_url) as client:
        text = client.hget(f"modelsync:{{{NAME}}}:model:{MODEL}", f"v:{number}")
    return str(json.loads(text)["digest"]).removeprefix("b3:")  # type: ignore[arg-type]  # redis-py: awaitable or not


def judged(fleet: Fleet) -> tuple[list[float], int]:
    """From the daemons' logs: how far apart each rollout's switches were, and which came before their staging."""
    flipped: dict[str, dict[str, float]] = {}
    staged: dict[str, dict[str, float]] = {}
    for daemon in fleet.daemons:
        for entry in lines(daemon, "version.activated"):
            if "rollout" in entry:
                flipped.setdefault(entry["rollout"], {})[daemon.name] = entry["flipped_s"]
        for entry in lines(daemon, "rollout.staged"):
            staged.setdefault(entry["rollout"], {})[daemon.name] = entry["staged_s"]
    spreads = [1000 * (max(at.values()) - min(at.values())) for at in flipped.values() if len(at) == len(HOSTS)]
    early = sum(
        any(name not in staged.get(rollout, {}) or staged[rollout][name] > min(at.values()) for name in HOSTS)
        for rollout, at in flipped.items()
    )
    late = sum(len(at) != len(HOSTS) for at in flipped.values())
    if late:
        print(f"{late} of {len(flipped)} signals were not heard by every host; those followed by the catalog")
    return spreads, early


def measure(trials: int, flips: int, out: Path) -> Result:
    times_ms = commands(trials, out / "work")
    edits_ms = edits(trials, out / "work")
    spreads_ms, early, took_ms = together(flips, out / "work")
    rows = [
        ("command to `current` on 3 hosts", *shares(times_ms["update"])),
        ("rollback to a held version, 3 hosts", *shares(times_ms["rollback"])),
        ("config edit to effect", *shares(edits_ms)),
        ("together, 6 hosts: first to last switch", *shares(spreads_ms)),
        ("together, 6 hosts: command to last switch", *shares(took_ms)),
    ]
    table(("", "p50 ms", "p90 ms", "p99 ms", "max ms"), rows)
    bars = [
        Bar("redis-cli command to `current` on all of 3 hosts, p99", percentile(times_ms["update"], 0.99), 100, "ms"),
        Bar("rollback to a held version on 3 hosts, p99", percentile(times_ms["rollback"], 0.99), 100, "ms"),
        Bar("transfers that rollbacks caused", times_ms["pulls"][0], 0, "pulls"),
        Bar("config edit to effect, p99", percentile(edits_ms, 0.99), 1000, "ms"),
        Bar(f"together over 6 hosts, spread, p99 of {len(spreads_ms)}", percentile(spreads_ms, 0.99), 20, "ms"),
        Bar("flips with a host that had not verified", float(early), 0, "flips"),
    ]
    figures = {"times_ms": times_ms, "edits_ms": edits_ms, "spreads_ms": spreads_ms, "together_ms": took_ms}
    return Result("wishes", bars, figures)


def shares(values: list[float]) -> list[str]:
    return [f"{percentile(values, share):.1f}" for share in (0.5, 0.9, 0.99, 1.0)]


def main() -> int:
    parser = arguments("wishes", __doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--flips", type=int, default=100)
    options = parser.parse_args()
    return 0 if finish(measure(options.trials, options.flips, options.out), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
