"""What tests of failover share: uploads that remember what was accepted, and what must hold whatever happened."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import redis
from tests.integration.daemons import FLEET, Daemon, until

QUICK_LEASE = "[lease]\nttl_s = 1.6\nheartbeat_s = 0.2\n"
TTL_S = 1.6


@dataclass
class Ledger:
    """Every publish that some daemon accepted, and what stood in the log before it could be wiped."""

    accepted: list[tuple[str, int, str, int, str]] = field(default_factory=list)
    """Model, version, digest, epoch, and the daemon that accepted it."""
    log: dict[str, dict[str, str]] = field(default_factory=dict)

    def publish(self, daemon: Daemon, model: str, data: bytes, timeout_s: float = 20.0) -> tuple[int, dict[str, Any]]:
        """PUT to this daemon and no other: the status, and the answer where it was accepted."""
        place = urlsplit(daemon.url)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=timeout_s)
        try:
            connection.request("PUT", f"/v1/models/{model}?filename={model}.bin", body=data)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status not in (200, 201):
            return response.status, {}
        answer = json.loads(text)
        epoch = int(answer["id"].partition("-")[0])
        self.accepted.append((model, answer["version"], answer["digest"], epoch, daemon.name))
        return response.status, answer

    def await_accepted(self, daemons: Iterable[Daemon], model: str, data: bytes, timeout_s: float = 20.0) -> Any:
        """The answer of the first daemon that takes it."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            for daemon in daemons:
                try:
                    status, answer = self.publish(daemon, model, data, timeout_s=2)
                except OSError:
                    continue
                if status in (200, 201):
                    return answer
            time.sleep(0.01)
        raise AssertionError(f"nobody accepted a version of {model} within {timeout_s:g} s")

    def read_log(self, client: redis.Redis) -> None:
        """Remember the log as it stands; called before Redis is made to lose it, and at the end."""
        self.log.update(dict(client.xrange(f"modelsync:{{{FLEET}}}:log")))

    def check(self, client: redis.Redis, daemons: Iterable[Daemon]) -> None:
        """One writer an epoch, and one content a version, in what was answered, logged, and kept on disk."""
        self.read_log(client)
        writers: dict[int, set[str]] = {}
        contents: dict[tuple[str, int], set[str]] = {}
        for at, entry in self.log.items():
            if entry["kind"] == "primary":
                writers.setdefault(int(at.partition("-")[0]), set()).add(entry["by"])
            elif entry["kind"] == "published":
                contents.setdefault((entry["model"], int(entry["version"])), set()).add(entry["digest"])
        for daemon in daemons:
            for model, number, digest in catalog_of(daemon):
                contents.setdefault((model, number), set()).add(digest)
        for model, number, digest, epoch, name in self.accepted:
            writers.setdefault(epoch, set()).add(name)
            contents.setdefault((model, number), set()).add(digest)
        assert all(len(names) == 1 for names in writers.values()), writers
        twice = {key: found for key, found in contents.items() if len(found) > 1}
        assert not twice, f"versions with two contents: {twice}"


def catalog_of(daemon: Daemon) -> list[tuple[str, int, str]]:
    """Model, version, digest: all that a daemon has on its disk."""
    found = []
    for path in (daemon.state / "catalog").glob("*.json"):
        fields = json.loads(path.read_text())
        numbers = [name for name in fields if re.fullmatch(r"v:[0-9]+", name)]
        found += [(path.stem, int(name[2:]), json.loads(fields[name])["digest"]) for name in numbers]
    return found


def primary_of(daemons: Iterable[Daemon], above: int = 0, timeout_s: float = 20.0) -> Daemon:
    """Who takes writes now, in an epoch above the one given."""
    alive = list(daemons)

    def found() -> Daemon | None:
        for daemon in alive:
            seen = seen_by(daemon)
            roles = {node["id"]: node["role"] for node in seen.get("nodes", ())}
            if seen.get("epoch", 0) > above and roles.get(daemon.name) == "primary":
                return daemon
        return None

    chosen: Daemon = until(found, f"a primary above epoch {above}", timeout_s)
    return chosen


def seen_by(daemon: Daemon) -> dict[str, Any]:
    """A daemon's status; empty where it does not answer."""
    try:
        return daemon.status()
    except (OSError, ValueError):
        return {}


def in_step(daemons: Iterable[Daemon]) -> bool:
    """Everyone sees everyone and the same primary, and runs what is wanted."""
    alive = list(daemons)
    documents = [seen_by(daemon) for daemon in alive]
    if not all(documents) or len({(d["primary"], d["epoch"]) for d in documents}) != 1 or not documents[0]["primary"]:
        return False
    names = {daemon.name for daemon in alive}
    for document in documents:
        nodes = [node for node in document["nodes"] if node["id"] in names]
        if document["redis"] != "ok" or [node["state"] for node in nodes] != ["ok"] * len(names):
            return False
        if sum(node["role"] == "primary" for node in nodes) != 1:
            return False
    return True
