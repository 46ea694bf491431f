"""Commands by redis-cli while the primary dies, sleeps, hands over or is cut off at one point between ear and answer.

Three real daemons, each behind a proxy of its own to one real Redis. Each trial says one command, or the same one
twice, and counts what stands in the log and among the answers afterwards: as many entries as answers that say done, and
an answer for each command, however the primary fared.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.redis_proxy import RedisProxy, sha_of
from tests.integration.terms import QUICK_LEASE, in_step, primary_of

NAMES = ("alpha", "beta", "gamma")
MODEL = "fraud"
VERSIONS = 5
ANSWERED_WITHIN_S = 25.0
POINTS = ("unheard", "heard", "wish unsent", "wish written", "answer unsent", "answer written")
"""Between the command in the primary's socket and its answer in Redis."""
WAYS = ("killed", "asleep", "handing over", "cut off", "well")


@dataclass
class Tally:
    """What became of the commands."""

    trials: int = 0
    reached: int = 0
    """Trials whose primary came to the point at all."""
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Proxied(Fleet):
    """Three daemons, each with a proxy of its own before its Redis, that every trial finds whole."""

    def __init__(self, root: Path, sections: Callable[[str], str] = lambda name: "") -> None:
        super().__init__(root)
        self.proxies: dict[str, RedisProxy] = {}
        for name in NAMES:
            self.proxies[name] = RedisProxy(self.redis_url)
            more = QUICK_LEASE + sections(name)
            self.add(name, more, wait=name == NAMES[0], redis_url=self.proxies[name].url)
        self.mend()

    def publish(self, *contents: bytes) -> None:
        for data in contents:
            head = self.daemons[0].head(MODEL)
            self.daemons[0].put(f"{MODEL}.bin", data)
            until(lambda h=head: self.daemons[0].head(MODEL) == h + 1, f"a version above {head}")

    def mend(self) -> None:
        for daemon in self.daemons:
            self.proxies[daemon.name].disarm()
            self.proxies[daemon.name].cut = False
            if daemon.process is None or daemon.process.poll() is not None:
                daemon.start()
            daemon.signal(signal.SIGCONT)
        until(self.is_whole, "a fleet in step", 40)

    def is_whole(self) -> bool:
        return in_step(self.daemons)

    def close(self) -> None:
        super().close()
        for proxy in self.proxies.values():
            proxy.close()


class Trials(Proxied):
    """The fleet that is told what to do."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._texts = itertools.cycle(("rollback fraud", "update fraud", "pin fraud 3", "unpin fraud"))
        self.publish(*(b"%d" % number for number in range(VERSIONS)))
        until(lambda: all(daemon.active(MODEL) == VERSIONS for daemon in self.daemons), "the last version everywhere")

    def trial(self, point: str, way: str, tally: Tally, *, twice: bool = False) -> None:
        """One command that meets a primary which fares so at this point."""
        old, text, client = primary_of(self.daemons), next(self._texts), self.redis
        tail = client.xrevrange(self.key("log"), count=1)[0][0]
        client.delete(self.key("answers"))
        fared = threading.Event()
        scripts = {"wish": sha_of("publish"), "answer": sha_of("answer")}
        needle = scripts.get(point.partition(" ")[0]) or text.encode()
        self.proxies[old.name].arm(point.rsplit(maxsplit=1)[-1], needle, self._fate(old, way, fared))
        for _ in range(1 + twice):
            client.publish(self.key("control"), text)
        answers = self._answers(1 + twice)
        tally.reached += fared.wait(5)
        self.mend()
        tally.trials += 1
        self._judge(f"{way} at {point!r}: {text!r}", text, tail, answers, 1 + twice, tally)

    def _answers(self, count: int) -> list[dict[str, Any]]:
        deadline_s = time.monotonic() + ANSWERED_WITHIN_S
        while True:
            found = [json.loads(text) for text in self.redis.lrange(self.key("answers"), 0, -1)]
            if len(found) >= count or time.monotonic() > deadline_s:
                time.sleep(0.3)  # one too many would come now
                return [json.loads(text) for text in self.redis.lrange(self.key("answers"), 0, -1)]
            time.sleep(0.02)

    def _judge(self, what: str, text: str, tail: str, answers: list[dict[str, Any]], said: int, tally: Tally) -> None:
        entries = self.redis.xrange(self.key("log"), min=f"({tail}")
        written = sum(entry["kind"] == "wish" and entry["note"] == text for _, entry in entries)
        kinds = Counter(answer["event"] for answer in answers)
        tally.outcomes.update(kinds)
        if len(answers) != said or kinds["command.done"] != written:
            tally.wrong.append(f"{what}: said {said} times, written {written} times, answered {dict(kinds)}")

    # --- what happens to the primary ----------------------------------------------------------------------------------

    def _fate(self, primary: Daemon, way: str, fared: threading.Event) -> Callable[[], None]:
        def killed() -> None:
            primary.kill()

        def asleep() -> None:
            primary.signal(signal.SIGSTOP)
            threading.Thread(target=self._wake_later, args=(primary,), daemon=True).start()

        def handing_over() -> None:
            threading.Thread(target=_hand_over, args=(primary,), daemon=True).start()
            time.sleep(random.uniform(0, 0.15))

        def cut_off() -> None:
            proxy = self.proxies[primary.name]
            proxy.cut = True
            proxy.hang_up()
            threading.Timer(random.uniform(0.1, 3.0), lambda: setattr(proxy, "cut", False)).start()

        ways = {"killed": killed, "asleep": asleep, "handing over": handing_over, "cut off": cut_off}

        def act() -> None:
            ways.get(way, lambda: None)()
            fared.set()

        return act

    def _wake_later(self, primary: Daemon) -> None:
        """When another has taken over, or so soon that none has."""
        time.sleep(random.choice((0.5, 3.5)))
        primary.signal(signal.SIGCONT)


def _hand_over(primary: Daemon) -> None:
    body = json.dumps({"command": "switchover", "by": "trial"}).encode()
    request = urllib.request.Request(f"{primary.url}/v1/command", body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return  # it lost the lease first: the other primary is what the trial is about


def every_point() -> Iterator[tuple[str, str, bool]]:
    """Each point with each way, one command and two."""
    for twice in (False, True):
        for point, way in itertools.product(POINTS, WAYS):
            yield point, way, twice


def some(count: int) -> Iterator[tuple[str, str, bool]]:
    """All in turn; of fewer than there are, each so many, so that every point and way is among them."""
    every = list(every_point())
    stride = next(n for n in range(max(1, len(every) // count), 0, -1) if math.gcd(n, len(every)) == 1)
    return (every[at * stride % len(every)] for at in range(count))


def run(count: int, root: Path, say: Callable[[str], None] = lambda line: None) -> Tally:
    """So many trials, over every point and way by turns."""
    tally, trials = Tally(), Trials(root)
    try:
        for point, way, twice in some(count):
            wrong = len(tally.wrong)
            trials.trial(point, way, tally, twice=twice)
            if len(tally.wrong) > wrong:
                say(tally.wrong[-1])
    finally:
        trials.close()
    return tally
