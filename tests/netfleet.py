"""A Valkey and daemons, each on a host of its own as far as the network goes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import redis

from modelsync.edges.redis.embedded import EmbeddedRedis
from tests.integration.daemons import FLEET, Daemon, until
from tests.namespaces import Network

PASSWORD = "for-tests-only"


class NetFleet:
    """A context: ``names`` are the daemons; the first is primary before the others start.

    The calling thread is the network's observer meanwhile, who reaches all hosts whatever is cut between them.
    """

    def __init__(self, root: Path, *names: str, sections: str = "") -> None:
        self.net = Network(*names, "redis")
        self.daemons: dict[str, Daemon] = {}
        self._names = names
        self._root = root
        self._sections = sections
        self._stack = ExitStack()

    def __enter__(self) -> NetFleet:
        try:
            self._stack.enter_context(self.net)
            self._stack.enter_context(self.net.inside())
            self.valkey = EmbeddedRedis(self._root / "valkey", host=self.net.address("redis"), password=PASSWORD)
            with self.net.inside("redis"):
                self.redis_url = self.valkey.start()
            self._stack.callback(self.valkey.stop)
            self._stack.callback(self._end_daemons)
            for name in self._names:
                self._add(name)
            until(lambda: all(self.in_step(daemon) for daemon in self.daemons.values()), "a fleet in step")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _add(self, name: str) -> None:
        daemon = Daemon(name, self._root, self.redis_url, self._sections, host=self.net.address(name))
        self.daemons[name] = daemon
        self.start(name)
        until(lambda: daemon.alive() and daemon.status()["primary"], f"{name} to answer\n{daemon.tail()}")

    def start(self, name: str) -> None:
        with self.net.inside(name):
            self.daemons[name].start()

    def _end_daemons(self) -> None:
        for daemon in self.daemons.values():
            daemon.end()

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url, decode_responses=True)

    def key(self, name: str) -> str:
        return f"modelsync:{{{FLEET}}}:{name}"

    def in_step(self, daemon: Daemon) -> bool:
        """Whether a daemon sees everybody, Redis, and a primary."""
        seen = daemon.status()
        alive = [node for node in seen["nodes"] if node["state"] == "ok"]
        return seen["redis"] == "ok" and bool(seen["primary"]) and len(alive) == len(self._names)
