"""The election's state machine: transcripts of whole stories, and rules that hold in every state."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scenarios.runner import render

from modelsync.core.election import candidacy, promise
from modelsync.core.election import machine as election
from modelsync.core.election import messages as msg
from modelsync.core.election.candidacy import Eligibility, Rival
from modelsync.core.election.lease import NO_LEASE, Authority, LeaseView, Timing, observed
from modelsync.core.election.machine import TABLE
from modelsync.core.election.promise import GrantRefusal, Promise, Verdict
from modelsync.core.election.state import Role, State, writing_authority
from modelsync.core.ids import EntryId, NodeId

SCENARIOS = sorted((Path(__file__).parent.parent / "scenarios").glob("*.txt"))
A, B = NodeId("a"), NodeId("b")
TIMING = Timing(3.0, 0.25)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    text = path.read_text()
    if os.environ.get("REWRITE_SCENARIOS"):
        path.write_text(render(text))
        pytest.skip("rewritten: read the diff")
    assert render(text) == text


def test_the_table_names_every_pair() -> None:
    assert set(TABLE) == {(role, event) for role in Role for event in get_args(msg.Event)}


# --- whatever happens -----------------------------------------------------------------------------------------------

_names = st.sampled_from(["a", "b", "c"])
_nonces = st.sampled_from(["A.0", "A.1", "n", "m"])
_epochs = st.integers(0, 6)
_authorities = st.builds(lambda e, h, n: Authority(e, NodeId(h), n), st.integers(1, 6), _names, _nonces)
_leases = st.one_of(
    st.just(NO_LEASE),
    st.builds(
        LeaseView,
        st.integers(1, 6),
        _names,
        _nonces,
        st.integers(0, 3),
        st.sampled_from(["held", "released", "handoff"]),
        _names,
    ),
)
_heads = st.builds(EntryId, _epochs, st.integers(0, 9))
_promises = st.builds(Promise, _names, st.booleans(), _epochs, _names, _nonces, _heads)
_events = st.one_of(
    st.just(msg.Ticked()),
    st.builds(msg.LeaseRead, _leases, st.none() | _authorities),
    st.just(msg.ReadFailed()),
    st.builds(msg.Granted, st.integers(1, 6), _nonces),
    st.builds(msg.AcquireRefused, _leases),
    st.just(msg.AcquireFailed()),
    st.builds(msg.GrantPersisted, _authorities, st.frozensets(_names), _heads),
    st.builds(msg.GrantNotPersisted, _authorities, st.just("full")),
    st.builds(msg.Renewed, _authorities, st.floats(-5, 20)),
    st.builds(msg.RenewRefused, _authorities, _leases),
    st.builds(msg.ReassertRefused, _authorities, _leases),
    st.builds(msg.RenewFailed, _authorities),
    st.builds(msg.Promised, _authorities, _promises),
    st.builds(msg.PeerSilent, _authorities, _names),
    st.builds(msg.Prepared, _authorities),
    st.builds(msg.PrepareFailed, _authorities, st.just("away")),
    st.builds(msg.EpochSeen, _epochs, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "A.0", "n"])),
    st.builds(msg.EligibilityChanged, st.builds(Eligibility, st.sampled_from(["", "stale"]), st.booleans())),
    st.builds(msg.ReleaseAsked, st.sampled_from(["", "b"])),
)


def _aimed(state: State, event: msg.Event) -> msg.Event:
    """Most replies drawn at random are to nobody: aim half of them at what the node holds or claims."""
    if isinstance(event, msg.Granted) and state.claim is not None:
        return replace(event, nonce=state.claim.nonce, epoch=state.highest + 1)
    if state.authority is not None and getattr(event, "authority", None) is not None:
        return replace(event, authority=state.authority)  # type: ignore[call-arg]
    return event


@given(st.lists(st.tuples(_events, st.floats(0, 2), st.booleans()), max_size=40))
def test_invariants_hold_after_any_events(steps: list[tuple[msg.Event, float, bool]]) -> None:
    state, now_s = State(A, "A", TIMING), 0.0
    asked: set[str] = set()
    for event, wait_s, aim in steps:
        now_s += wait_s
        before = state
        state, effects = election.step(state, _aimed(state, event) if aim else event, now_s)
        holding = state.role in (Role.ESTABLISHING, Role.PRIMARY)
        assert holding == (state.authority is not None)
        assert state.highest >= before.highest
        if state.authority is not None:
            assert state.highest <= state.authority.epoch or before.highest > state.authority.epoch
        writes = writing_authority(state, now_s)
        assert writes is None or (now_s < state.deadline_s and writes == state.authority)
        if state.role is Role.PRIMARY and before.role is not Role.PRIMARY:
            assert before.preparing
        for effect in effects:
            if isinstance(effect, msg.AcquireLease):
                assert effect.nonce not in asked and effect.min_epoch >= state.highest
                asked.add(effect.nonce)
            if isinstance(effect, msg.StepDown):
                assert writes is None and before.authority == effect.authority
            if isinstance(effect, msg.RenewLease | msg.ReassertLease | msg.BecomePrimary):
                assert effect.authority == state.authority


# --- the receiver's check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "refusal"),
    [
        ((4, "a", "n"), GrantRefusal.LOWER_EPOCH),
        ((5, "a", "n"), None),
        ((5, "b", "n"), GrantRefusal.OTHER_GRANT),
        ((5, "a", "m"), GrantRefusal.OTHER_GRANT),
        ((6, "b", "m"), None),
    ],
)
def test_a_receiver_refuses_lower_epochs_and_other_grants(
    grant: tuple[int, str, str], refusal: GrantRefusal | None
) -> None:
    assert promise.grant_refusal(Authority(5, A, "n"), *grant) is refusal
    assert promise.grant_refusal(None, *grant) is None


# --- promises -------------------------------------------------------------------------------------------------------


def _round(total: int, yes: int, no: int, silent: int = 0) -> promise.Round:
    names = [f"n{index}" for index in range(total)]
    round_ = promise.opened(Authority(5, NodeId("n0"), "n"), names)
    for index in range(1, 1 + yes):
        round_ = promise.answered(round_, Promise(f"n{index}", True, 5, "n0", "n", EntryId(4, index)))
    for index in range(1 + yes, 1 + yes + no):
        round_ = promise.answered(round_, Promise(f"n{index}", False, 4, "x", "y", EntryId(0, 0)))
    for index in range(1 + yes + no, 1 + yes + no + silent):
        round_ = promise.unanswered(round_, f"n{index}")
    return round_


@pytest.mark.parametrize(
    ("total", "yes", "no", "silent", "verdict"),
    [
        (1, 0, 0, 0, Verdict.ENOUGH),
        (2, 0, 0, 0, Verdict.OPEN),
        (2, 1, 0, 0, Verdict.ENOUGH),
        (2, 0, 1, 0, Verdict.IMPOSSIBLE),
        (2, 0, 0, 1, Verdict.ENOUGH),
        (3, 0, 0, 2, Verdict.OPEN),
        (3, 1, 0, 0, Verdict.ENOUGH),
        (3, 0, 1, 1, Verdict.OPEN),
        (3, 0, 2, 0, Verdict.IMPOSSIBLE),
        (4, 1, 0, 2, Verdict.OPEN),
        (4, 2, 1, 0, Verdict.ENOUGH),
        (4, 0, 2, 0, Verdict.IMPOSSIBLE),
        (5, 1, 2, 0, Verdict.OPEN),
        (5, 2, 2, 0, Verdict.ENOUGH),
        (5, 0, 3, 0, Verdict.IMPOSSIBLE),
    ],
)
def test_verdicts(total: int, yes: int, no: int, silent: int, verdict: Verdict) -> None:
    assert promise.verdict(_round(total, yes, no, silent)) is verdict


@given(st.integers(3, 9), st.data())
def test_no_two_rounds_of_one_epoch_can_both_have_enough(total: int, data: st.DataObject) -> None:
    names = [f"n{index}" for index in range(total)]
    votes = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=total, max_size=total))
    rounds = []
    for side, winner in ((0, 0), (1, 1)):
        votes[winner] = side
        rounds.append(promise.opened(Authority(5, NodeId(names[winner]), f"m{side}"), names))
    for name, vote in zip(names, votes, strict=True):
        if vote < 2:
            holder, nonce = rounds[vote].authority.holder, rounds[vote].authority.nonce
            answer = Promise(name, True, 5, holder, nonce, EntryId(0, 0))
            rounds = [promise.answered(round_, answer) for round_ in rounds]
    assert [promise.verdict(round_) for round_ in rounds].count(Verdict.ENOUGH) < 2


def test_strangers_repeats_and_promises_of_another_grant_do_not_count() -> None:
    round_ = promise.opened(Authority(5, A, "n"), {"a", "b", "c"})
    for other in (
        Promise("x", True, 5, "a", "n", EntryId(0, 0)),
        Promise("b", True, 5, "a", "m", EntryId(0, 0)),
        Promise("b", True, 4, "a", "n", EntryId(0, 0)),
        Promise("a", True, 5, "a", "n", EntryId(0, 0)),
    ):
        assert promise.answered(round_, other) == round_


def test_the_winner_fetches_what_is_ahead() -> None:
    round_ = _round(5, 3, 0)
    assert promise.ahead(round_, EntryId(4, 1)) == promise.Ahead(EntryId(4, 3), ("n3",))
    assert promise.ahead(round_, EntryId(4, 3)) is None


@pytest.mark.parametrize(("count", "text"), [(1, "alone"), (2, "degraded"), (3, "majority"), (9, "majority")])
def test_fencing_is_named(count: int, text: str) -> None:
    assert promise.fencing(count) == text


# --- candidates -----------------------------------------------------------------------------------------------------


def test_every_candidate_has_its_own_start_up_to_a_limit() -> None:
    rivals = tuple(Rival(f"n{index:02}", EntryId(1, 1)) for index in range(30))
    delays = [candidacy.start_delay_s(rival.id, "x", Eligibility(rivals=rivals), TIMING) for rival in rivals]
    assert delays[:9] == [0.25 * index for index in range(9)] and set(delays[9:]) == {2.0}


def test_ineligible_rivals_and_the_last_holder_are_not_waited_for() -> None:
    rivals = (Rival("a", EntryId(9, 9)), Rival("b", EntryId(8, 8), eligible=False), Rival("c"))
    assert candidacy.start_delay_s("c", "a", Eligibility(rivals=rivals), TIMING) == 0


# --- observation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"epoch": 2}, {"holder": "c"}, {"nonce": "m"}, {"seq": 4}, {"state": "released"}])
def test_any_change_starts_the_observation_again(change: dict[str, object]) -> None:
    lease = LeaseView(1, "a", "n", 3, "held")
    watch = observed(observed(None, lease, 1.0, TIMING), lease, 2.0, TIMING)
    assert (watch.since_s, watch.last_s) == (1.0, 2.0)
    again = observed(watch, replace(lease, **change), 3.0, TIMING)  # type: ignore[arg-type]
    assert again.since_s == 3.0
