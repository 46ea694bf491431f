"""The plan of a pull: who is asked for what. Time and dice are handed in, so nothing here waits or varies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim import swarm_world
from tests.sim.swarm_world import PRIMARY, World

from modelsync.core.swarm import neighbours, shares
from modelsync.core.swarm.messages import (
    AbandonRun,
    Arrived,
    AskRun,
    Candidate,
    ChunkCorrupt,
    ChunkDone,
    Effect,
    Limits,
    PeerHas,
    PeerSilent,
    PeersSeen,
    ReadMap,
    RunDone,
    RunFailed,
)
from modelsync.core.swarm.peers import COMING_S, GRACE_S, HEAR_S
from modelsync.core.swarm.plan import PATIENCE_S, STALL_S, Swarm
from modelsync.core.swarm.runs import HEDGE_S

MIB = 1 << 20
CHUNKS = 32
ALL = (1 << CHUNKS) - 1
SALT = b"object"
PRIMARY_PEER = Candidate("p", primary=True, holds=True)


def plan(*candidates: Candidate, held: int = 0, limits: Limits = Limits(), draw: int = 0) -> Swarm:
    made = Swarm(
        me="me", salt=SALT, sizes_bytes=[MIB] * CHUNKS, held=held, draw=lambda n: draw % n, now_s=0.0, limits=limits
    )
    made.step(PeersSeen(candidates), 0.0)
    return made


def asks(effects: Sequence[Effect]) -> list[AskRun]:
    return [effect for effect in effects if isinstance(effect, AskRun)]


def chunks_of(runs: Sequence[AskRun]) -> list[int]:
    return [chunk for run in runs for chunk in range(run.first, run.last + 1)]


def deliver(made: Swarm, run: AskRun, now_s: float, count: int = CHUNKS) -> None:
    for chunk in range(run.first, min(run.last + 1, run.first + count)):
        made.step(ChunkDone(run.ask, chunk), now_s)
    if count >= run.last - run.first + 1:
        made.step(RunDone(run.ask), now_s)


# --- one peer ---------------------------------------------------------------------------------------------------------


def test_one_peer_gets_one_request_for_everything() -> None:
    made = plan(PRIMARY_PEER)
    assert made.next_effects(0.0) == [AskRun(1, "p", 0, CHUNKS - 1)]
    assert made.next_effects(0.1) == []


def test_what_is_held_is_not_asked_for() -> None:
    made = plan(PRIMARY_PEER, held=0b1011)
    assert [(run.first, run.last) for run in asks(made.next_effects(0.0))] == [(2, 2)]


def test_nothing_is_asked_once_everything_is_here() -> None:
    made = plan(PRIMARY_PEER, held=ALL)
    assert made.done
    assert made.next_effects(0.0) == []
    assert not made.stuck(0.0)


def test_what_a_broken_request_did_not_bring_is_asked_for_again_after_a_pause() -> None:
    made = plan(PRIMARY_PEER)
    [run] = asks(made.next_effects(0.0))
    deliver(made, run, 1.0, count=5)
    made.step(RunFailed(run.ask), 1.0)
    assert made.next_effects(1.0) == []
    assert made.stuck(1.0), "its owner tries again: nobody else is there"
    assert [(again.first, again.last) for again in asks(made.next_effects(1.5))] == [(5, CHUNKS - 1)]


def test_a_busy_peer_is_no_fault() -> None:
    made = plan(PRIMARY_PEER)
    [run] = asks(made.next_effects(0.0))
    made.step(RunFailed(run.ask, busy_s=1.0), 0.0)
    assert made.next_effects(0.5) == []
    assert not made.stuck(0.5)
    assert len(asks(made.next_effects(1.0))) == 1


def test_events_of_what_is_not_known_are_ignored() -> None:
    made = plan(PRIMARY_PEER)
    for event in (PeerHas("x", ALL, False), PeerSilent("x"), Arrived(9, 1), RunDone(9), RunFailed(9), ChunkCorrupt(9)):
        made.step(event, 0.0)
    assert len(asks(made.next_effects(0.0))) == 1


# --- several ----------------------------------------------------------------------------------------------------------


def test_one_host_that_has_it_is_asked_in_order_though_others_might_begin() -> None:
    made = plan(Candidate("owner", holds=True), Candidate("b"))
    made.step(PeerHas("b", 0, pulling=False), 0.0)
    [first] = asks(made.next_effects(0.0))
    assert (first.peer, first.first) == ("owner", 0)
    assert asks(made.next_effects(0.01)) == []
    deliver(made, first, 0.1)
    [second] = asks(made.next_effects(0.1))
    assert second.first == first.last + 1


def test_limits_hold() -> None:
    limits = Limits(in_all=3, per_peer=2)
    made = plan(*(Candidate(name, holds=True) for name in "abcd"), limits=limits)
    runs = asks(made.next_effects(0.0))
    assert len(runs) == 3
    assert max(sum(run.peer == name for run in runs) for name in "abcd") <= 2


def test_the_primary_is_left_alone_where_a_replica_holds_it() -> None:
    made = plan(PRIMARY_PEER, Candidate("r", holds=True))
    assert {run.peer for run in asks(made.next_effects(0.0))} == {"r"}


def test_near_peers_come_first() -> None:
    made = plan(Candidate("far", 2, holds=True), Candidate("zone", 1, holds=True), Candidate("rack", 0, holds=True))
    assert {run.peer for run in asks(made.next_effects(0.0))} == {"rack"}


def test_further_peers_give_what_nearer_ones_lack() -> None:
    made = plan(Candidate("far", 2, holds=True), Candidate("rack", 0))
    made.step(PeerHas("rack", 0b1111, pulling=False), 0.0)
    by_peer = {run.peer: chunks_of([r for r in runs if r.peer == run.peer]) for runs in [asks(made.next_effects(0.0))]
               for run in runs}  # fmt: skip
    assert set(by_peer["rack"]) <= set(range(4))
    assert not set(by_peer["far"]) & set(range(4))


def test_pulling_nodes_share_out_what_the_primary_gives() -> None:
    taken: list[int] = []
    for me in "abc":
        made = Swarm(me=me, salt=SALT, sizes_bytes=[MIB] * CHUNKS, held=0, draw=lambda n: 0, now_s=0.0,
                     limits=Limits(in_all=CHUNKS, per_peer=CHUNKS))  # fmt: skip
        made.step(PeersSeen((PRIMARY_PEER, *(Candidate(other) for other in "abc" if other != me))), 0.0)
        taken += chunks_of(asks(made.next_effects(HEAR_S)))
    assert sorted(taken) == list(range(CHUNKS)), "each chunk by exactly one of them"


def test_no_source_is_asked_before_the_others_were_heard_and_not_much_later() -> None:
    made = plan(PRIMARY_PEER, Candidate("b"), Candidate("c"))
    assert asks(made.next_effects(0.0)) == []
    made.step(PeerHas("b", 0, pulling=False), 0.01)
    assert asks(made.next_effects(0.01)) == []
    assert made.wake_s(0.01) <= HEAR_S
    assert asks(made.next_effects(HEAR_S)), "who does not answer is waited for no longer"
    made = plan(PRIMARY_PEER, Candidate("b"))
    made.step(PeerHas("b", 0, pulling=False), 0.01)
    assert asks(made.next_effects(0.01))


def test_what_is_on_its_way_to_another_is_not_asked_of_a_source() -> None:
    made = plan(PRIMARY_PEER, Candidate("b"), limits=Limits(in_all=CHUNKS, per_peer=CHUNKS))
    made.step(PeerHas("b", 0, pulling=True, coming=ALL & ~0b11), 0.0)
    now_s = 0.0
    while now_s < COMING_S - 0.1:
        for run in asks(made.next_effects(now_s)):
            assert set(chunks_of([run])) <= {0, 1}, "not even by one that has nothing else to do"
            deliver(made, run, now_s)
        now_s += 0.05
    late = []
    while now_s < COMING_S + PATIENCE_S * 2:
        late += asks(made.next_effects(now_s))
        now_s += 0.05
    assert late, "whoever does not get on is waited for so long, and no longer"


def test_a_node_tells_what_it_asked_of_a_source_until_it_is_there() -> None:
    made = plan(PRIMARY_PEER)
    [run] = asks(made.next_effects(0.0))
    assert made.coming == ALL
    made.step(ChunkDone(run.ask, 0), 0.1)
    assert made.coming == ALL & ~1
    made.step(RunFailed(run.ask), 0.2)
    assert made.coming == 0


def test_what_was_asked_of_one_that_pulls_is_no_news_of_a_source() -> None:
    made = plan(Candidate("b"))
    made.step(PeerHas("b", 0b1111, pulling=True), 0.0)
    assert asks(made.next_effects(0.0))
    assert made.coming == 0


def test_holders_that_do_not_answer_are_not_plenty() -> None:
    """Hosts that left a moment ago, with all of it: the others must not each fetch everything from the store."""
    gone = [Candidate(name, holds=True) for name in ("gone-1", "gone-2", "gone-3")]
    made = plan(PRIMARY_PEER, *gone, Candidate("b"), limits=Limits(in_all=CHUNKS, per_peer=CHUNKS))
    made.step(PeerHas("b", 0, pulling=True), 0.0)
    for run in asks(made.next_effects(0.0)):
        made.step(RunFailed(run.ask), 0.01)
    assert set(chunks_of(asks(made.next_effects(HEAR_S)))) < set(range(CHUNKS)), "its share, and no more"


def test_who_does_not_pull_after_all_takes_no_share() -> None:
    made = plan(PRIMARY_PEER, Candidate("b"), limits=Limits(in_all=CHUNKS, per_peer=CHUNKS))
    mine = asks(made.next_effects(HEAR_S))
    for run in mine:
        deliver(made, run, 0.1)
    assert asks(made.next_effects(0.1)) == []
    made.step(PeerHas("b", 0, pulling=False), 0.1)
    run = asks(made.next_effects(0.1))[0]
    assert run.first == min(set(range(CHUNKS)) - set(chunks_of(mine)))


def test_who_does_not_answer_takes_no_share_after_a_moment() -> None:
    made = plan(PRIMARY_PEER, Candidate("b"), limits=Limits(in_all=CHUNKS, per_peer=CHUNKS))
    for run in asks(made.next_effects(HEAR_S)):
        deliver(made, run, 0.1)
    assert asks(made.next_effects(GRACE_S - 0.01)) == []
    assert asks(made.next_effects(GRACE_S + 0.01))


def test_the_rarest_come_first() -> None:
    made = plan(Candidate("a"), Candidate("b"), Candidate("c"), limits=Limits(in_all=1))
    made.step(PeerHas("a", 0b1111, pulling=True), 0.0)
    made.step(PeerHas("b", 0b0111, pulling=True), 0.0)
    made.step(PeerHas("c", 0b0011, pulling=True), 0.0)
    [run] = asks(made.next_effects(0.0))
    assert (run.peer, run.first, run.last) == ("a", 3, 3)


def test_an_idle_node_helps_itself_and_the_sooner_the_less_comes_from_others() -> None:
    made = plan(PRIMARY_PEER, Candidate("b"), limits=Limits(in_all=CHUNKS, per_peer=CHUNKS))
    made.step(PeerHas("b", 0, pulling=True), 0.0)
    for run in asks(made.next_effects(0.0)):
        deliver(made, run, 0.1)
    now_s, waits = 0.1, []
    while len(waits) < 3:
        effects = asks(made.next_effects(now_s))
        if effects:
            waits.append(now_s)
            deliver(made, effects[0], now_s)
            made.next_effects(now_s)
        now_s += 0.01
    assert waits[0] - 0.1 <= PATIENCE_S * 1.5
    assert waits[2] - waits[1] < waits[1] - waits[0] < waits[0]


# --- when it goes badly -----------------------------------------------------------------------------------------------


def test_a_liar_is_asked_for_nothing_more() -> None:
    made = plan(Candidate("liar", holds=True), Candidate("honest", 2, holds=True), limits=Limits(in_all=8, per_peer=1))
    runs = asks(made.next_effects(0.0))
    lie = next(run for run in runs if run.peer == "liar")
    made.step(ChunkCorrupt(lie.ask), 0.1)
    made.step(PeersSeen((Candidate("liar", holds=True), Candidate("honest", holds=True))), 0.2)
    deliver(made, next(run for run in runs if run.peer == "honest"), 0.3)
    for now_s in (0.4, 5.0, 100.0):
        again = asks(made.next_effects(now_s))
        assert {run.peer for run in again} <= {"honest"}
    assert "liar" in made.useless


def test_only_liars_left_is_stuck() -> None:
    made = plan(Candidate("liar", holds=True))
    [run] = asks(made.next_effects(0.0))
    made.step(ChunkCorrupt(run.ask), 0.1)
    assert made.next_effects(0.1) == []
    assert made.stuck(0.1)


def test_nobody_is_stuck_at_once() -> None:
    made = plan()
    assert made.next_effects(0.0) == []
    assert made.stuck(0.0)


def test_a_pulling_peer_is_waited_for_but_not_for_ever() -> None:
    made = plan(Candidate("b"))
    made.step(PeerHas("b", 0, pulling=True), 0.0)
    made.next_effects(0.0)
    assert not made.stuck(1.0)
    made.next_effects(STALL_S)
    assert made.stuck(STALL_S)


def test_a_still_request_is_hedged_and_given_up_when_overtaken() -> None:
    made = plan(Candidate("slow", 1, holds=True), Candidate("quick", 2, holds=True), limits=Limits(in_all=1, hedges=1))
    [first] = asks(made.next_effects(0.0))
    assert first.peer == "slow"
    made.step(Arrived(first.ask, 100), HEDGE_S)
    [hedge] = asks(made.next_effects(HEDGE_S))
    assert (hedge.peer, hedge.hedge, hedge.first) == ("quick", True, first.first)
    assert asks(made.next_effects(HEDGE_S + 0.1)) == [], "one hedge for one request"
    made.step(ChunkDone(hedge.ask, hedge.first), 3.0)
    assert AbandonRun(first.ask) in made.next_effects(3.0)
    made.step(RunDone(first.ask), 3.1)
    assert {run.peer for run in asks(made.next_effects(3.1))} <= {"quick"}, "the slow one is asked last"


def test_a_request_that_moves_is_not_hedged() -> None:
    made = plan(Candidate("a", 1, holds=True), Candidate("b", 2, holds=True), limits=Limits(in_all=1))
    [run] = asks(made.next_effects(0.0))
    for turn in range(1, 10):
        made.step(Arrived(run.ask, turn * MIB), turn * HEDGE_S)
        assert asks(made.next_effects(turn * HEDGE_S)) == []


def test_who_is_held_back_by_our_own_limit_is_not_hedged() -> None:
    made = plan(Candidate("a", 1, holds=True), Candidate("b", 2, holds=True), limits=Limits(in_all=1))
    made.next_effects(0.0)
    made.rate_limit_bytes_per_s = MIB // 10
    assert asks(made.next_effects(HEDGE_S)) == []


def test_who_does_not_hold_it_after_all_is_asked_for_its_map() -> None:
    made = plan(Candidate("r", holds=True), PRIMARY_PEER)
    [run] = asks(made.next_effects(0.0))[:1]
    made.step(RunFailed(run.ask, refused=True), 0.0)
    effects = made.next_effects(0.1)
    assert {each.peer for each in asks(effects)} <= {"p"}
    assert ReadMap("r") in effects


def test_who_has_left_is_forgotten() -> None:
    made = plan(Candidate("b"), PRIMARY_PEER)
    made.step(PeersSeen((PRIMARY_PEER,)), 0.1)
    effects = made.next_effects(0.2)
    assert ReadMap("b") not in effects
    assert set(chunks_of(asks(effects))) == set(range(CHUNKS))


# --- properties: whole fleets in virtual time -------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    replicas=st.integers(1, 12),
    chunks=st.integers(1, 200),
    seed=st.integers(0, 2**32),
    racks=st.sampled_from([0, 2, 3]),
)
def test_every_fleet_completes_within_its_limits_and_asks_for_nothing_twice(
    replicas: int, chunks: int, seed: int, racks: int
) -> None:
    limits = Limits(hedges=0)
    world = World(replicas=replicas, chunks=chunks, chunk_bytes=MIB, rate_bytes_per_s=50e6, seed=seed, racks=racks,
                  keep_asks=True, limits=limits)  # fmt: skip
    world.run(until_s=3600)
    assert world.most_open <= limits.in_all + limits.hedges
    for host in world.replicas:
        assert host.done_s is not None
        once = chunks_of([run for run in host.asks if not run.hedge])
        assert len(once) == len(set(once)) == chunks


@settings(max_examples=15, deadline=None)
@given(replicas=st.integers(2, 8), seed=st.integers(0, 2**32), dies=st.floats(0.5, 4.0))
def test_what_the_fleet_holds_together_outlives_the_primary(replicas: int, seed: int, dies: float) -> None:
    world = World(replicas=replicas, chunks=64, chunk_bytes=MIB, rate_bytes_per_s=20e6, seed=seed)
    world.run(until_s=dies)
    union = 0
    for host in world.replicas:
        union |= host.plan.held if host.plan is not None else 0
    world.hosts[PRIMARY].alive = False
    world.run(until_s=3600)
    if union == (1 << 64) - 1:
        assert all(host.done_s is not None for host in world.replicas)
    else:
        assert all(host.done_s is not None or host.gave_up_s is not None for host in world.replicas)


class Restless(Swarm):
    """Works out anew at each turn what to ask for, whatever has or has not happened."""

    def next_effects(self, now_s: float) -> list[Effect]:
        self._changed = True
        return super().next_effects(now_s)


@settings(max_examples=25, deadline=None)
@given(
    replicas=st.integers(2, 14),
    chunks=st.integers(1, 100),
    seed=st.integers(0, 2**32),
    racks=st.sampled_from([0, 2]),
    dies=st.floats(0.1, 3.0),
)
def test_what_is_not_worked_out_again_would_have_been_nothing(
    replicas: int, chunks: int, seed: int, racks: int, dies: float
) -> None:
    asked = []
    for kind in (Swarm, Restless):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(swarm_world, "Swarm", kind)
            world = World(replicas=replicas, chunks=chunks, chunk_bytes=MIB, rate_bytes_per_s=20e6, seed=seed,
                          racks=racks, keep_asks=True)  # fmt: skip
            world.run(until_s=dies)
            world.hosts["r0"].alive = False
            world.run(until_s=3600)
        asked.append([(host.id, host.asks, host.done_s) for host in world.replicas])
    assert asked[0] == asked[1]


@pytest.mark.parametrize("replicas", [1, 2, 3, 6])
def test_about_one_copy_leaves_the_primary(replicas: int) -> None:
    world = World(replicas=replicas, chunks=256, chunk_bytes=MIB, rate_bytes_per_s=50e6)
    world.run()
    assert world.egress_copies <= 1.2
    assert world.last_s <= 1.4 * 256 * MIB / 50e6


@pytest.mark.parametrize("start_s", [0.0, 0.1, 0.3])
def test_who_begins_a_moment_sooner_does_not_hold_up_the_others(start_s: float) -> None:
    """On a slow link, where what one has asked of the primary takes long to come."""
    world = World(replicas=6, chunks=64, chunk_bytes=MIB, rate_bytes_per_s=25e6, start_s=start_s)
    world.run()
    assert world.last_s <= start_s + 1.35 * 64 * MIB / 25e6
    assert world.egress_copies <= 1.2


def test_a_chunk_comes_into_a_rack_about_once() -> None:
    world = World(replicas=8, chunks=128, chunk_bytes=MIB, rate_bytes_per_s=50e6, racks=2, keep_asks=True)
    world.run()
    inside = sum(
        run.last - run.first + 1 for host in world.replicas for run in host.asks
        if run.peer != PRIMARY and int(run.peer[1:]) % 2 == int(host.id[1:]) % 2
    )  # fmt: skip
    across = (
        sum(run.last - run.first + 1 for host in world.replicas for run in host.asks if run.peer != PRIMARY) - inside
    )
    assert across <= 2 * 128, "two racks: what the primary gave to one crosses to the other once, and some slack"
    assert inside >= 5 * 128


@pytest.mark.parametrize(("replicas", "racks"), [(3, 2), (6, 3), (12, 3)])
def test_who_stands_beside_the_primary_is_no_later_than_others(replicas: int, racks: int) -> None:
    """Racks without zones: all but one are further from the primary than the nodes beside it, which it feeds no more
    than their share."""
    world = World(replicas=replicas, chunks=256, chunk_bytes=MIB, rate_bytes_per_s=125e6, racks=racks, apart=2,
                  primary_rack=0)  # fmt: skip
    world.run()
    assert world.last_s <= 1.6 * 256 * MIB / 125e6
    assert world.egress_copies <= 1.2


def test_a_node_that_pulls_alone_beside_the_primary_asks_nobody_further_away() -> None:
    made = plan(Candidate("primary", 0, primary=True, holds=True), Candidate("far", 2, holds=True))
    assert {run.peer for run in asks(made.next_effects(0.0))} == {"primary"}


# --- shares and neighbours --------------------------------------------------------------------------------------------


@given(st.sets(st.text("abcdef0123", min_size=1, max_size=8), min_size=1, max_size=20), st.integers(1, 3000))
def test_shares_are_a_partition(names: set[str], chunks: int) -> None:
    total = 0
    for name in names:
        mine = shares.share(name, names, SALT, chunks)
        assert not total & mine
        total |= mine
    assert total == (1 << chunks) - 1


def test_a_share_changes_hands_only_with_who_comes_or_goes() -> None:
    before = {name: shares.share(name, "abcd", SALT, 2048) for name in "abcd"}
    after = {name: shares.share(name, "abc", SALT, 2048) for name in "abc"}
    assert all(before[name] & ~after[name] == 0 for name in "abc")


def test_who_takes_no_shares_has_none() -> None:
    assert shares.share("x", "abc", SALT, 100) == 0


@pytest.mark.parametrize(
    ("mine", "theirs", "far"),
    [
        (("r1", "z1"), ("r1", "z1"), 0), (("r1", "z1"), ("r2", "z1"), 1), (("r1", "z1"), ("r1", "z2"), 2),
        (("", ""), ("", ""), 2), (("r1", ""), ("r1", ""), 0), (("r1", ""), ("", ""), 2), (("", "z1"), ("", "z1"), 1),
    ],
)  # fmt: skip
def test_distance(mine: tuple[str, str], theirs: tuple[str, str], far: int) -> None:
    assert neighbours.distance(neighbours.Labels(*mine), neighbours.Labels(*theirs)) == far


def test_a_small_fleet_is_seen_whole_and_a_large_one_in_part() -> None:
    few = neighbours.seen("me", [PRIMARY_PEER, *(Candidate(f"n{i}") for i in range(8))], SALT)
    assert (len(few.candidates), few.tier) == (9, None)
    many = neighbours.seen("me", [PRIMARY_PEER, *(Candidate(f"n{i}") for i in range(500))], SALT)
    assert len(many.candidates) == 9
    assert PRIMARY_PEER in many.candidates
    assert many.tier is not None
    assert len(many.tier) == shares.FIRST_TIER


def test_useless_neighbours_make_room() -> None:
    fleet = [Candidate(f"n{i}") for i in range(30)]
    first = {candidate.id for candidate in neighbours.seen("me", fleet, SALT).candidates}
    second = {candidate.id for candidate in neighbours.seen("me", fleet, SALT, useless=first).candidates}
    assert not first & second
