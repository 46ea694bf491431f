"""Commands by redis-cli across a change of primary, on real daemons: executed once or refused, never twice.

`tools/faults commands` tries every point and way; here is a sample, and what does not need a point.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.fault import commands
from tests.integration.daemons import until
from tests.integration.terms import in_step, primary_of


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[commands.Trials]:
    made = commands.Trials(tmp_path_factory.mktemp("trials"))
    yield made
    made.close()


@pytest.fixture
def trials(started: commands.Trials) -> Iterator[commands.Trials]:
    started.mend()
    yield started


@pytest.mark.parametrize(
    ("point", "way", "twice"),
    [
        ("unheard", "cut off", False),
        ("heard", "killed", True),
        ("wish written", "killed", True),
        ("wish unsent", "asleep", False),
        ("answer unsent", "handing over", True),
        ("answer written", "killed", False),
    ],
)
def test_once_or_refused(trials: commands.Trials, point: str, way: str, twice: bool) -> None:
    tally = commands.Tally()
    trials.trial(point, way, tally, twice=twice)
    assert tally.wrong == [] and tally.reached == 1


def test_a_flood_is_bounded_and_what_found_no_room_is_owned_up_to(trials: commands.Trials) -> None:
    client = trials.redis
    client.delete(trials.key("answers"))
    with client.pipeline(transaction=False) as pipe:
        for _ in range(3000):
            pipe.publish(trials.key("control"), "rollback nobody")
        pipe.execute()
    answers = until(
        lambda: [a for text in client.lrange(trials.key("answers"), 0, -1) if "were waiting" in (a := text)],
        "the refusal of those that found no room",
    )
    assert json.loads(answers[0])["event"] == "command.refused"
    client.publish(trials.key("control"), "update fraud 1")
    until(lambda: all(daemon.active("fraud") == 1 for daemon in trials.daemons), "a command after the flood")


def test_resume_by_redis_cli_when_nobody_is_primary(trials: commands.Trials) -> None:
    client, old = trials.redis, primary_of(trials.daemons)
    client.publish(trials.key("control"), "pause")
    until(lambda: all(d.status()["paused_by"] for d in trials.daemons), "the pause")
    old.kill()
    rest = [daemon for daemon in trials.daemons if daemon is not old]
    client.publish(trials.key("control"), "resume")
    primary_of(rest, above=int(rest[0].status()["epoch"]))
    until(lambda: not rest[0].status()["paused_by"], "the end of the pause")
    last = until(lambda: [t for t in client.lrange(trials.key("answers"), 0, 0) if "resume" in t], "the answer")
    assert json.loads(last[0])["event"] == "command.done"
    trials.mend()
    assert in_step(trials.daemons)
