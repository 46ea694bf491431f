"""What a fleet of a thousand asks of Redis: commands and bytes a second, at rest and as a version comes to all of them.

The nodes are all in this process, each with its own roll call over the real edges and a real Valkey; what they do and
how often is what a daemon does: its report each 2 s, who is there (core.rollcall), the lease (core.election.machine),
the log.
Left out: people, pulls and the switch itself. Commands and bytes are what Valkey counted (INFO). Since one process
cannot be a thousand nodes at their pace, a large fleet runs in slow motion, and what is counted is multiplied; how many
of the loops were in time is said.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from report import Bar, Result, arguments, finish, table

from modelsync.config import SecuritySection
from modelsync.core import rollcall
from modelsync.core.election.candidacy import Eligibility, Rival, watch_every_s
from modelsync.core.election.lease import Timing
from modelsync.core.ids import ZERO_ID, FleetName, NodeId
from modelsync.core.rollcall import RollCall
from modelsync.core.status import NodeReport
from modelsync.edges.redis.catalog import RedisCatalog
from modelsync.edges.redis.embedded import EmbeddedRedis
from modelsync.edges.redis.lease import RedisLease
from modelsync.ports import Beats
from modelsync.redis_client import redis_client

REPORT_S, POLL_S = 2.0, 5.0
TIMING = Timing(3.0, 0.25)
MODELS = 20
AT_PACE = 250
"""So many nodes can be one process."""
ARRIVES_S = 15.0
"""A version is pulled, held and switched to at some moment of these: three reports each."""


class Node:
    """One node's loops."""

    def __init__(self, name: str, primary: bool, catalog: RedisCatalog, lease: RedisLease, pace: Pace) -> None:
        self._pace = pace
        self._watch_s = 0.25
        self.name, self.primary = NodeId(name), primary
        self._catalog, self._lease = catalog, lease
        self._roll = RollCall()
        self._changes = self._beats = self._written = 0
        self._beat = ""
        self.nodes: list[NodeReport] = []

    def changed(self) -> None:
        self._changes += 1

    def _fields(self) -> dict[str, str]:
        line = {"active": 3, "wanted": 3, "held": [1, 2, 3], "state": "active", "error": None, "why": "latest"}
        return {
            "id": self.name, "role": "replica", "url": f"http://{self.name}:8461", "rack": "", "zone": "",
            "state": "ok", "epoch": "1", "applied": f"1-{self._changes}", "priority": "0", "eligible": "yes",
            "incarnation": self.name,
            "models": json.dumps({f"model-{number}": line for number in range(MODELS)}),
            "extra": json.dumps({"fencing": "majority", "capacity_bytes": 1 << 40}), "moving": "{}",
        }  # fmt: skip

    async def report(self) -> None:
        self._beats += 1
        whole = self._beats % 30 == 1
        fields = self._fields() if whole or self._written != self._changes else {}
        self._written = self._changes
        after, self._beat = "" if whole else self._beat, f"{self.name}.{self._changes} {self._beats}"
        await self._catalog.report(self.name, fields, self._beat, after=after)

    def meet(self, look: Beats, reports: list[NodeReport]) -> None:
        """Know everybody, without having asked."""
        self._roll.looked(look.names, look.beats, self._pace.now_s())
        self._roll.read(look.names, reports, self._pace.now_s())
        self._think()

    async def look(self) -> float:
        look, now_s = await self._catalog.beats(), self._pace.now_s()
        self._roll.looked(look.names, look.beats, now_s)
        due = self._roll.due(now_s, None if self.primary else rollcall.AT_ONCE)
        self._roll.read(due, await self._catalog.reports(due), self._pace.now_s())
        self._think()
        return rollcall.look_every_s(len(self.nodes), primary=self.primary)

    def _think(self) -> None:
        self.nodes = self._roll.nodes(self._pace.now_s())
        rivals = tuple(Rival(node.id, ZERO_ID, 0, node.eligible) for node in self.nodes)
        self._watch_s = 0.25 if self.primary else watch_every_s(self.name, "", Eligibility(rivals=rivals), TIMING)

    async def watch(self) -> float:
        await self._lease.read()
        return self._watch_s

    async def poll(self) -> float:
        await self._catalog.changes(ZERO_ID)
        return POLL_S

    async def _report(self) -> float:
        await self.report()
        return REPORT_S

    async def run(self) -> None:
        loops = ((self._report, REPORT_S), (self.look, 10.0), (self.watch, 1.2), (self.poll, POLL_S))
        await asyncio.gather(*(self._pace.again(work, spread_s) for work, spread_s in loops))


