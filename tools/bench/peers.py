"""modelsync beside what people would otherwise use: the same data in one run, in turns, verified and durable.

Workloads: `fresh`, a file that the receiver has nothing of; `small`, 5,000 files; `changed`, 1 % of the blocks of 1 MiB
of a file whose old version is there; `inserted`, 64 bytes near its start; `memory`, a large file; `crowd`, 64 models
at once, and 64 receivers of one server: what is resident in both daemons meanwhile.

Each contender's both ends live in a network namespace and a cgroup of their own (``host``): the bytes on the wire and
the processor time are the kernel's. Memory is warm (``warm``), what lies at both ends is in the page cache
(``bring_in``), and the disk has been told to finish (sync) before each clock starts. Medians; ratios are pair by pair.
`--add` goes on from what an earlier call has kept, so that a long comparison can be made of short runs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import contenders
import sequences
from contender_ours import Ours
from contender_syncthing import Syncthing
from host import Host
from payload import MIB, bytes_below, size, write_random, write_tree
from peers_crowd import crowd
from peers_report import OURS, judged, keep
from report import Result, arguments, finish
from warm import warm

QUIET_S = 2.0
"""After a sync: what was removed is discarded by the disk, and free memory comes to rest."""
FLOOR, RSYNC, CHECKED = "cp and sync", "rsync", "rsync, then SHA-256"
CONTENDERS: dict[str, type] = {
    FLOOR: contenders.Copy,
    OURS: Ours,
    RSYNC: contenders.Rsync,
    CHECKED: contenders.CheckedRsync,
    "nginx, curl, SHA-256": contenders.Curl,
    "nginx, aria2c": contenders.Aria2c,
    "nginx, rclone, SHA-256": contenders.Rclone,
    "syncthing": Syncthing,
    "casync": contenders.Casync,
}
WORKLOADS = {
    "fresh": [name for name in CONTENDERS if name != "casync"],
    "small": [name for name, kind in CONTENDERS.items() if kind.trees],
    "changed": [OURS, RSYNC, "syncthing", "casync"],
    "inserted": [OURS, RSYNC, "syncthing", "casync"],
}


def present(names: list[str]) -> list[str]:
    """Those whose programs are installed; what is missing is said once."""
    found = []
    for name in names:
        missing = [program for program in CONTENDERS[name].needs if shutil.which(program) is None]
        if missing:
            packages = " ".join(contenders.PACKAGES[program] for program in missing)
            print(f"skipped: {name}: not installed: {', '.join(missing)} (apt-get install {packages})", flush=True)
        else:
            found.append(name)
    return found


def made(workload: str, root: Path, size_bytes: int) -> tuple[Path, Path | None]:
    """What is moved, and the old version of it where there is one."""
    root.mkdir(exist_ok=True)
    new = root / "large.bin"
    if workload == "small":
        write_tree(root / "small", 5000, 150 * MIB)
        return root / "small", None
    if workload == "fresh":
        write_random(new, size_bytes)
        return new, None
    edit = sequences.changed_blocks if workload == "changed" else sequences.inserted
    old = root / "old.bin"
    write_random(old, size_bytes)
    edit(old, new)
    return new, old


def turns(workload: str, names: list[str], size_bytes: int, runs: int, root: Path) -> list[dict[str, object]]:
    source, old = made(workload, root / "source", size_bytes)
    moved = bytes_below(source)
    hosts: dict[str, Host] = {}
    found: list[dict[str, object]] = []
    try:
        for name in names:
            make: Callable[[], object] = lambda name=name: CONTENDERS[name](root / name.replace(" ", "-"))  # noqa: E731
            hosts[name] = Host(name, make)  # type: ignore[arg-type]
        for run in range(runs):
            for name, host in hosts.items():
                place = root / name.replace(" ", "-")
                found.append(turn(workload, name, host, source, old, moved, place) | {"run": run})
    finally:
        for host in hosts.values():
            host.stop()
    return found


def bring_in(*roots: Path) -> None:
    """Read what lies in a contender's directory twice: it stays in the page cache then.

    What a contender prepares may push the old version out again, ours above all, whose fleet keeps four copies: then
    one would read from the disk what another finds in memory.
    """
    seen: set[int] = set()
    for path in (path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))):
        if path.is_file() and not path.is_symlink() and path.stat().st_ino not in seen:
            seen.add(path.stat().st_ino)
            for _ in range(2):
                with path.open("rb", buffering=0) as file:
                    while file.read(MIB):
                        pass


def turn(
    workload: str, name: str, host: Host, source: Path, old: Path | None, moved: int, place: Path
) -> dict[str, object]:
    host.prepare(source, old)
    os.sync()
    bring_in(source, place)
    time.sleep(QUIET_S)
    with warm(moved):
        took_s, wire, cpu_s = host.fetch()
    row: dict[str, object] = {
        "workload": workload, "contender": name, "size_bytes": moved, "took_s": took_s, "wire_bytes": wire,
        "cpu_s": cpu_s, "verified": CONTENDERS[name].verified, "durable": CONTENDERS[name].durable,
    }  # fmt: skip
    if name == "casync":
        row["wire_bytes"] = host.ask("wire")
    if name == OURS:
        row["peaks_bytes"] = host.ask("peaks")
    got = host.clear()
    if got != moved:
        raise SystemExit(f"{name} left {got} bytes of {moved}")
    print(f"{workload:9} {name:24} {took_s:7.2f} s  {cpu_s:6.2f} cpu s  {wire / moved:7.3f} on the wire", flush=True)
    return row


def measure(
    workloads: list[str],
    size_bytes: int,
    runs: int,
    out: Path,
    *,
    only: list[str],
    memory_bytes: int = 0,
    add: bool = False,
) -> Result:
    """Run the workloads, keep every run, the table and the chart in ``out``; the verdicts of all that is kept."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "peers-runs.json"
    rows = json.loads(kept.read_text()) if add and kept.exists() else []
    for workload in workloads:
        with tempfile.TemporaryDirectory(prefix="modelsync-peers-", dir=out) as name:
            if workload == "crowd":
                rows += crowd(Path(name))
            elif workload == "memory":
                rows += _large(memory_bytes, Path(name))
            else:
                names = [each for each in WORKLOADS[workload] if not only or each in [OURS, *only]]
                rows += turns(workload, present(names), size_bytes, runs, Path(name))
        kept.write_text(json.dumps(rows, indent=1) + "\n")
    keep(rows, out)
    return judged(rows)


def main() -> int:
    parser = arguments("peers", __doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=size("2GiB"), metavar="BYTES", help="of a large file")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workload", action="append", choices=[*WORKLOADS, "memory", "crowd"], default=[])
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), default=[], help="beside modelsync")
    parser.add_argument("--add", action="store_true", help="to what an earlier call has kept")
    parser.add_argument("--memory-size", type=size, default=size("8GiB"), metavar="BYTES", help="of `memory`")
    options = parser.parse_args()
    result = measure(
        options.workload or [*WORKLOADS, "memory", "crowd"],
        options.size,
        options.runs,
        options.out,
        only=options.only,
        memory_bytes=options.memory_size,
        add=options.add,
    )
    return 0 if finish(result, options.out) else 1


def _large(size_bytes: int, root: Path) -> list[dict[str, object]]:
    """One pull of a file that is large beside any buffer."""
    source, _ = made("fresh", root / "source", size_bytes)
    host = Host("memory", lambda: Ours(root / "ours"))
    try:
        return [turn("memory", OURS, host, source, None, size_bytes, root / "ours")]
    finally:
        host.stop()


if __name__ == "__main__":
    sys.exit(main())
