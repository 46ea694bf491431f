"""The primary dies in the middle of a rollout, at one step after another; what becomes of the version on every host.

Three real daemons, each behind a proxy of its own to one real Redis, and a stand-in for Prometheus. A step is an entry
that the primary writes (before it is sent; written, and it does not know), a host's report, the gate's question,
or the moment when the signal has reached some hosts and not others. Afterwards the rollout has ended, and all three run
the version, or none of them does.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fault.commands import MODEL, Proxied
from tests.integration.daemons import Daemon, until
from tests.integration.terms import primary_of, seen_by

ENDS_WITHIN_S = 30.0
CHECK = """#!/bin/sh
case $(cat "$MODELSYNC_TREE"/*.bin) in {bad}*) echo "{bad}" >&2; exit 1;; esac
"""
ONE, TWO, BAD, ILL = 1, 2, 3, 4
"""Versions: two that are good, one that gamma turns down before the switch, one that its server does after it."""


@dataclass(frozen=True)
class Step:
    """One moment of one rollout."""

    strategy: str
    at: str
    """The event of the entry, or ``rollout.reported``, or ``gate``."""
    point: str
    """Of the primary's proxy; for ``late``: written, and gamma hears of it later."""
    version: int = TWO
    gate: str = "0"
    ends: tuple[str, ...] = ("done",)
    """States that it may end in: a primary that is away for longer than ``straggler_s`` stops what needs it."""

    def __str__(self) -> str:
        return f"{self.strategy}: {self.at} {self.point}, version {self.version}"


def written(strategy: str, at: str, **more: Any) -> tuple[Step, Step]:
    return Step(strategy, at, "unsent", **more), Step(strategy, at, "written", **more)


EARLY = ("done", "aborted")
TAKEN_BACK = ("rolled_back", "aborted")
STEPS: tuple[Step, ...] = (
    *written("together", "rollout.begun", ends=EARLY),
    Step("together", "rollout.reported", "heard", ends=EARLY),
    *written("together", "rollout.flipped", ends=EARLY),
    Step("together", "rollout.flipped", "late"),
    *written("together", "rollout.done"),
    *written("together", "rollout.aborted", version=BAD, ends=("aborted",)),
    *written("together", "rollout.rolled_back", version=ILL, ends=("rolled_back", "done")),
    *written("waves", "rollout.begun", ends=("done", "rolled_back")),
    *written("waves", "rollout.soaking", ends=("done", "rolled_back")),
    Step("waves", "gate", "asked", ends=("done", "rolled_back")),
    *written("waves", "rollout.advanced", ends=("done", "rolled_back")),
    *written("waves", "rollout.done", ends=("done", "rolled_back")),
    *written("waves", "rollout.rolled_back", gate="1", ends=("rolled_back",)),
)


class Gate:
    """Prometheus, with one value."""

    def __init__(self) -> None:
        self.value = "0"
        self.asked: Callable[[], None] = lambda: None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                asked, outer.asked = outer.asked, lambda: None
                asked()
                result = [{"metric": {}, "value": [1, outer.value]}]
                data = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
                try:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    return  # who asked is dead

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Tally:
    """How the rollouts ended."""

    trials: int = 0
    reached: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Rollouts(Proxied):
    """The fleet that every trial finds whole and at version 1."""

    def __init__(self, root: Path) -> None:
        self.gate = Gate()
        root.mkdir(parents=True, exist_ok=True)
        for name in ("bad", "ill"):
            path = root / f"check-{name}"
            path.write_text(CHECK.format(bad=name))
            path.chmod(0o755)
        super().__init__(root, lambda name: self._sections(root, name))
        self.publish(b"one", b"two", b"bad", b"ill")
        self.run("update", MODEL, "1")
        until(self._at_one, "version 1 everywhere")

    def _sections(self, root: Path, name: str) -> str:
        text = (
            f'[model.{MODEL}]\nkeep = 10\nstraggler_s = 6.0\nsoak_s = 0.5\ncanaries = ["beta"]\nwaves_percent = [60]\n'
            f'gate = {{ url = "{self.gate.url}", query = "errors", max_value = 0.5 }}\n'
        )
        if name == "gamma":
            text += f'validate = {{ command = ["{root}/check-bad"] }}\n'
            text += f'hooks = [{{ kind = "command", command = ["{root}/check-ill"] }}]\n'
        return text

    def close(self) -> None:
        super().close()
        self.gate.close()

    def is_whole(self) -> bool:
        """All see one primary; a host that turned a version down may say so."""
        seen = [seen_by(daemon) for daemon in self.daemons]
        views = {(one.get("primary"), one.get("epoch")) for one in seen}
        alive = all(node["last_seen_s"] < 5 for one in seen for node in one.get("nodes", ()))
        return all(seen) and len(views) == 1 and all(one["primary"] and one["redis"] == "ok" for one in seen) and alive

    def _at_one(self) -> bool:
        return all(self.number(daemon) == ONE for daemon in self.daemons) and not self.rollout(self.daemons[0]).get(
            "open"
        )

    def number(self, daemon: Daemon) -> int:
        """The version behind ``current``, by its bytes."""
        tree = daemon.tree(MODEL)
        data = (tree / f"{MODEL}.bin").read_bytes() if tree else b""
        return {b"one": ONE, b"two": TWO, b"bad": BAD, b"ill": ILL}.get(data, 0)

    def rollout(self, daemon: Daemon) -> dict[str, Any]:
        models = seen_by(daemon).get("models", ())
        found = next((m for m in models if m["name"] == MODEL), {}).get("rollout") or {}
        return {**found, "open": found.get("state") in ("staging", "moving", "wave", "soaking")}

    def trial(self, step: Step, tally: Tally, *, restarts_at_once: bool) -> None:
        """One rollout whose primary dies at this step."""
        before = self._begin()
        primary = primary_of(self.daemons)
        self.gate.value = step.gate
        died = self._arm(primary, step)
        marks = {daemon.name: len(daemon.log.read_text()) for daemon in self.daemons}
        self.redis.publish(self.key("control"), f"rollout {MODEL} {step.version} {step.strategy}")
        tally.trials += 1
        if not died.wait(15):
            tally.wrong.append(f"{step}: the step was never reached: {self.rollout(primary)}")
            self._end()
            return
        tally.reached += 1
        assert primary.process is not None
        primary.process.wait(10)
        if not restarts_at_once:
            primary_of([daemon for daemon in self.daemons if daemon is not primary])
        primary.start()
        self.mend()
        found = self._await_end(before, step)
        tally.ended[found.get("state", "?")] = tally.ended.get(found.get("state", "?"), 0) + 1
        tally.wrong += [f"{step}: {what}" for what in self._judge(found, step, marks)]
        self._end()

    def _begin(self) -> str:
        return str(self.rollout(self.daemons[0]).get("id", ""))

    def _arm(self, primary: Daemon, step: Step) -> threading.Event:
        died = threading.Event()

        def kill() -> None:
            if not died.is_set():
                primary.signal(9)
                died.set()

        if step.at == "gate":
            self.gate.asked = kill
            return died
        needle = f'"{step.at}"'.encode()
        if step.point == "late":
            late = next(d for d in self.daemons if d is not primary)
            self.proxies[late.name].arm("unheard", needle, lambda: time.sleep(0.8))
        self.proxies[primary.name].arm("written" if step.point == "late" else step.point, needle, kill)
        return died

    def _await_end(self, before: str, step: Step) -> dict[str, Any]:
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        while time.monotonic() < deadline_s:
            found = [self.rollout(daemon) for daemon in self.daemons]
            ids = {one.get("id") for one in found}
            if len(ids) == 1 and ids != {before} and not any(one["open"] for one in found):
                target = found[0]["version"] if found[0]["state"] == "done" else ONE
                if all(self.number(daemon) == target for daemon in self._free(found[0])):
                    break
            time.sleep(0.05)
        return self.rollout(self.daemons[0])

    def _free(self, found: dict[str, Any]) -> Iterable[Daemon]:
        """Hosts that may run the version; gamma turns two of them down whatever the fleet wants."""
        return [d for d in self.daemons if d.name != "gamma" or found["version"] in (ONE, TWO)]

    def _judge(self, found: dict[str, Any], step: Step, marks: dict[str, int]) -> list[str]:
        wrong = []
        if found.get("open") or found.get("version") != step.version:
            return [f"it has not ended: {found}"]
        if found["state"] not in step.ends:
            wrong.append(f"it ended {found['state']}: {found.get('reason')}")
        numbers = {daemon.name: self.number(daemon) for daemon in self._free(found)}
        target = step.version if found["state"] == "done" else ONE
        if set(numbers.values()) != {target}:
            wrong.append(f"{found['state']}, and the hosts run {numbers}")
        if step.strategy == "together" and found["state"] == "aborted" and (moved := self._moved(step.version, marks)):
            wrong.append(f"aborted, and {moved} had moved")
        if step.gate == "1" and (moved := self._moved(step.version, marks) - {"beta"}):
            wrong.append(f"the gate said no, and {moved} had moved")
        return wrong

    def _moved(self, version: int, marks: dict[str, int]) -> set[str]:
        """Who switched to a version since the trial began."""
        moved = set()
        for daemon in self.daemons:
            for line in daemon.log.read_text()[marks[daemon.name] :].splitlines():
                if '"version.activated"' in line and json.loads(line).get("version") == version:
                    moved.add(daemon.name)
        return moved

    def _end(self) -> None:
        self.mend()
        self.gate.value, self.gate.asked = "0", lambda: None
        self.run("rollout", "abort", MODEL, check=False)
        self.run("update", MODEL, "1")
        until(self._at_one, "version 1 everywhere again", 30)


def run(root: Path, steps: Iterable[Step] = STEPS, say: Callable[[str], None] = lambda line: None) -> Tally:
    """Each step once; the primary comes back at once or when another has taken over, by turns."""
    tally, fleet = Tally(), Rollouts(root)
    try:
        for at, step in enumerate(steps):
            known, ended = len(tally.wrong), sum(tally.ended.values())
            fleet.trial(step, tally, restarts_at_once=at % 2 == 1)
            if sum(tally.ended.values()) > ended and len(tally.wrong) == known:
                say(f"  {step}: all or none")
            for line in tally.wrong[known:]:
                say(line)
    finally:
        fleet.close()
    return tally
