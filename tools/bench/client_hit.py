"""What a request pays for going through a handle: nanoseconds beside a plain method call, and system calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
import timeit
from pathlib import Path
from statistics import median

from client_models import LiveDir
from report import Bar, table

from modelsync.client import Client

ROUNDS, CALLS = 41, 200_000
TRACED = 300_000


class Echo:
    def predict(self, X: object) -> object:
        return X


class EchoLoader:
    name, maps, runs_code = "echo", False, False

    def matches(self, path: Path, context: object) -> bool:
        return True

    def size_bytes(self, path: Path, context: object) -> int:
        return 1

    def load(self, path: Path, context: object) -> Echo:
        return Echo()


def _published(root: Path) -> LiveDir:
    directory = LiveDir(root)
    (root / "m.echo").write_text("x")
    directory.publish("m", root / "m.echo")
    return directory


def measure(root: Path) -> tuple[list[Bar], dict[str, object]]:
    directory = _published(root)
    with Client(directory.live, loaders=[EchoLoader()]) as client:
        model, handle = Echo(), client.load("m")
        plain, through, extra = [], [], []
        for _ in range(ROUNDS):
            plain.append(timeit.timeit("call(1)", globals={"call": model.predict}, number=CALLS) / CALLS * 1e9)
            direct = timeit.timeit("model.predict(1)", globals={"model": model}, number=CALLS) / CALLS * 1e9
            handled = timeit.timeit("model.predict(1)", globals={"model": handle}, number=CALLS) / CALLS * 1e9
            plain[-1] = direct
            through.append(handled)
            extra.append(handled - direct)
    calls = {watch: _system_calls(directory.live, watch) for watch in (False, True)}
    print(f"one request, {ROUNDS} pairs of {CALLS:,} calls; system calls of {TRACED:,} requests, by strace\n")
    rows = [
        ("method call", f"{median(plain):.1f}", f"{min(plain):.1f}"),
        ("handle", f"{median(through):.1f}", f"{min(through):.1f}"),
    ]
    table(("", "median ns", "least ns"), rows)
    print(f"system calls of the calling thread: {calls[False]}; with the client's own thread running: {calls[True]}")
    bars = [
        Bar("a request through a handle, beyond a method call, median of pairs", median(extra), 60, "ns"),
        Bar("system calls of 300,000 requests", float(sum(calls[False].values())), 0, "calls"),
    ]
    return bars, {"extra_ns": extra, "system_calls": {"alone": calls[False], "watching": calls[True]}}


_PROGRAM = """
import os, sys
from client_hit import EchoLoader
from modelsync.client import Client
client = Client(sys.argv[1], loaders=[EchoLoader()], watch=sys.argv[2] == "True")
predict = client.load("m").predict
for _ in range(100): predict(1)
numbers = range(int(sys.argv[3]))
os.write(1, b"begin")
for _ in numbers: predict(1)
os.write(1, b"end")
os._exit(0)
"""


def _system_calls(live: Path, watch: bool) -> dict[str, int]:
    """System calls of the thread that asks, between its two marks."""
    if shutil.which("strace") is None:
        raise SystemExit("this needs strace: apt-get install strace")
    log = live.parent / f"strace-{watch}"
    here = Path(__file__).parent
    path = f"{here.parents[1] / 'daemon'}:{here}:{here.parents[1]}"
    command = ["strace", "-f", "-o", str(log), "-E", f"PYTHONPATH={path}"]
    subprocess.run(
        [*command, sys.executable, "-c", _PROGRAM, str(live), str(watch), str(TRACED)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    found: dict[str, int] = {}
    asking, inside = "", False
    for line in log.read_text().splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if 'write(1, "begin"' in call:
            asking, inside = thread, True
        elif 'write(1, "end"' in call:
            return found
        elif inside and thread == asking and not call.startswith("<..."):
            name = call.partition("(")[0]
            found[name] = found.get(name, 0) + 1
    raise RuntimeError("the traced program did not reach its end")
