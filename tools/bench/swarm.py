"""One to six replicas that pull one version at once over links of the same rate: egress, and time to the last.

Each daemon and Redis is in a network namespace of its own, on a bridge; a token bucket limits both directions of each
host's link (as fleetlab's `rate` does). What is counted as egress are the bytes that the kernel sent over the primary's
link, everything included. The clock starts when the version has its number and ends when `current` is switched on the
last replica: hearing of it, the pull, every digest, all fsyncs and the switch count. Beside each run stands what the
simulation (tools/simulate swarm) says of the same fleet. Needs root, iproute2 and nftables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from chart import bars  # noqa: E402  the path is set above
from payload import MIB, size  # noqa: E402
from report import Bar, Result, arguments, finish, table  # noqa: E402
from tests import namespaces  # noqa: E402
from tests.integration.daemons import until  # noqa: E402
from tests.netfleet import NetFleet  # noqa: E402
from tests.sim.swarm_fleets import small  # noqa: E402

MODEL = "large"
TIMEOUT_S = 600.0


class RatedFleet(NetFleet):
    """A fleet whose links, once it is in step, pass so many bits a second in each direction."""

    def limit(self, mbit: int) -> None:
        burst = max(16384, mbit * 1_000_000 // 8 // 100)
        for name in self.daemons:
            for space, device in ((self.net.space(), f"to-{name}"), (self.net.space(name), "eth0")):
                words = f"qdisc replace dev {device} root tbf rate {mbit}mbit burst {burst} latency 100ms"
                subprocess.run(["tc", "-n", space, *words.split()], check=True)

    def sent_bytes(self, name: str) -> int:
        """What the kernel has sent over a host's link."""
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        words = ["ip", "netns", "exec", self.net.space(name), "cat", path]
        return int(subprocess.run(words, check=True, capture_output=True).stdout)


def pull(replicas: int, size_bytes: int, mbit: int, scratch: Path) -> tuple[float, float]:
    """Seconds to the last replica, and copies of the version that left the primary."""
    names = [f"n{number}" for number in range(replicas + 1)]
    with RatedFleet(scratch, *names) as fleet:
        primary, others = fleet.daemons[names[0]], [fleet.daemons[name] for name in names[1:]]
        fleet.limit(mbit)
        before = fleet.sent_bytes(names[0])
        beside = primary.root / "beside"
        with beside.open("wb") as file:
            for _ in range(size_bytes // MIB):
                file.write(os.urandom(MIB))
        beside.rename(primary.models / f"{MODEL}.bin")
        until(lambda: primary.tree(MODEL), "the primary to have it", TIMEOUT_S)
        started_s = time.monotonic()
        until(lambda: all(other.tree(MODEL) for other in others), "the last replica", TIMEOUT_S)
        took_s = time.monotonic() - started_s
        return took_s, (fleet.sent_bytes(names[0]) - before) / size_bytes


def measure(size_bytes: int, runs: int, mbit: int, counts: list[int], out: Path) -> Result:
    took: dict[int, list[float]] = {count: [] for count in counts}
    egress: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(runs):
        for count in counts:
            with TemporaryDirectory(prefix="modelsync-swarm-") as scratch:
                seconds, copies = pull(count, size_bytes, mbit, Path(scratch))
            took[count].append(seconds)
            egress[count].append(copies)
            print(f"{count} replicas: {seconds:.2f} s, {copies:.3f} copies", flush=True)
    return _judged(size_bytes, mbit, took, egress, out)


def _judged(
    size_bytes: int, mbit: int, took: dict[int, list[float]], egress: dict[int, list[float]], out: Path
) -> Result:
    print(
        f"\n{size_bytes / MIB:.0f} MiB at {mbit} Mbit/s a link; a link alone needs {size_bytes * 8e-6 / mbit:.1f} s\n"
    )
    rows, worlds = [], {count: small(count, size_bytes, mbit * 125_000) for count in took}
    for count, seconds in took.items():
        middle, model = median(seconds), worlds[count].last_s
        rows.append(
            (
                f"{count}",
                f"{middle:.2f}",
                f"{median(egress[count]):.3f}",
                f"{model:.2f}",
                f"{worlds[count].egress_copies:.3f}",
                f"{100 * (model / middle - 1):+.0f} %",
            )
        )
    table(("replicas", "last s", "copies sent", "model: last s", "copies", "error of the model"), rows)
    times = {f"{count}": median(seconds) for count, seconds in took.items()}
    bars(out / "swarm.svg", f"seconds to the last of so many replicas, {mbit} Mbit/s links", times)
    verdicts = [Bar("egress of the primary, worst run", max(max(each) for each in egress.values()), 1.5, "copies")]
    if 1 in took and 3 in took:
        verdicts.append(Bar("time to the last, 3 replicas against 1", median(took[3]) / median(took[1]), 1.6, "times"))
    figures = {"size_bytes": size_bytes, "mbit": mbit, "last_s": took, "copies": egress}
    figures["model_last_s"] = {count: world.last_s for count, world in worlds.items()}
    return Result("swarm", verdicts, figures)


def main() -> int:
    parser = arguments("swarm", __doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=size("256MiB"), metavar="BYTES", help="such as 256MiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mbit", type=int, default=200, help="of each link, in each direction")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 3, 6])
    options = parser.parse_args()
    if why := namespaces.why_not():
        print(f"skipped: {why}")
        return 0
    result = measure(options.size, options.runs, options.mbit, options.replicas, options.out)
    return 0 if finish(result, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
