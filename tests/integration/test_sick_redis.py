"""A Redis that answers, but not as it should (FAULTS 19): said in status, waited out, and nobody writes twice."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
import redis
from tests.integration.crew import Crew, await_live
from tests.integration.daemons import Daemon, until
from tests.integration.terms import TTL_S, in_step


def read_only(client: redis.Redis) -> Callable[[], object]:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    return lambda: client.execute_command("REPLICAOF", "NO", "ONE")


def out_of_memory(client: redis.Redis) -> Callable[[], object]:
    client.config_set("maxmemory", "1")
    return lambda: client.config_set("maxmemory", "0")


def without_scripts(client: redis.Redis) -> Callable[[], object]:
    client.execute_command("ACL", "SETUSER", "default", "-@scripting")
    return lambda: client.execute_command("ACL", "SETUSER", "default", "+@scripting")


def longest_answer_s(daemon: Daemon, stop: threading.Event, found: list[float]) -> None:
    while not stop.is_set():
        began_s = time.monotonic()
        with urllib.request.urlopen(f"{daemon.url}/healthz", timeout=10):
            found.append(time.monotonic() - began_s)
        time.sleep(0.05)


@contextlib.contextmanager
def quick_to_answer(crew: Crew) -> Iterator[None]:
    """Whatever Redis does, the loops turn: a 5 s reply that was waited for anywhere would show here."""
    stop, found = threading.Event(), [0.0]
    threads = [threading.Thread(target=longest_answer_s, args=(d, stop, found)) for d in crew.daemons]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert max(found) < 3.0


@pytest.mark.parametrize(
    ("sick", "word"),
    [(read_only, "ReadOnlyError"), (out_of_memory, "OutOfMemoryError"), (without_scripts, "NoPermissionError")],
)
def test_a_redis_that_refuses_writes_is_named_and_waited_out(
    crew: Crew, sick: Callable[[redis.Redis], Callable[[], object]], word: str
) -> None:
    model = word.lower()
    crew.ledger.publish(crew.primary(), model, b"1")
    await_live(crew.daemons, model, b"1")
    client = crew.redis
    with quick_to_answer(crew):
        mend = sick(client)
        try:
            until(lambda: all(word in told(daemon) for daemon in crew.daemons), f"all to say {word}", 10)
            assert {crew.ledger.publish(d, model, b"x")[0] for d in crew.daemons} <= {307, 503}
            time.sleep(TTL_S)  # longer than any lease lasts
            assert all(daemon.tree(model) is not None for daemon in crew.daemons), "they go on serving"
        finally:
            mend()
        assert crew.ledger.await_accepted(crew.daemons, model, b"2")["version"] == 2
    await_live(crew.daemons, model, b"2")
    until(lambda: in_step(crew.daemons), "all three")


def told(daemon: Daemon) -> str:
    """What its status says is wrong, in the one line about Redis or in a node's own."""
    seen = daemon.status()
    return " ".join([seen["redis"], *(str(node.get("error", "")) for node in seen["nodes"])])


def test_a_redis_that_answers_after_five_seconds_changes_no_leader(crew: Crew) -> None:
    before, epoch = crew.primary(), crew.epoch()
    client = crew.redis
    with quick_to_answer(crew):
        client.execute_command("CLIENT", "PAUSE", "5000", "ALL")
        time.sleep(5.0)
        answer = crew.ledger.await_accepted([before], "slow", os.urandom(20))
    assert answer["id"].startswith(f"{epoch}-"), "the same term goes on"
    until(lambda: in_step(crew.daemons), "all three")
    assert crew.primary() is before and crew.epoch() == epoch
