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
from sklearn.linear_model import LinearRegression

from modelsync.client import Client, Handle, LoadContext

ROUNDS, CALLS = 41, 200_000
TRACED = 300_000


class Echo:
    def predict(self, X: object) -> object:
        return X


def _like_echo() -> object:
    """A model of a class of its own: the interpreter specialises to classes."""

    class Another:
        def predict(self, X: object) -> object:
            return X

    return Another()


class EchoLoader:
    name, maps, runs_code = "echo", False, False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return True

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return 1

    def load(self, path: Path, context: LoadContext) -> object:
        if context.name == "regression":
            return LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
        return Echo() if context.name == "m" else _like_echo()


def _published(root: Path) -> LiveDir:
    directory = LiveDir(root)
    (root / "m.echo").write_text("x")
    for name in ("m", "regression", *(f"m{number}" for number in range(6))):
        directory.publish(name, root / "m.echo")
    return directory


def _pairs(handles: list[Handle], argument: object, calls: int) -> tuple[list[float], list[float]]:
    """Nanoseconds a call of the models themselves and through their handles, in turns."""
    timers = [
        timeit.Timer("for each in each_of: each.predict(X)", globals={"each_of": each_of, "X": argument})
        if len(each_of) > 1
        else timeit.Timer("each.predict(X)", globals={"each": each_of[0], "X": argument})
        for each_of in ([handle.model for handle in handles], handles)
    ]
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for times, timer in zip(found, timers, strict=True):
            times.append(timer.timeit(calls // len(handles)) / (calls // len(handles)) / len(handles) * 1e9)
    return found


def measure(root: Path) -> tuple[list[Bar], dict[str, object]]:
    directory = _published(root)
    with Client(directory.live, loaders=[EchoLoader()]) as client:
        cases = {
            "a method of one line": _pairs([client.load("m")], 1, CALLS),
            "six classes in turn": _pairs([client.load(f"m{number}") for number in range(6)], 1, CALLS),
            "LinearRegression, one row": _pairs([client.load("regression")], [[1.0]], CALLS // 100),
        }
    extra = {name: [ours - plain for plain, ours in zip(*pairs, strict=True)] for name, pairs in cases.items()}
    calls = {watch: _system_calls(directory.live, watch) for watch in (False, True)}
    print(f"one request, {ROUNDS} pairs of {CALLS:,} calls; system calls of {TRACED:,} requests, by strace\n")
    rows = [
        (name, f"{median(plain):.1f}", f"{median(ours):.1f}", f"{median(extra[name]):.1f}")
        for name, (plain, ours) in cases.items()
    ]
    table(("", "the model ns", "its handle ns", "more ns"), rows)
    print(f"system calls of the calling thread: {calls[False]}; with the client's own thread running: {calls[True]}")
    bars = [
        Bar(
            "a request through a handle, beyond a method call, median of pairs",
            median(extra["a method of one line"]),
            60,
            "ns",
        ),
        Bar("system calls of 300,000 requests", float(sum(calls[False].values())), 0, "calls"),
    ]
    return bars, {
        "extra_ns": extra,
        "pairs_ns": cases,
        "system_calls": {"alone": calls[False], "watching": calls[True]},
    }


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
