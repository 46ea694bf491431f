"""Rollouts under virtual time: the real core, hosts that die and are cut off, holders that change in the middle.

What must hold, and is judged here from the hosts' own disks rather than from what they reported:

- half-flipped: a `together` is decided only while every member that it requires has staged and validated that very
  digest, no host switches to a version before the catalog said so to it, and in the end every host that did not refuse
  the version runs what was decided;
- past a failed gate: a wave goes on only after a whole soak under one holder, at whose end the gate was asked and was
  well, and with no failed answer in between;
- no rollout stays open for ever.

The election itself is tests/sim/schedule.py's; here a new holder just appears, with a higher epoch, while the old one
may still act on what it decided before.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from modelsync.core import catalog, policy
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.errors import PolicyRefusal
from modelsync.core.ids import ZERO_ID, Digest, EntryId, ModelName, Version
from modelsync.core.rollout import orders as rollout_orders
from modelsync.core.rollout import record as rollout
from modelsync.core.rollout import steps as rollout_steps
from modelsync.core.rollout.orders import Start
from modelsync.core.rollout.record import Gate, Plan
from modelsync.core.rollout.steps import AskGate, GateAnswered, Looked, Said, Watch, Write

MODEL = ModelName("fraud")
STRAGGLER_S, SOAK_S, LOST_AFTER_S, TTL_S = 10.0, 6.0, 10.0, 2.0
TROUBLE_S, QUIET_S = 90.0, 240.0
GATE = Gate("http://prometheus", "errors", 0.5)


@dataclass(frozen=True)
class Outcome:
    """One schedule, and what it exercised."""

    seed: int
    violations: tuple[str, ...]
    rollouts: int
    flipped: int
    aborted: int
    rolled_back: int
    waves_passed: int
    takeovers: int
    lines: tuple[str, ...] = ()


@dataclass
class Host:
    """One node: what lies on its disk, and what it has read."""

    name: str
    alive: bool = True
    cut: bool = False
    record: ModelRecord = field(default_factory=lambda: ModelRecord(MODEL))
    staged: set[Digest] = field(default_factory=set)
    staging: set[Digest] = field(default_factory=set)
    rejected: dict[Digest, str] = field(default_factory=dict)
    active: Version | None = None
    watch: Watch | None = None
    waiting: deque[Looked | GateAnswered] | None = None
    """Not None: a decision is on its way to Redis, and these came meanwhile."""
    epoch: int = 0
    """Of the lease that it believes to hold; 0: none."""

    @property
    def reachable(self) -> bool:
        return self.alive and not self.cut


class World:
    """Redis, the hosts, and a heap of things to happen."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.dice = random.Random(seed)
        self.now_s = 0.0
        self.lines: list[str] | None = [] if trace else None
        self.violations: list[str] = []
        self.hosts = {name: Host(name) for name in "abcdefgh"[: self.dice.randint(3, 8)]}
        self.truth = ModelRecord(MODEL)
        self.epoch, self.seq = 0, 0
        self.holder = ""
        self.said: dict[str, tuple[float, Said]] = {}
        self.bad: dict[Digest, set[str]] = {}
        """Digest to the hosts whose validation refuses it."""
        self.sick: dict[Digest, set[str]] = {}
        """Digest to the hosts that turn it down after the switch."""
        self.gate_bad: dict[Digest, bool] = {}
        self.told: dict[str, set[Version]] = {name: set() for name in self.hosts}
        self.asked: list[tuple[float, bool]] = []
        self.phase_s = 0.0
        self.counts = dict.fromkeys(("rollouts", "flipped", "aborted", "rolled_back", "waves_passed", "takeovers"), 0)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.quiet = False

    # --- time --------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._count, action))

    def run(self, until_s: float) -> None:
        while self._heap and self._heap[0][0] <= until_s and not self.violations:
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
        self.now_s = until_s

    def trace(self, line: str) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now_s:8.3f}  {line}")

    def violated(self, what: str) -> None:
        self.trace(f"VIOLATED {what}")
        self.violations.append(f"{self.now_s:.3f} s: {what}")

    # --- the lease ---------------------------------------------------------------------------------------------------

    def elect(self) -> None:
        """Whoever is there takes over from a holder that is not."""
        self.after(self.dice.uniform(0.2, TTL_S), self.elect)
        current = self.hosts.get(self.holder)
        if current is not None and current.reachable and current.epoch == self.epoch:
            return
        fit = [host for host in self.hosts.values() if host.reachable]
        if not fit:
            return
        host = self.dice.choice(fit)
        self.epoch, self.seq, self.holder = self.epoch + 1, 0, host.name
        self.counts["takeovers"] += 1
        host.epoch, host.watch = self.epoch, None
        self.trace(f"{host.name} holds the lease, epoch {self.epoch}")
        self.phase_s, self.asked = self.now_s, []

    def write(self, epoch: int, change: Callable[[ModelRecord, EntryId], ModelRecord]) -> None:
        """A fenced change: Redis refuses every epoch but the last."""
        if epoch != self.epoch:
            return
        before, at = self.truth, EntryId(self.epoch, self.seq + 1)
        try:
            after = change(before, at)
        except PolicyRefusal:
            return
        self.seq += 1
        self._judge_write(before, after)
        self.truth = after
        for name in self.hosts:
            wish = policy.wanted(after, None, name).version
            if wish is not None:
                self.told[name].add(wish)

    # --- hosts -------------------------------------------------------------------------------------------------------

    def tick(self, host: Host) -> None:
        self.after(self.dice.uniform(0.1, 1.0), lambda: self.tick(host))
        if not host.alive:
            return
        if not host.cut:
            host.record = self.truth
        self.act(host)
        if not host.cut:
            self.said[host.name] = (self.now_s, self.report(host))
            if self.dice.random() < 0.3:
                self.look(self.hosts[self.holder] if self.holder else host)
        self.look(host)

    def act(self, host: Host) -> None:
        record = host.record
        wish = policy.wanted(record, None, host.name).version
        if wish is not None and wish != host.active:
            digest = record.versions[wish].digest
            if digest in host.staged - host.rejected.keys():
                self.switch(host, wish, digest)
            self.stage(host, digest)
        if record.rollout is not None and record.rollout.open:
            self.stage(host, record.rollout.digest)

    def stage(self, host: Host, digest: Digest) -> None:
        if digest in host.staged | host.staging or digest in host.rejected:
            return
        host.staging.add(digest)
        slow = self.dice.random() < 0.03 and not self.quiet
        self.after(self.dice.uniform(20, 40) if slow else self.dice.expovariate(2), lambda: self.staged(host, digest))

    def staged(self, host: Host, digest: Digest) -> None:
        if digest not in host.staging:
            return  # the host died meanwhile
        host.staging.discard(digest)
        if host.name in self.bad.get(digest, ()):
            host.rejected[digest] = "did not load"
        else:
            host.staged.add(digest)

    def switch(self, host: Host, number: Version, digest: Digest) -> None:
        if number not in self.told[host.name]:
            self.violated(f"{host.name} switched to {number}, which nobody had told it to run")
        before, host.active = host.active, number
        self.trace(f"{host.name} runs {number}")
        if host.name in self.sick.get(digest, ()):
            self.after(self.dice.uniform(0.2, 1.5), lambda: self.fell_ill(host, number, digest, before))

    def fell_ill(self, host: Host, number: Version, digest: Digest, before: Version | None) -> None:
        if host.alive and host.active == number and before is not None:
            host.rejected[digest] = "servers failed"
            host.active = before

    def report(self, host: Host) -> Said:
        roll = host.record.rollout
        is_open = roll is not None and roll.open
        known = roll is not None and is_open and roll.digest in host.staged | host.rejected.keys()
        return Said(
            host.name,
            active=host.active,
            acked=roll.id if roll is not None and known else None,
            digest=roll.digest if roll is not None and known else None,
            staged=roll is not None and known and roll.digest in host.staged,
            refused=host.rejected.get(roll.digest, "") if roll is not None and known else "",
        )

    # --- the holder --------------------------------------------------------------------------------------------------

    def look(self, host: Host) -> None:
        if host.epoch == 0 or not host.reachable:
            return
        if host.epoch != self.epoch:
            host.epoch, host.watch = 0, None  # it has read the lease: another node has it
            return
        self.step(host, Looked(self.reports()))

    def reports(self) -> dict[str, Said]:
        return {name: replace(said, lost=self.now_s - at_s > LOST_AFTER_S) for name, (at_s, said) in self.said.items()}

    def step(self, host: Host, event: Looked | GateAnswered) -> None:
        if host.waiting is not None:
            if isinstance(event, GateAnswered):
                host.waiting.append(event)
            return
        roll = self.truth.rollout
        if roll is None or not roll.open:
            return
        watch = rollout_steps.watched(roll, host.watch, self.now_s)
        host.watch, effects = rollout_steps.step(watch, event, self.now_s)
        for effect in effects:
            if isinstance(effect, Write):
                pause_s = self.dice.uniform(0, 4) if self.dice.random() < 0.05 else 0.0
                epoch = host.epoch
                host.waiting = deque()
                self.after(pause_s, lambda effect=effect, epoch=epoch: self.written(host, effect, epoch))
            elif isinstance(effect, AskGate):
                self.ask(host, roll.digest)

    def written(self, host: Host, effect: Write, epoch: int) -> None:
        self.write(epoch, lambda record, at: rollout_orders.advanced(record, effect, at))
        waiting, host.waiting = host.waiting or deque(), None
        if host.epoch == epoch:
            for event in waiting:
                self.step(host, event)

    def ask(self, host: Host, digest: Digest) -> None:
        asked_s, chance = self.now_s, self.dice.random()
        healthy = None if chance < 0.1 else not self.gate_bad.get(digest, False)
        epoch = host.epoch

        def answered() -> None:
            if host.alive and host.epoch == epoch == self.epoch:
                if healthy is not None and asked_s >= self.phase_s:  # else it was asked of another phase
                    self.asked.append((asked_s, healthy))
                self.step(host, GateAnswered(healthy, "errors above the limit", asked_s))

        self.after(self.dice.uniform(0.01, 2.0), answered)

    # --- judgement ---------------------------------------------------------------------------------------------------

    def _judge_write(self, before: ModelRecord, after: ModelRecord) -> None:
        old, new = before.rollout, after.rollout
        if new is None or new == old:
            return
        self.trace(f"rollout {new.version} {new.strategy}: {new.state} {new.wave + 1} {new.reason}")
        begun = old is None or old.id != new.id
        if old is not None and new.id < old.id:
            self.violated(f"the rollout of {new.version} came back after that of {old.version} had taken its place")
        if begun:
            self.counts["rollouts"] += 1
        elif new.strategy == rollout.TOGETHER and new.state == rollout.MOVING:
            self._judge_flip(new)
        elif new.strategy == rollout.WAVES and new.state in (rollout.WAVE, rollout.DONE):
            self._judge_wave(new)
        if new.state in (rollout.ABORTED, rollout.ROLLED_BACK) and not begun:
            self.counts[new.state] += 1
        self.phase_s, self.asked = self.now_s, []

    def _judge_flip(self, new: rollout.Rollout) -> None:
        self.counts["flipped"] += 1
        for name in new.members:
            host = self.hosts[name]
            if new.digest not in host.staged or host.name in self.bad.get(new.digest, ()):
                self.violated(f"half-flipped: {new.version} was decided while {name} had not staged and validated it")

    def _judge_wave(self, new: rollout.Rollout) -> None:
        self.counts["waves_passed"] += 1
        if self.now_s - self.phase_s < SOAK_S - 1e-6:
            self.violated(f"a wave of {new.version} went on after {self.now_s - self.phase_s:.2f} s of its soak")
        if not any(healthy and asked_s >= self.phase_s + SOAK_S - 1e-6 for asked_s, healthy in self.asked):
            self.violated(f"a wave of {new.version} went on though the gate had not passed after its soak")
        if any(not healthy for _, healthy in self.asked):
            self.violated(f"a wave of {new.version} went on past a failed gate")

    def judge_end(self) -> None:
        roll = self.truth.rollout
        if roll is not None and roll.open:
            self.violated(f"the rollout of {roll.version} is still {roll.state}")
        for host in self.hosts.values():
            wish = policy.wanted(self.truth, None, host.name).version
            if wish is None or host.active == wish or self.truth.versions[wish].digest in host.rejected:
                continue
            self.violated(f"half-flipped: in the end {host.name} runs {host.active}, not {wish}")