class Pace:
    """Time of the fleet, that many times slower than ours."""

    def __init__(self, slow: float) -> None:
        self.slow = slow
        self.loops = self.late = 0

    def now_s(self) -> float:
        return time.monotonic() / self.slow

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.slow)

    async def again(self, work: Callable[[], Awaitable[float]], spread_s: float) -> None:
        await self.sleep(random.uniform(0, spread_s))
        due_s = self.now_s()
        while True:
            every_s = await work()
            due_s += every_s
            self.loops += 1
            if due_s < self.now_s():
                self.late, due_s = self.late + 1, self.now_s()
            await self.sleep(due_s - self.now_s())


async def counted(client: Any, pace: Pace, seconds: float) -> dict[str, float]:
    """Commands and megabytes a second that Valkey counts, and its processor's share."""
    before, began_s, pace.loops, pace.late = await client.info(), pace.now_s(), 0, 0
    await pace.sleep(seconds)
    after, took_s = await client.info(), pace.now_s() - began_s

    def gained(key: str) -> float:
        return (after[key] - before[key]) / took_s

    return {
        "commands_per_s": gained("total_commands_processed"),
        "out_mb_per_s": gained("total_net_output_bytes") / 1e6,
        "cpu_share": gained("used_cpu_sys") + gained("used_cpu_user"),
        "in_time": 1 - pace.late / max(1, pace.loops),
    }


async def fleet(url: str, count: int, seconds: float) -> dict[str, dict[str, float]]:
    client = redis_client(url, SecuritySection(), 30.0)
    await client.flushall()
    catalog = RedisCatalog(redis_client(url, SecuritySection(), 30.0), FleetName("bench"))
    lease = RedisLease(redis_client(url, SecuritySection(), 30.0), FleetName("bench"), NodeId("n0"), "")
    pace = Pace(max(1.0, count / AT_PACE))
    nodes = [Node(f"n{number:05}", number == 0, catalog, lease, pace) for number in range(count)]
    for node in nodes:
        await node.report()
    look = await catalog.beats()
    reports = await catalog.reports(look.names)
    for node in nodes:  # known to each other, as after the first minutes
        node.meet(look, reports)
    running = [asyncio.create_task(node.run()) for node in nodes]
    await pace.sleep(3)
    rest = await counted(client, pace, seconds)

    async def arrive(node: Node) -> None:
        await pace.sleep(random.uniform(0, ARRIVES_S - 6))
        for _ in range(3):
            node.changed()
            await node.report()
            await pace.sleep(random.uniform(0.5, 2))

    arriving = [asyncio.create_task(arrive(node)) for node in nodes]
    arrival = await counted(client, pace, ARRIVES_S)
    for task in (*running, *arriving):
        task.cancel()
    await asyncio.gather(*running, *arriving, return_exceptions=True)
    await catalog.close()
    await lease.close()
    await client.aclose()
    return {"at rest": rest, "a version arrives": arrival}


def before(count: int) -> float:
    """Commands a second of the whole fleet when each node read every other's report each 2 s."""
    return count * ((3 + 1 + 2 * count) / REPORT_S + 4 + 4 / POLL_S)


def measure(counts: list[int], seconds: float) -> Result:
    rows, figures, bars = [], {}, []
    with TemporaryDirectory(prefix="modelsync-crowd-") as scratch:
        valkey = EmbeddedRedis(Path(scratch))
        url = valkey.start()
        try:
            for count in counts:
                found = figures[count] = asyncio.run(fleet(url, count, seconds))
                for when, line in found.items():
                    rows.append(
                        (
                            f"{count}, {when}",
                            f"{line['commands_per_s']:,.0f}",
                            f"{line['commands_per_s'] / count:.2f}",
                            f"{line['out_mb_per_s']:.2f}",
                            f"{100 * line['cpu_share']:.0f} %",
                            f"{100 * line['in_time']:.0f} %",
                            f"{before(count):,.0f}",
                        )
                    )
                each = found["at rest"]["commands_per_s"] / count
                bars.append(Bar(f"commands a second and node at rest, of {count}", each, 12, "commands/s"))
        finally:
            valkey.stop()
    table(("nodes", "commands/s", "each", "MB/s out", "Valkey's processor", "in time", "commands/s before"), rows)
    return Result("crowd", bars, {"nodes": figures})


def main() -> int:
    parser = arguments("crowd", __doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=20.0, help="at rest")
    options = parser.parse_args()
    return 0 if finish(measure(options.nodes, options.seconds), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
