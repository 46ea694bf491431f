"""An upload of a large file to a primary: memory on both sides, and what is sent when it breaks off or changes in part.

Three turns over one file: `modelsync publish`, killed with SIGKILL when about half of it is there and run again; the
same file with one MiB in a hundred changed; and `curl -T` of it in one request. The bytes sent are what the daemon's
socket received (``/proc/net/dev`` of loopback would count the fleet's own traffic too, so the daemon's own answer,
what it misses, is what is believed). Memory is the peak of the daemon and of the command.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from payload import MIB, size, write_random
from report import Bar, Result, arguments, finish, table

from fleet import NAME, Daemon, Fleet, until


def command(fleet: Fleet, path: Path, *more: str) -> list[str]:
    words = ["-m", "modelsync.cli", "--redis", fleet.redis_url, "--fleet", NAME, "publish", "large", str(path), *more]
    return [sys.executable, *words]


def uploads(daemon: Daemon) -> list[int]:
    """The bytes that are there of each upload under way."""
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return [int(float(line.split()[1])) for line in lines if line.startswith("modelsync_upload_done_bytes{")]


def sent_bytes(daemon: Daemon) -> int:
    """What arrived of planned and plain uploads since the daemon began."""
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("modelsync_uploaded_bytes_total "))


def publish(fleet: Fleet, path: Path) -> tuple[float, int, float]:
    """(seconds, bytes that were sent, the command's peak in MiB)."""
    before, started_s = sent_bytes(fleet.primary), time.monotonic()
    done = subprocess.Popen(command(fleet, path, "--wait", "1", "--json"), stdout=subprocess.PIPE)
    out, _ = done.communicate(timeout=500)
    if done.returncode != 0:
        raise SystemExit(f"the publish ended with {done.returncode}")
    assert json.loads(out)["unchanged"] is False
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return time.monotonic() - started_s, sent_bytes(fleet.primary) - before, peak


def broken(fleet: Fleet, path: Path) -> int:
    """Kill a publish when about half of it is there; the bytes that it had sent."""
    half, before = path.stat().st_size // 2, sent_bytes(fleet.primary)
    process = subprocess.Popen(command(fleet, path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: sent_bytes(fleet.primary) - before > half, "half of the upload", 300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    return sent_bytes(fleet.primary) - before


def change(path: Path) -> None:
    """One MiB in a hundred."""
    with path.open("r+b") as file:
        for offset in range(0, path.stat().st_size, 100 * MIB):
            file.seek(offset)
            file.write(os.urandom(100))


def measure(size_bytes: int, out: Path) -> Result:
    with Fleet("alpha", sections="keep = 1\n", root=out / "work") as fleet:
        path = fleet.root / "large.bin"
        write_random(path, size_bytes)
        fleet.primary.forget_peak()
        first = broken(fleet, path)
        took_s, second, client_mib = publish(fleet, path)
        change(path)
        delta_s, changed, _ = publish(fleet, path)
        fleet_mib = fleet.primary.memory_bytes("VmHWM") / MIB
        path.unlink()
        fresh = fleet.root / "fresh.bin"
        write_random(fresh, size_bytes)
        fleet.primary.forget_peak()
        started_s = time.monotonic()
        subprocess.run(["curl", "-sSf", "-T", fresh, f"{fleet.primary.url}/v1/models/plain"], check=True, stdout=-3)
        curl_s = time.monotonic() - started_s
        plain_mib = fleet.primary.memory_bytes("VmHWM") / MIB
    rows = [
        ("killed half way", "", f"{first / size_bytes:.3f}", ""),
        ("run again", f"{took_s:.1f}", f"{second / size_bytes:.3f}", f"{fleet_mib:.0f}"),
        ("1 MiB in 100 changed", f"{delta_s:.1f}", f"{changed / size_bytes:.3f}", f"{fleet_mib:.0f}"),
        ("curl -T, one request", f"{curl_s:.1f}", "1", f"{plain_mib:.0f}"),
    ]
    print(f"{size_bytes / 2**30:.3g} GiB to a primary; the command's own peak {client_mib:.0f} MiB\n")
    table(("", "s", "copies sent", "daemon MiB"), rows)
    bars = [
        Bar("sent in all, with a kill half way", (first + second) / size_bytes, 1.01, "copies"),
        Bar("sent when one MiB in a hundred changed", changed / size_bytes, 0.03, "copies"),
        Bar("resident, the daemon, planned", fleet_mib, 200, "MiB"),
        Bar("resident, the daemon, one request", plain_mib, 200, "MiB"),
        Bar("resident, the command", client_mib, 200, "MiB"),
    ]
    return Result("upload", bars, {"size_bytes": size_bytes, "again_s": took_s, "delta_s": delta_s, "curl_s": curl_s})


def main() -> int:
    parser = arguments("upload", __doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=size("2GiB"), metavar="BYTES", help="such as 8GiB")
    options = parser.parse_args()
    return 0 if finish(measure(options.size, options.out), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