# --- what people and fate do -----------------------------------------------------------------------------------------


def _publish(world: World, digest: Digest, strategy: str) -> None:
    number = Version((world.truth.head or 0) + 1)

    def change(record: ModelRecord, at: EntryId) -> ModelRecord:
        entry = VersionRecord(digest=digest, content=digest, id=at, size_bytes=1, created_ms=0)
        return rollout_orders.published(record, number, entry, _start(world, strategy))

    world.write(world.epoch, change)


def _start(world: World, strategy: str) -> Start:
    living = sorted(name for name, said in world.reports().items() if not said.lost) or [world.holder]
    plan = Plan(
        strategy=strategy,
        straggler_s=STRAGGLER_S,
        soak_s=SOAK_S,
        canaries=(living[0],),
        waves_percent=(50,),
        gate=GATE,
    )
    return Start(plan, living)


def _order(world: World) -> None:
    """Somebody publishes, asks for an earlier version's rollout, stops one, or rolls back."""
    dice, chance = world.dice, world.dice.random()
    strategy = dice.choice((rollout.TOGETHER, rollout.TOGETHER, rollout.WAVES, rollout.EACH))
    if chance < 0.6 or world.truth.head is None:
        digest = Digest(bytes([dice.randrange(256) for _ in range(4)]) * 8)
        names = list(world.hosts)
        world.bad[digest] = {name for name in names if dice.random() < 0.04}
        world.sick[digest] = {name for name in names if dice.random() < 0.04}
        world.gate_bad[digest] = dice.random() < 0.15
        _publish(world, digest, strategy)
        if dice.random() < 0.2:
            bad_from = dice.uniform(2, 40)
            world.after(bad_from, lambda: world.gate_bad.update({digest: True}))
    elif chance < 0.75:
        target = dice.choice(sorted(world.truth.versions))
        world.write(world.epoch, lambda record, at: rollout_orders.begun(record, target, _start(world, strategy), at))
    elif chance < 0.85:
        world.write(world.epoch, lambda record, at: rollout_orders.stopped(record, "alice", at))
    else:
        world.write(world.epoch, lambda record, at: catalog.rolled_back(record, None, at))


