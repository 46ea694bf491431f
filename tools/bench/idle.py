"""What a fleet costs while nothing happens: processor time of each daemon, and Redis commands a second of each node.

Three daemons follow one model of which they run the same version. Commands are counted by the server: in all, with
those that scripts run inside, and by client connection; whose connection it is, the kernel's table of sockets says.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from report import Bar, Result, arguments, finish, table

from fleet import Daemon, Fleet, until

NODES = ("alpha", "beta", "gamma")
MODEL = "idle"
SETTLE_S = 5.0


def ports_of(daemon: Daemon) -> set[int]:
    """The local ports of a process's TCP connections (proc(5): net/tcp, by the inodes of its descriptors)."""
    inodes = set()
    for descriptor in os.scandir(f"/proc/{daemon.pid}/fd"):
        target = os.readlink(descriptor.path)
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    lines = [line.split() for line in Path(f"/proc/{daemon.pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[9] in inodes}


def commands_of(client: redis.Redis, daemon: Daemon) -> int:
    """Commands that this daemon's connections have sent so far."""
    ports = ports_of(daemon)
    connections: list[dict[str, Any]] = client.client_list()
    return sum(int(line["tot-cmds"]) for line in connections if int(line["addr"].rpartition(":")[2]) in ports)


def by_command(client: redis.Redis) -> dict[str, int]:
    stats: dict[str, dict[str, int]] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): line["calls"] for name, line in stats.items()}


def measure(seconds: float, out: Path) -> Result:
    with Fleet(*NODES, root=out / "work") as fleet:
        ready = fleet.root / f"{MODEL}.bin"
        ready.write_bytes(os.urandom(200 << 10))
        ready.rename(fleet.primary.models / ready.name)
        until(lambda: all(daemon.current(MODEL) for daemon in fleet.daemons), "the model on every node")
        time.sleep(SETTLE_S)
        client = redis.Redis(port=urlsplit(fleet.redis_url).port)
        before = by_command(client)
        sent = [commands_of(client, daemon) for daemon in fleet.daemons]
        cpu_s = [daemon.cpu_s() for daemon in fleet.daemons]
        started_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - started_s
        shares = [100 * (daemon.cpu_s() - was) / took_s for daemon, was in zip(fleet.daemons, cpu_s, strict=True)]
        rates = [(commands_of(client, daemon) - was) / took_s for daemon, was in zip(fleet.daemons, sent, strict=True)]
        after = by_command(client)
        resident = [daemon.memory_bytes("VmRSS") / 2**20 for daemon in fleet.daemons]
        client.close()
    ours = ("info", "client|list")
    calls = {name: (after[name] - before.get(name, 0)) / took_s for name in after if name not in ours}
    return _judged(took_s, shares, rates, resident, {name: rate for name, rate in calls.items() if rate > 0})


def _judged(
    took_s: float, shares: list[float], rates: list[float], resident: list[float], calls: dict[str, float]
) -> Result:
    print(f"three daemons, one model, nothing to do, {took_s:.0f} s\n")
    nodes = zip(NODES, shares, rates, resident, strict=True)
    rows = [(name, f"{share:.2f}", f"{rate:.1f}", f"{mib:.0f}") for name, share, rate, mib in nodes]
    table(("", "% of a core", "commands/s", "resident MiB"), rows)
    print()
    ordered = sorted(calls.items(), key=lambda item: -item[1])
    table(("command, whole fleet", "a second"), [(name, f"{rate:.2f}") for name, rate in ordered])
    mean = sum(calls.values()) / len(NODES)
    bars = [
        Bar("processor of the busiest daemon while idle", max(shares), 1.0, "% of a core"),
        Bar("Redis commands of the busiest node", max(rates), 20, "a second"),
        Bar("Redis commands a node, those inside scripts counted too", mean, 20, "a second"),
        Bar("resident while idle, the largest", max(resident), 80, "MiB"),
    ]
    figures = {"seconds": took_s, "cpu_percent": shares, "commands_per_s": rates, "calls_per_s": calls}
    return Result("idle", bars, {**figures, "resident_mib": resident})


def main() -> int:
    parser = arguments("idle", __doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    return 0 if finish(measure(options.seconds, options.out), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
