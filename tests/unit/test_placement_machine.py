"""core.storage.placing as a fleet lives with it: hosts die, return, lose disks, fill up, leave; wishes change.

Hypothesis plays any order of these. Decisions see reports, not the truth: a report is as old as the last rule that
told it. Bytes are pairs of a share and a node.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from modelsync.core.storage import modes, placing
from modelsync.core.storage.modes import Demand, Placement
from modelsync.core.storage.placement import Place
from modelsync.core.storage.placing import Kept

NOBODY = Demand(())
AT_ONCE = 2


@dataclass
class Host:
    place: Place
    up: bool = True
    present: bool = True
    """Not silent for long enough to be replaced."""
    leaving: bool = False


@dataclass
class Model:
    sizes: tuple[int, ...]
    copies: int
    mode: modes.Mode = "partitioned"
    now: Placement = field(default_factory=Placement)


class Fleet(RuleBasedStateMachine):
    hosts = Bundle("hosts")
    models = Bundle("models")

    def __init__(self) -> None:
        super().__init__()
        self.host: dict[str, Host] = {}
        self.model: dict[str, Model] = {}
        self.held: dict[str, set[tuple[str, int]]] = {}
        self.told: dict[str, set[tuple[str, int]]] = {}
        self.wiped = False

    # --- what happens to it ------------------------------------------------------------------------------------------

    @initialize(target=hosts)
    def first(self) -> str:
        return self.join(1.0, "")

    @rule(target=hosts, weight=st.sampled_from([1.0, 4.0]), zone=st.sampled_from(["", "x", "y"]))
    def join(self, weight: float, zone: str) -> str:
        name = f"n{len(self.host)}"
        self.host[name] = Host(Place(name, weight, zone))
        self.held[name], self.told[name] = set(), set()
        return name

    @rule(target=models, sizes=st.lists(st.integers(0, 100), min_size=1, max_size=3), copies=st.integers(1, 3),
          host=hosts)  # fmt: skip
    def publish(self, sizes: list[int], copies: int, host: str) -> str:
        """On a living host, which has all of it."""
        name = f"m{len(self.model)}"
        alive = [each for each, state in self.host.items() if state.up and state.present]
        if alive:
            primary = host if host in alive else alive[0]
            self.model[name] = Model(tuple(sizes), copies)
            shares = {(name, share) for share in range(len(sizes))}
            self.held[primary] |= shares
            self.told[primary] |= shares
        return name

    @rule(host=hosts)
    def die(self, host: str) -> None:
        self.host[host].up = False

    @rule(host=hosts)
    def be_given_up(self, host: str) -> None:
        self.host[host].present = self.host[host].up

    @rule(host=hosts)
    def come_back(self, host: str) -> None:
        self.host[host].up = self.host[host].present = True

    @rule(host=hosts)
    def lose_its_disk(self, host: str) -> None:
        if not self.host[host].up:
            self.held[host].clear()
            self.wiped = True

    @rule(host=hosts, full=st.booleans())
    def fill_up(self, host: str, full: bool) -> None:
        self.host[host].place = replace(self.host[host].place, accepting=not full)

    @rule(host=hosts, leaving=st.booleans())
    def leave(self, host: str, leaving: bool) -> None:
        self.host[host].leaving = leaving

    @rule(model=models, copies=st.integers(1, 4))
    def want_copies(self, model: str, copies: int) -> None:
        if model in self.model:
            self.model[model].copies = copies

    @rule(model=models, mode=st.sampled_from(["replicated", "partitioned"]))
    def want_mode(self, model: str, mode: modes.Mode) -> None:
        if model in self.model:
            self.model[model].mode = mode

    # --- what it does ------------------------------------------------------------------------------------------------

    @rule(host=hosts)
    def report(self, host: str) -> None:
        if self.host[host].up:
            self.told[host] = set(self.held[host])

    @rule()
    def place(self) -> None:
        for name, placement in self._changes().items():
            self.model[name].now = placement

    @rule(host=hosts, data=st.data())
    def pull(self, host: str, data: st.DataObject) -> None:
        """One share that it must hold, from anybody who lives and has it."""
        missing = [share for share in self._due(host) if self._living(share)]
        if missing and self.host[host].place.accepting:
            self.held[host].add(data.draw(st.sampled_from(missing)))

    @rule(host=hosts)
    def let_go(self, host: str) -> None:
        if self.host[host].up:
            self._let_go(host)

    def _let_go(self, host: str) -> None:
        for share in sorted(self.held[host] - self._owned(host)):
            name, index = share
            holders = self._told(share)
            if modes.may_let_go(self.model[name].now, index, host, holders, in_store=False):
                self.held[host].discard(share)
                self.told[host].discard(share)
                if not self.wiped:
                    assert any(share in held for held in self.held.values()), f"{host} let the last copy of {share} go"

    def _owned(self, host: str) -> set[tuple[str, int]]:
        must = set()
        for name, model in self.model.items():
            every = range(len(model.sizes))
            if modes.holds(model.now, host, name, NOBODY):
                must |= {(name, share) for share in every}
            elif model.now.mode == "partitioned" and len(model.now.shares) == len(model.sizes):
                must |= {(name, share) for share in model.now.owned(host)}
        return must

    def _due(self, host: str) -> list[tuple[str, int]]:
        return sorted(self._owned(host) - self.held[host]) if self.host[host].up else []

    def _living(self, share: tuple[str, int]) -> set[str]:
        return {host for host, held in self.held.items() if share in held and self.host[host].up}

    def _told(self, share: tuple[str, int]) -> frozenset[str]:
        return frozenset(host for host, told in self.told.items() if share in told and self.host[host].up)

    def _changes(self) -> dict[str, Placement]:
        places = [
            replace(state.place, accepting=state.place.accepting and state.up)
            for state in self.host.values()
            if state.present and not state.leaving
        ]
        return placing.changes([self._kept(name) for name in self.model], places, AT_ONCE)

    def _kept(self, name: str) -> Kept:
        model = self.model[name]
        silent = frozenset(owner for owner in model.now.everyone if not self.host[owner].up)
        holders = tuple(self._told((name, share)) for share in range(len(model.sizes)))
        return Kept(name, model.sizes, model.now, model.mode, model.copies, holders, silent)

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def owners_are_known_and_no_more_than_asked_for(self) -> None:
        for name, model in self.model.items():
            if model.now.mode == "partitioned":
                for share in model.now.shares:
                    assert share and len(set(share)) == len(share) <= max(model.now.copies, 1), (name, share)
                    assert set(share) <= self.host.keys()

    @invariant()
    def nothing_is_lost_but_with_its_disk(self) -> None:
        for name, model in self.model.items() if not self.wiped else ():
            for share in range(len(model.sizes)):
                assert any((name, share) in held for held in self.held.values()), (name, share)

    def teardown(self) -> None:
        """Once everybody is back it comes to rest: every share on as many hosts as there can be, and no more moves."""
        for state in self.host.values():
            state.up = state.present = True
            state.leaving, state.place = False, replace(state.place, accepting=True)
        for _ in range(12 * len(self.model) + 12):
            self._round()
        assert not self._changes(), "it never comes to rest"
        for name, model in self.model.items():
            expected = len(self.host) if model.mode == "replicated" else min(model.copies, len(self.host))
            for index in range(len(model.sizes)):
                holders = self._living((name, index))
                assert len(holders) == expected or not holders, (name, index, holders, model)

    def _round(self) -> None:
        self.place()
        for host in self.host:
            self.held[host] |= {share for share in self._due(host) if self._living(share)}
            self.told[host] = set(self.held[host])
        for host in self.host:
            self._let_go(host)


class TestFleet(Fleet.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(
        max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