def _trouble(world: World) -> None:
    host = world.dice.choice(list(world.hosts.values()))
    kind = world.dice.random()
    if kind < 0.5:
        world.trace(f"{host.name} dies")
        host.alive, host.epoch, host.watch, host.waiting = False, 0, None, None
        host.staging.clear()
        world.after(world.dice.expovariate(0.15), lambda: setattr(host, "alive", True))
    else:
        world.trace(f"{host.name} is cut off")
        host.cut = True
        world.after(world.dice.expovariate(0.2), lambda: setattr(host, "cut", False))


def run(seed: int, *, trace: bool = False) -> Outcome:
    """One schedule: trouble for a while, then quiet, in which everything must come to its end."""
    world = World(seed, trace=trace)
    for host in world.hosts.values():
        world.after(world.dice.random(), lambda host=host: world.tick(host))
    world.elect()
    for _ in range(world.dice.randint(2, 7)):
        world.after(world.dice.uniform(0.5, TROUBLE_S), lambda: _order(world))
    for _ in range(world.dice.randint(0, 8)):
        world.after(world.dice.uniform(0, TROUBLE_S), lambda: _trouble(world))
    world.run(TROUBLE_S)
    world.quiet = True
    for host in world.hosts.values():
        host.alive, host.cut = True, False
    world.run(TROUBLE_S + QUIET_S)
    if not world.violations and world.truth.id > ZERO_ID:
        world.judge_end()
    return Outcome(seed, tuple(world.violations), **world.counts, lines=tuple(world.lines or ()))
