"""Links cut in one or both directions between daemons and Redis: who may write, who goes on serving, what heals."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemon, until
from tests.integration.terms import QUICK_LEASE, TTL_S, Ledger, in_step, primary_of, seen_by
from tests.namespaces import why_not
from tests.netfleet import NetFleet

pytestmark = [pytest.mark.fault, pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be done")]
NAMES = ("alpha", "beta", "gamma")
NOTICED_S = 15.0
"""A subscription that nothing arrives on is found dead within this time."""


class Cut(NetFleet):
    """A fleet whose links tests cut, and that each test finds whole."""

    ledger = Ledger()

    def all(self, *without: Daemon) -> list[Daemon]:
        return [daemon for daemon in self.daemons.values() if daemon not in without]

    def primary(self) -> Daemon:
        return primary_of(self.all())

    def epoch(self) -> int:
        return max(int(seen_by(daemon).get("epoch", 0)) for daemon in self.all())

    def mend(self) -> None:
        self.net.heal()
        for name in (*NAMES, "redis"):
            self.net.plug(name)
        for name, daemon in self.daemons.items():
            if daemon.process is None or daemon.process.poll() is not None:
                self.start(name)
        until(lambda: in_step(self.all()), "a fleet in step", 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    with Cut(tmp_path_factory.mktemp("cut"), *NAMES, sections=QUICK_LEASE) as fleet:
        yield fleet


@pytest.fixture
def fleet(made: Cut) -> Iterator[Cut]:
    made.mend()
    yield made
    made.mend()
    made.ledger.check(made.redis, made.all())


def active_on(daemons: list[Daemon], model: str, number: int, timeout_s: float = 20.0) -> None:
    for daemon in daemons:
        until(lambda d=daemon: d.active(model) == number, f"version {number} on {daemon.name}", timeout_s)


def refuses(fleet: Cut, daemon: Daemon, model: str) -> bool:
    try:
        return fleet.ledger.publish(daemon, model, b"refused", timeout_s=5)[0] in (307, 409, 503)
    except OSError:
        return True


def lost_redis(fleet: Cut, old: Daemon, model: str, epoch: int) -> None:
    """What must follow where the primary of this epoch cannot renew, and the others can."""
    others = fleet.all(old)
    answer = fleet.ledger.await_accepted(others, model, b"of the next")
    assert int(answer["id"].partition("-")[0]) > epoch
    assert refuses(fleet, old, model), "it has no lease and no majority"
    assert old.tree(model) is not None, "and goes on serving"
    fleet.net.heal()
    active_on(fleet.all(), model, answer["version"])
    until(lambda: in_step(fleet.all()), "a fleet in step", 30)
    assert fleet.primary() is not old


def test_the_primary_is_cut_from_redis_only(fleet: Cut) -> None:
    old, epoch = fleet.primary(), fleet.epoch()
    fleet.ledger.publish(old, "cut", b"before")
    active_on(fleet.all(), "cut", 1)
    fleet.net.cut(old.name, "redis")
    lost_redis(fleet, old, "cut", epoch)


@pytest.mark.parametrize("deaf", [True, False], ids=["hears nothing of Redis", "is not heard by Redis"])
def test_the_primarys_link_to_redis_works_one_way(fleet: Cut, deaf: bool) -> None:
    old, epoch = fleet.primary(), fleet.epoch()
    model = "deaf" if deaf else "mute"
    fleet.ledger.publish(old, model, b"before")
    active_on(fleet.all(), model, 1)
    fleet.net.drop(*(("redis", old.name) if deaf else (old.name, "redis")))
    lost_redis(fleet, old, model, epoch)


def test_the_primary_is_cut_from_its_peers_only(fleet: Cut) -> None:
    """Redis says it is alive, so nobody takes over; the others serve what they have, and catch up afterwards."""
    old, epoch = fleet.primary(), fleet.epoch()
    fleet.ledger.publish(old, "lonely", b"before")
    active_on(fleet.all(), "lonely", 1)
    for peer in fleet.all(old):
        fleet.net.cut(old.name, peer.name)
    assert fleet.ledger.publish(old, "lonely", b"after")[1]["version"] == 2
    end_s = time.monotonic() + 2 * TTL_S
    while time.monotonic() < end_s:
        assert fleet.epoch() == epoch
        assert all(peer.tree("lonely") is not None for peer in fleet.all(old))
        time.sleep(0.1)
    fleet.net.heal()
    active_on(fleet.all(), "lonely", 2)
    assert fleet.primary() is old


def test_a_link_of_the_ring_is_cut(fleet: Cut) -> None:
    """One replica cannot reach the primary: it pulls through the other."""
    old, epoch = fleet.primary(), fleet.epoch()
    far, _ = fleet.all(old)
    fleet.net.cut(old.name, far.name)
    assert fleet.ledger.publish(old, "ring", b"1")[0] == 201
    active_on(fleet.all(), "ring", 1, timeout_s=15)  # a silent peer costs 5 s, once
    assert fleet.primary() is old and fleet.epoch() == epoch


def test_no_two_daemons_reach_each_other(fleet: Cut) -> None:
    """A primary goes on; when it dies, nobody has a majority, so nobody writes until a link is back."""
    old, epoch = fleet.primary(), fleet.epoch()
    one, other = fleet.all(old)
    for a, b in ((old, one), (one, other), (other, old)):
        fleet.net.cut(a.name, b.name)
    assert fleet.ledger.publish(old, "islands", b"1")[0] == 201
    old.kill()
    end_s = time.monotonic() + 3 * TTL_S
    while time.monotonic() < end_s:
        assert refuses(fleet, one, "islands") and refuses(fleet, other, "islands")
        time.sleep(0.2)
    fleet.net.heal()
    answer = fleet.ledger.await_accepted([one, other], "islands", b"2")
    assert answer["version"] == 2 and int(answer["id"].partition("-")[0]) > epoch


def test_half_open_connections_to_redis(fleet: Cut) -> None:
    """Redis's host loses its power and comes back: no FIN ever says that the old connections are dead."""
    old, epoch = fleet.primary(), fleet.epoch()
    fleet.net.unplug("redis")
    fleet.valkey.stop()
    with fleet.net.inside("redis"):
        fleet.valkey.start()
    time.sleep(1.0)
    fleet.net.plug("redis")
    answer = fleet.ledger.await_accepted([old], "half-open", b"1")
    assert answer["id"].startswith(f"{epoch}-"), "the same term goes on"
    active_on(fleet.all(), "half-open", 1, timeout_s=10)
    listening = lambda: fleet.redis.pubsub_numsub(fleet.key("events"))[0][1]  # noqa: E731
    until(lambda: listening() == len(NAMES), "everyone to listen again", NOTICED_S)
