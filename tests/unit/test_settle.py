"""When a source is complete: the whole table, with time handed in."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelsync.core.sources.events import Adjusted, Closed, Created, FileEvent, Removed, Renamed, Written
from modelsync.core.sources.settle import (
    Complete,
    Facts,
    Settling,
    Unchanged,
    Verdict,
    Waiting,
    Writers,
    bucket_of,
    is_bucket,
)

SETTLE_S = 5.0
WALL_NS = 1_700_000_000_000_000_000
NOBODY = Writers()


class World:
    """A Settling and a clock: ``at`` moves it, ``look`` scans one item as the runtime does."""

    def __init__(self, announced: Mapping[str, Hashable] | None = None) -> None:
        self.settling = Settling(SETTLE_S, announced or {})
        self.now_s = 1000.0

    def at(self, now_s: float) -> World:
        self.now_s = 1000.0 + now_s
        return self

    def hear(self, *events: FileEvent) -> World:
        for event in events:
            self.settling.hear(event, self.now_s)
        return self

    def due(self) -> set[str]:
        return set(self.settling.due(self.now_s))

    def next_in_s(self) -> float | None:
        look_s = self.settling.next_look_s()
        return None if look_s is None else look_s - 1000.0

    def look(
        self,
        key: str = "fraud",
        signature: Hashable = "v1",
        age_s: float = 3600.0,
        marked: bool = False,
        writers: Writers = NOBODY,
        found: str = "event",
    ) -> Verdict:
        wall_ns = WALL_NS + int(self.now_s * 1e9)
        facts = Facts(key, signature, wall_ns - int(age_s * 1e9), marked)
        self.settling.begin(key.partition("/")[0])
        verdict = self.settling.look(facts, None, self.now_s, wall_ns, found)
        if isinstance(verdict, Complete):
            verdict = self.settling.look(facts, writers, self.now_s, wall_ns, found)
        if isinstance(verdict, Complete):
            self.settling.announce(facts)
        self.settling.rest(key.partition("/")[0])
        return verdict


# --- renamed into place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", ".fraud.tmp", "old-name"])
@pytest.mark.parametrize("key", ["fraud", "fraud.joblib", "fraud/12"])
def test_a_whole_item_renamed_into_place_is_complete_at_once_however_young(source: str, key: str) -> None:
    world = World().hear(Renamed(source, key))
    assert key.partition("/")[0] in world.due()
    assert world.look(key, age_s=0.0) == Complete("event")


def test_a_renamed_entry_makes_every_version_in_it_complete() -> None:
    world = World().hear(Renamed("", "fraud"))
    assert world.look("fraud/1", age_s=0.0) == Complete("event")


def test_what_was_heard_of_an_exchanged_directory_does_not_hold_back_the_new_one() -> None:
    """renameat2(RENAME_EXCHANGE) puts a whole directory where another one was."""
    world = World().hear(Written("fraud/1/w"), Renamed("", "fraud"))
    assert world.look("fraud/1", age_s=0.0) == Complete("event")


def test_a_part_renamed_into_an_item_starts_the_wait() -> None:
    world = World().hear(Renamed("fraud/.w.bin.Xy12", "fraud/w.bin"))
    assert world.due() == set()
    assert world.at(4.9).look() == Waiting()
    assert world.next_in_s() == 5.0
    assert world.at(5.0).due() == {"fraud"}
    assert world.look() == Complete("event")


def test_renamed_and_still_open_waits_for_the_close_and_then_not_longer() -> None:
    world = World().hear(Written(".t"), Renamed(".t", "fraud.bin"))
    assert world.look("fraud.bin", age_s=0, writers=Writers(held=("fraud.bin",))) == Waiting("fraud.bin")
    world.at(60).hear(Closed("fraud.bin"))
    assert world.due() == {"fraud.bin"}
    assert world.look("fraud.bin", age_s=0) == Complete("event")


def test_open_writers_go_along_with_a_renamed_directory() -> None:
    """Where the kernel cannot be asked, the event from before the rename still counts."""
    world = World().hear(Written("tmp/a/w.bin"), Renamed("tmp", "fraud"))
    blind = Writers(unknown=frozenset({"fraud/a/w.bin"}))
    assert world.look(writers=blind, age_s=0) == Waiting("fraud/a/w.bin")
    world.at(1).hear(Closed("fraud/a/w.bin"))
    assert world.look(writers=blind, age_s=0) == Complete("event")


@pytest.mark.parametrize(
    "event",
    [Created("fraud/x"), Written("fraud/w"), Adjusted("fraud/w"), Removed("fraud/w"), Renamed("fraud/a", "fraud/b")],
)
def test_any_change_after_the_rename_ends_its_privilege(event: FileEvent) -> None:
    world = World().hear(Renamed("", "fraud"), event)
    assert world.look() == Waiting()
    assert world.at(5).look() == Complete("event")


# --- markers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", ["fraud/_SUCCESS", "fraud/.complete", "fraud/12/_SUCCESS"])
def test_a_marker_has_the_item_looked_at_at_once_and_completes_it(marker: str) -> None:
    world = World().hear(Created("fraud/12/w"), Written("fraud/12/w"), Closed("fraud/12/w"), Created(marker))
    assert world.due() == {"fraud"}
    assert world.look("fraud/12", age_s=0.0, marked=True) == Complete("event")


def test_a_marker_does_not_outweigh_an_open_file() -> None:
    world = World().hear(Created("fraud/_SUCCESS"))
    held = Writers(held=("fraud/w.bin",))
    assert world.look(age_s=0, marked=True, writers=held) == Waiting("fraud/w.bin")


# --- neither: quiet for settle_s --------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [Created("fraud/w"), Written("fraud/w"), Adjusted("fraud/w"), Closed("fraud/w")])
def test_each_change_starts_the_wait_again(event: FileEvent) -> None:
    world = World().hear(Created("fraud/w"))
    world.at(4).hear(event)
    assert world.at(5).due() == set()
    assert world.at(8.9).look() == Waiting()
    assert world.at(9).due() == {"fraud"}
    assert world.look() == Complete("event")


def test_the_files_own_times_count_where_events_were_lost() -> None:
    world = World().hear(Created("fraud/w"))
    assert world.at(5).look(age_s=2.0) == Waiting()
    assert world.next_in_s() == 8.0
    assert world.at(8).look(age_s=5.0) == Complete("event")


def test_changes_in_one_version_do_not_hold_back_another() -> None:
    world = World().hear(Renamed("", "fraud/13"), Written("fraud/12/w"))
    assert world.look("fraud/13", age_s=0) == Complete("event")
    world.hear(Created("fraud/config.pbtxt"))
    assert world.look("fraud/12") == Waiting()


def test_times_in_the_future_need_two_looks_that_see_the_same() -> None:
    world = World()
    assert world.look(age_s=-3600) == Waiting()
    assert world.next_in_s() == 5.0
    assert world.at(5).look(signature="v2", age_s=-3600) == Waiting()
    assert world.at(10).look(signature="v2", age_s=-3600) == Complete("event")


# --- held open --------------------------------------------------------------------------------------------------------


def test_open_for_writing_is_never_complete_however_long_the_pauses() -> None:
    world = World().hear(Created("fraud/w"), Written("fraud/w"))
    held = Writers(held=("fraud/w",))
    for minute in range(1, 100):
        assert world.at(60.0 * minute).look(age_s=50.0, writers=held) == Waiting("fraud/w")
        assert world.next_in_s() == 60.0 * minute + SETTLE_S  # looked at again, not in a busy loop
    world.at(7000).hear(Closed("fraud/w"))
    assert world.at(7004.9).look(writers=NOBODY) == Waiting()
    assert world.at(7005).look(writers=NOBODY) == Complete("event")


@pytest.mark.parametrize("event", [Renamed("", "fraud"), Created("fraud/_SUCCESS"), Created("fraud/w")])
def test_what_changed_between_the_scan_and_the_question_is_looked_at_again(event: FileEvent) -> None:
    world = World().hear(event)
    assert world.at(5).look(marked=True, writers=Writers(changed=("fraud/w",))) == Waiting()
    assert world.next_in_s() == 10.0
    assert world.at(10).look(signature="v2") == Complete("event")


def test_where_the_kernel_cannot_be_asked_events_tell_of_writers() -> None:
    blind = Writers(unknown=frozenset({"fraud/w"}))
    world = World().hear(Created("fraud/w"), Written("fraud/w"))
    assert world.at(100).look(writers=blind) == Waiting("fraud/w")
    world.hear(Closed("fraud/w"))
    assert world.at(105).look(writers=blind) == Complete("event")


def test_a_writer_below_a_number_within_a_plain_directory_is_told_of_its_end() -> None:
    blind = Writers(unknown=frozenset({"fraud/1/w"}))
    world = World().hear(Written("fraud/1/w"))
    assert world.at(100).look(writers=blind) == Waiting("fraud/1/w")
    world.hear(Closed("fraud/1/w"))
    assert world.at(105).look(writers=blind) == Complete("event")


def test_where_the_kernel_answers_it_outweighs_the_events() -> None:
    """link(2) and truncate(2) make and change files that nobody ever closes."""
    world = World().hear(Written("fraud/w"))
    assert world.at(100).look(writers=NOBODY) == Complete("event")
    assert world.next_in_s() is None and world.settling._touches == {}


def test_a_created_file_that_nobody_writes_is_not_held_open_by_that_event() -> None:
    blind = Writers(unknown=frozenset({"fraud.bin"}))
    assert World().hear(Created("fraud.bin")).at(5).look("fraud.bin", writers=blind) == Complete("event")


def test_a_writer_that_was_removed_holds_nothing() -> None:
    blind = Writers(unknown=frozenset({"fraud/w", "fraud/v"}))
    world = World().hear(Written("fraud/v"), Removed("fraud/v"), Written("fraud/w"), Closed("fraud/w"))
    assert world.at(5).look(writers=blind) == Complete("event")


# --- found by a scan --------------------------------------------------------------------------------------------------


def test_found_at_a_start_and_old_is_complete() -> None:
    assert World().look(age_s=5.0, found="scan") == Complete("scan")


def test_found_at_a_start_and_young_waits_for_what_is_left() -> None:
    world = World()
    assert world.look(age_s=2.0, found="scan") == Waiting()
    assert world.next_in_s() == 3.0
    assert world.at(3).look(age_s=5.0, found="event") == Complete("scan")


def test_found_at_a_start_and_open_waits() -> None:
    world = World()
    assert world.look(writers=Writers(held=("fraud/w",)), found="scan") == Waiting("fraud/w")
    assert world.next_in_s() == 5.0
    assert world.at(5).look(found="event") == Complete("scan")


def test_found_by_a_later_scan_it_came_while_it_was_watched() -> None:
    assert World().look(found="event") == Complete("event")


# --- announced once ---------------------------------------------------------------------------------------------------


def test_the_same_signature_is_announced_once() -> None:
    world = World()
    assert world.look() == Complete("event")
    assert world.look() == Unchanged()
    world.hear(Renamed("", "fraud"))
    assert world.look() == Unchanged()
    assert world.look(signature="v2") == Complete("event")


def test_what_was_known_before_a_restart_is_not_announced() -> None:
    world = World({"fraud": "v1"})
    assert world.look(found="scan") == Unchanged()
    assert world.look(signature="v2", found="scan") == Complete("scan")


def test_again_announces_once_more_as_it_came() -> None:
    world = World()
    assert world.look(found="scan") == Complete("scan")
    world.settling.again("fraud", "scan", world.now_s)
    assert world.due() == {"fraud"}
    assert world.look(found="event") == Complete("scan")


def test_what_is_gone_is_remembered_up_to_a_limit() -> None:
    world = World({f"m{n}": n for n in range(5)})
    world.settling.keep_only(frozenset({"m0"}), limit=5)
    assert world.look("m4", signature=4) == Unchanged()
    world.settling.keep_only(frozenset({"m0"}), limit=4)
    assert world.look("m0", signature=0) == Unchanged()
    assert world.look("m4", signature=4) == Complete("event")


# --- lost events, removed entries, bounds -----------------------------------------------------------------------------


def test_lost_events_take_the_privilege_of_a_rename_away_but_not_the_look() -> None:
    world = World().hear(Renamed("", "fraud"))
    world.settling.lose(world.now_s)
    assert world.due() == {"fraud"}
    assert world.look() == Waiting()
    assert world.at(5).look() == Complete("event")


def test_a_removed_entry_is_looked_at_at_once_and_then_forgotten() -> None:
    world = World().hear(Created("fraud/w"), Written("fraud/w"), Removed("fraud"))
    assert world.due() == {"fraud"}
    world.settling.begin("fraud")
    world.settling.rest("fraud")
    assert world.next_in_s() is None and world.settling._touches == {}


def test_hidden_and_temporary_entries_are_never_looked_at() -> None:
    world = World().hear(Created(".t"), Written(".t"), Created("x.part"), Written("x.part"), Closed("x.part"))
    assert world.at(100).due() == set()
    assert world.next_in_s() is None
    world.hear(Closed(".t"))
    assert world.settling._touches == {}


def test_an_entry_at_rest_leaves_nothing_behind() -> None:
    world = World().hear(*(Renamed("", f"m{n}") for n in range(500)))
    assert len(world.due()) == 500
    for n in range(500):
        assert world.look(f"m{n}") == Complete("event")
    assert world.settling._touches == {}


@pytest.mark.parametrize(
    ("path", "bucket"),
    [("a", "a"), ("a/b", "a"), ("a/12", "a/12"), ("a/12/w/x", "a/12"), ("a/012/w", "a"), ("a/0", "a"), ("12/w", "12")],
)
def test_what_an_event_counts_for(path: str, bucket: str) -> None:
    assert bucket_of(path) == bucket
    assert is_bucket(path) == (path == bucket)


# --- properties -------------------------------------------------------------------------------------------------------

_PATHS = st.sampled_from(["m", "m/w", "m/_SUCCESS", "m/1", "m/1/w", "m/2/w", ".t", ".t/w", "n.npy"])
_EVENTS = st.one_of(
    st.builds(Created, _PATHS),
    st.builds(Written, _PATHS),
    st.builds(Adjusted, _PATHS),
    st.builds(Closed, _PATHS),
    st.builds(Removed, _PATHS),
    st.builds(Renamed, st.one_of(st.just(""), _PATHS), st.one_of(st.just(""), _PATHS)),
)


class SettlingMachine(RuleBasedStateMachine):
    """Any events in any order, one item, a model of what is true; the item is looked at only when it is due."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.t = 0.0
        self.changed_s = -1e9
        self.content = 0
        self.announced: int | None = None
        self.open = False

    @rule(event=_EVENTS)
    def hear(self, event: FileEvent) -> None:
        self.world.hear(event)

    @rule(dt=st.floats(0.1, 20.0))
    def tick(self, dt: float) -> None:
        self.t += dt
        self.world.at(self.t)

    @rule()
    def write(self) -> None:
        self.open, self.content, self.changed_s = True, self.content + 1, self.t
        self.world.hear(Written("m/w"))

    @precondition(lambda self: self.open)
    @rule()
    def close(self) -> None:
        self.open = False
        self.world.hear(Closed("m/w"))

    @rule()
    def look_if_due(self) -> None:
        if "m" not in self.world.due():
            return
        held = Writers(held=("m/w",)) if self.open else NOBODY
        verdict = self.world.look("m", self.content, age_s=self.t - self.changed_s, writers=held)
        if isinstance(verdict, Complete):
            assert not self.open
            assert self.content != self.announced
            self.announced = self.content
        if isinstance(verdict, Unchanged):
            assert self.content == self.announced

    @invariant()
    def a_change_is_never_forgotten(self) -> None:
        """Whatever was written and not announced is going to be looked at: no event is needed, only time."""
        if getattr(self, "content", 0) and self.content != self.announced:
            assert self.world.next_in_s() is not None

    def teardown(self) -> None:
        """When all is closed and quiet, what is there gets announced within two waits."""
        if not getattr(self, "content", 0):
            return
        if self.open:
            self.close()
        for _ in range(3):
            self.tick(SETTLE_S + 0.1)
            self.look_if_due()
        assert self.announced == self.content


TestSettlingMachine = SettlingMachine.TestCase


@given(st.lists(st.tuples(_EVENTS, st.floats(0, 3)), max_size=30))
def test_no_events_make_a_held_file_complete(events: list[tuple[FileEvent, float]]) -> None:
    world, t = World(), 0.0
    for event, dt in events:
        t += dt
        world.at(t).hear(event)
        assert not isinstance(world.look("m", age_s=0.5, writers=Writers(held=("m/w",))), Complete)


@given(st.lists(st.tuples(_EVENTS, st.floats(0, 3)), max_size=30))
def test_the_next_look_is_never_later_than_the_wait(events: list[tuple[FileEvent, float]]) -> None:
    world, t = World(), 0.0
    for event, dt in events:
        t += dt
        world.at(t).hear(event)
        next_s = world.next_in_s()
        assert next_s is None or next_s <= t + SETTLE_S + 1e-6
