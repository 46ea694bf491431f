"""Wall clocks that are wrong or jump, on the hosts and on Redis (FAULTS 12): nobody is promoted, nothing is refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.crew import NAMES, Crew, await_live
from tests.integration.daemons import Daemon, until
from tests.integration.terms import TTL_S, in_step

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
SOAK_S = 3.0
WAVES = f"""[model.soaked]
strategy = "waves"
soak_s = {SOAK_S}
straggler_s = 20.0
canaries = ["beta"]
waves_percent = []
"""
JUMPS = ("+1h", "-1h", "+3650d", "-3650d", "+0")


class Skewed(Crew):
    """Each daemon and the Redis read their wall clock through a file that the test writes."""

    def __init__(self, root: Path) -> None:
        self.clocks = {name: root / f"clock-{name}" for name in ("redis", *NAMES)}
        for path in self.clocks.values():
            path.write_text("+0")
        self._use("redis")
        super().__init__(root)

    def add(self, name: str, sections: str = "", **rest: object) -> Daemon:
        self._use(name)
        return super().add(name, sections + WAVES, **rest)  # type: ignore[arg-type]

    def _use(self, name: str) -> None:
        os.environ["FAKETIME_TIMESTAMP_FILE"] = str(self.clocks[name])


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Skewed]:
    if LIBRARY is None:
        pytest.skip("libfaketime is not installed (apt-get install faketime)")
    for key, value in {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_TIMESTAMP_FILE": "",
    }.items():
        monkeypatch.setenv(key, value)
    made = Skewed(tmp_path)
    yield made
    made.close()


def test_no_jump_of_a_wall_clock_changes_the_leader(crew: Skewed) -> None:
    until(lambda: in_step(crew.daemons), "a fleet in step")
    before, epoch = crew.primary(), crew.epoch()
    for number, jump in enumerate(JUMPS, 1):
        for shift, daemon in zip((jump, "+0", jump), crew.daemons, strict=True):
            crew.clocks[daemon.name].write_text(shift)
        crew.clocks["redis"].write_text("+60s" if number % 2 else "-60s")
        time.sleep(1.2 * TTL_S)
        assert crew.ledger.await_accepted([before], "jumps", b"%d" % number, 60)["version"] == number
        await_live(crew.daemons, "jumps", b"%d" % number)
    assert crew.primary() is before and crew.epoch() == epoch
    years = {line["created"][:4] for line in json.loads(crew.run("history", "jumps", "--json").stdout)}
    assert len(years) > 1 or before.name == NAMES[1], "the clocks did move"
    before.kill()  # and a death is still noticed
    assert crew.ledger.await_accepted(crew.others(before), "jumps", b"last")["version"] == len(JUMPS) + 1
    crew.ledger.check(crew.redis, crew.daemons)


def test_a_jump_during_a_soak_neither_shortens_nor_ends_it(crew: Skewed) -> None:
    until(lambda: in_step(crew.daemons), "a fleet in step")
    primary = crew.primary()
    crew.ledger.publish(primary, "soaked", b"one")
    await_live(crew.daemons, "soaked", b"one")  # the first one goes by waves, too
    until(lambda: rollout(primary)["state"] == "done", "the first rollout's end")
    crew.ledger.publish(primary, "soaked", b"two")
    until(lambda: rollout(primary)["version"] == 2 and rollout(primary)["state"] == "soaking", "the soak")
    began_s = time.monotonic()
    for jump in ("+1h", "-1h", "+3650d", "+0"):
        for clock in crew.clocks.values():
            clock.write_text(jump)
        time.sleep(SOAK_S / 6)
        assert rollout(primary)["state"] == "soaking", f"after {time.monotonic() - began_s:.1f} s, at {jump}"
    until(lambda: rollout(primary)["state"] == "done", "the rollout's end")
    assert time.monotonic() - began_s > SOAK_S - 0.5
    await_live(crew.daemons, "soaked", b"two")


def rollout(daemon: Daemon) -> dict[str, Any]:
    model = next((m for m in daemon.status()["models"] if m["name"] == "soaked"), {})
    found: dict[str, Any] = model.get("rollout") or {"state": "", "version": 0}
    return found
