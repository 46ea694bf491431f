"""Virtual time, nodes that run the real core, a modelled Redis, and everything that can go wrong between them.

A node here does what runtime.elector, book and publisher do, with the same order of effects, and nothing else: every
decision is core's. Where a link is fast and whole, a call to Redis is one step of virtual time, which is what makes
hundreds of schedules a second possible; on a slow or broken link request, execution, answer and time-out are events of
their own.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from modelsync.core.election import machine as election
from modelsync.core.election import messages as msg
from modelsync.core.election import promise
from modelsync.core.election import state as election_state
from modelsync.core.election.candidacy import Eligibility, Rival
from modelsync.core.election.lease import Authority, Timing
from modelsync.core.election.promise import Promise
from modelsync.core.election.state import Role, State
from modelsync.core.ids import ZERO_ID, EntryId, NodeId
from tests.sim.oracle import Oracle
from tests.sim.redis_model import Data, Record, RedisModel, Written, fenced

TIMING = Timing(ttl_s=1.0, heartbeat_s=0.2)
LEASE_TIMEOUT_S = 0.1
CATALOG_TIMEOUT_S = 0.4
PEER_TIMEOUT_S = 0.4


@dataclass
class Disk:
    """What survives a power cut."""

    members: frozenset[str]
    grant: Authority | None = None
    applied: EntryId = ZERO_ID
    record: Record = field(default_factory=Record)
    held: set[str] = field(default_factory=set)
    """Contents whose bytes lie here. The record may name others: what nobody holds must stop nobody."""


@dataclass
class Link:
    """One direction-less path to Redis or, as a pair of names, one direction between two nodes."""

    cut: bool = False
    answers_lost: bool = False
    delay_s: float = 0.0
    """Above 0: each request and each answer takes up to this long, at random."""

    @property
    def fast(self) -> bool:
        return not (self.cut or self.answers_lost or self.delay_s)


FAST = Link()


class World:
    """One schedule: a heap of things to happen, and who is there."""

    def __init__(self, names: tuple[str, ...], seed: int, *, trace: bool = False) -> None:
        self.dice = random.Random(seed)
        self.now_s = 0.0
        self.oracle = Oracle()
        self.lines: list[str] | None = [] if trace else None
        self.redis: RedisModel | None = RedisModel()
        self.other_redis: dict[str, RedisModel] = {}
        """For a while after a Sentinel failover some nodes may still talk to the old master."""
        self.links: dict[str, Link] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.nodes = {name: Node(self, name, names) for name in names}
        for node in self.nodes.values():
            node.start()

    # --- time --------------------------------------------------------------------------------------------------------

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (time_s, self._count, action))

    def run(self, until_s: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; stop early at a violation, or when ``done`` says so."""
        heap, oracle = self._heap, self.oracle
        while heap and heap[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(heap)
            oracle.now_s = self.now_s
            action()
            if oracle.violations:
                return False
            if done is not None and done():
                return True
        self.now_s = until_s
        return False

    def trace(self, line: str) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now_s:8.3f}  {line}")

    # --- Redis -------------------------------------------------------------------------------------------------------

    def server(self, name: str) -> RedisModel | None:
        return self.other_redis.get(name, self.redis)

    def keep_history(self) -> None:
        if self.redis is not None:
            self.redis.history.append((self.now_s, self.redis.data))

    def redis_loses(self, data: Data) -> None:
        self.oracle.intact = False
        if self.redis is not None:
            self.redis.data = data

    # --- between nodes -----------------------------------------------------------------------------------------------

    def reachable(self, source: str, target: str) -> bool:
        return (source, target) not in self.cuts

    def send(self, source: Node, target_key: str, action: Callable[[Node], None]) -> None:
        """Deliver a message to a node's process, if the way is open; a stopped process takes it later."""
        if not self.reachable(source.key, target_key):
            return
        delay_s = self.dice.uniform(0.0005, 0.004)
        if self.dice.random() < 0.02:
            delay_s += self.dice.uniform(0, 0.6)
        target = self.nodes[target_key]
        self.at(self.now_s + delay_s, lambda: target.alive and target.soon(lambda: action(target)))

    def holders(self) -> list[tuple[str, Authority]]:
        found = []
        for node in self.nodes.values():
            if node.alive and node.state.authority is not None and (authority := node.authority()) is not None:
                found.append((node.key, authority))
        return found


class Node:
    """One machine with at most one process on it."""

    def __init__(self, world: World, key: str, members: tuple[str, ...], name: str = "") -> None:
        self.world = world
        self.key = key
        self.name = NodeId(name or key)
        self.disk = Disk(frozenset(members))
        self.process = 0
        self.alive = False
        self.stopped = False
        self.deferred: list[Callable[[], None]] = []
        self.offset_s = world.dice.uniform(0, 1e6)
        self.rate = 1 + world.dice.uniform(-1e-4, 1e-4)
        self.suspended_s = 0.0
        self.wall_jump_s = 0.0
        self.eligibility = Eligibility()

    # --- the machine -------------------------------------------------------------------------------------------------

    def boottime_s(self) -> float:
        return self.offset_s + self.world.now_s * self.rate

    def clock_s(self) -> float:
        """The clock that the product uses: CLOCK_BOOTTIME."""
        return self.boottime_s()

    def start(self) -> None:
        self.process += 1
        self.alive, self.stopped = True, False
        self.deferred = []
        self.grant = self.disk.grant
        self.todo: deque[msg.Effect] = deque()
        self.busy = 0
        self.calls = 0
        self.catalog_busy = False
        self.office: Authority | None = None
        self.unsettled: tuple[EntryId, EntryId, Written] | None = None
        self.sent = 0
        """How often it was sent: more than once means that an answer was lost."""
        self.copies: dict[EntryId, set[str]] = {}
        self.published = 0
        self.wake_s = 0.0
        highest = max(self.disk.grant.epoch if self.disk.grant else 0, self.disk.applied.epoch)
        self.state = State(
            node=self.name,
            incarnation=f"{self.key}{self.process}",
            timing=TIMING,
            highest=highest,
            applied=self.disk.applied,
            predecessor=self.disk.grant,
            eligibility=self.eligibility,
        )
        dice = self.world.dice
        self.later(dice.uniform(0, TIMING.heartbeat_s), self.beat)
        self.later(dice.uniform(0, 0.3), self.sync)
        self.later(dice.uniform(0, 0.3), self.write)

    def crash(self, *, disk_lost: bool = False) -> None:
        self.world.trace(f"{self.key} dies{' with its disk' if disk_lost else ''}")
        self.alive = False
        self.process += 1
        if disk_lost:
            self.disk = Disk(self.disk.members)
            oracle = self.world.oracle
            oracle.whole = False
            oracle.highest.pop(self.key, None)
            oracle.promised = {k: v for k, v in oracle.promised.items() if k[0] != self.key}

    def stop(self, *, suspend: bool = False) -> None:
        if self.alive and not self.stopped:
            self.world.trace(f"{self.key} {'is suspended' if suspend else 'is stopped'}")
            self.stopped = True
            self.stopped_at_s = self.world.now_s if suspend else None

    def go_on(self) -> None:
        if not self.alive or not self.stopped:
            return
        self.world.trace(f"{self.key} goes on")
        self.stopped = False
        if self.stopped_at_s is not None:
            self.suspended_s += self.world.now_s - self.stopped_at_s
        waiting, self.deferred = self.deferred, []
        for action in waiting:
            self.soon(action)

    def soon(self, action: Callable[[], None]) -> None:
        """Do it in this process now, or when it goes on."""
        if self.stopped:
            self.deferred.append(action)
        elif self.alive:
            action()

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        process = self.process

        def due() -> None:
            if self.process == process and self.alive:
                self.soon(action) if self.stopped else action()

        self.world.at(self.world.now_s + delay_s, due)

    # --- the election ------------------------------------------------------------------------------------------------

    def authority(self) -> Authority | None:
        return election_state.writing_authority(self.state, self.clock_s())

    def beat(self) -> None:
        self.later(TIMING.heartbeat_s / self.rate, self.beat)
        self.tick()

    def tick(self) -> None:
        if not self.busy:
            self.feed(msg.Ticked())
            self.pump()
        if self.state.authority is not None and self.authority() is not None:
            self.world.oracle.may_write(self.world.holders())

    def feed(self, event: msg.Event) -> None:
        before = self.state
        self.world.steps += 1
        self.state, effects = election.step(before, event, self.clock_s())
        state = self.state
        if state.role is not before.role:
            self.world.trace(f"{self.key} {before.role.value} -> {state.role.value} (epoch {state.highest})")
        if state.authority is not None:
            self.world.oracle.knows(self.key, state.authority, state.highest)
        self.todo.extend(effects)

    def pump(self) -> None:
        while self.todo and not self.busy:
            effect = self.todo.popleft()
            _DOERS[type(effect)](self, effect)
        wake_s = election.wake_at_s(self.state)
        if wake_s is not None and self.wake_s < wake_s:
            delay_s = wake_s - self.clock_s()
            if 0 < delay_s < TIMING.heartbeat_s:
                self.wake_s = wake_s
                self.later(delay_s / self.rate + 1e-6, self.tick)

    def call(
        self,
        execute: Callable[[RedisModel], Any],
        done: Callable[[Any], None],
        failed: Callable[[], None],
    ) -> None:
        """One request on the lease's own connection; the loop waits for its end."""
        world = self.world
        link, server = world.links.get(self.key, FAST), world.server(self.key)
        if link.fast and server is not None:
            done(execute(server))
            return
        self.calls += 1
        number = self.busy = self.calls

        def end(action: Callable[[], None]) -> None:
            if self.busy == number:
                self.busy = 0
                action()
                self.pump()

        if server is None and world.dice.random() < 0.5:
            self.later(0.001, lambda: end(failed))  # connection refused
            return
        self.later(LEASE_TIMEOUT_S, lambda: end(failed))
        if link.cut or server is None:
            return
        world.at(
            world.now_s + world.dice.uniform(0, link.delay_s),
            lambda: self._executed(link, execute, lambda result: end(lambda: done(result))),
        )

    def _executed(self, link: Link, execute: Callable[[RedisModel], Any], answer: Callable[[Any], None]) -> None:
        """The request has arrived; it is executed even if nobody waits for it any more."""
        server = self.world.server(self.key)
        if server is None:
            return
        result = execute(server)
        if not link.answers_lost:
            self.later(self.world.dice.uniform(0, link.delay_s), lambda: answer(result))

    def do_read(self, effect: msg.ReadLease) -> None:
        self.call(
            RedisModel.read,
            lambda lease: self.feed(msg.LeaseRead(lease, self.grant)),
            lambda: self.feed(msg.ReadFailed()),
        )

    def do_acquire(self, effect: msg.AcquireLease) -> None:
        on_disk = self.disk.grant

        def done(reply: Any) -> None:
            if isinstance(reply, int):
                self.world.oracle.granted(self.key, Authority(reply, self.name, effect.nonce), on_disk)
                self.feed(msg.Granted(reply, effect.nonce))
            else:
                self.feed(msg.AcquireRefused(reply))

        name, observed, nonce, least = self.name, effect.observed, effect.nonce, effect.min_epoch
        self.call(
            lambda redis: redis.acquire(name, observed, nonce, least), done, lambda: self.feed(msg.AcquireFailed())
        )

    def do_renew(self, effect: msg.RenewLease) -> None:
        authority, sent_s = effect.authority, self.clock_s()
        self.call(
            lambda redis: redis.renew(authority, effect.seq),
            lambda lease: self.feed(
                msg.Renewed(authority, sent_s) if lease is None else msg.RenewRefused(authority, lease)
            ),
            lambda: self.feed(msg.RenewFailed(authority)),
        )

    def do_reassert(self, effect: msg.ReassertLease) -> None:
        authority, sent_s = effect.authority, self.clock_s()
        self.call(
            lambda redis: redis.reassert(authority, effect.seq),
            lambda lease: self.feed(
                msg.Renewed(authority, sent_s) if lease is None else msg.ReassertRefused(authority, lease)
            ),
            lambda: self.feed(msg.RenewFailed(authority)),
        )

    def do_release(self, effect: msg.ReleaseLease) -> None:
        self.call(lambda redis: redis.release(effect.authority, effect.successor), lambda _: None, lambda: None)

    def do_persist(self, effect: msg.PersistGrant) -> None:
        if self.accept(effect.authority):
            self.feed(msg.GrantPersisted(effect.authority, self.disk.members, self.disk.applied))
        else:
            self.feed(msg.GrantNotPersisted(effect.authority, "stale"))

    def accept(self, grant: Authority) -> bool:
        """The ledger: refuse, or remember on disk."""
        if promise.grant_refusal(self.grant, grant.epoch, grant.holder, grant.nonce) is not None:
            return False
        if grant != self.grant:
            self.world.oracle.promised_on_disk(self.key, grant)
            self.grant = grant
            self.persist(grant)
        return True

    def persist(self, grant: Authority) -> None:
        self.disk.grant = grant

    def do_step_down(self, effect: msg.StepDown) -> None:
        self.world.trace(f"{self.key} steps down from {effect.authority.epoch}: {effect.reason}")
        self.office = None
        self.unsettled = None
        self.copies = {}

    def do_alarm(self, effect: msg.RaiseAlarm) -> None:
        self.world.trace(f"{self.key} ALARM {effect}")

    # --- promises ----------------------------------------------------------------------------------------------------

    def do_collect(self, effect: msg.CollectPromises) -> None:
        for key in self.world.nodes:
            if key != self.key and self.world.nodes[key].name in effect.members:
                self.ask(key, effect.authority)

    def ask(self, key: str, authority: Authority) -> None:
        if self.state.authority != authority or self.state.round is None:
            return
        world, waiting = self.world, [True]
        name = world.nodes[key].name

        def silent() -> None:
            if waiting.pop() if waiting else False:
                self.feed(msg.PeerSilent(authority, name))
                self.pump()
                self.later(TIMING.heartbeat_s, lambda: self.ask(key, authority))

        def answered(answer: Promise) -> None:
            if waiting.pop() if waiting else False:
                self.feed(msg.Promised(authority, answer))
                self.pump()

        def asked(peer: Node) -> None:
            answer = peer.answer_promise(authority)
            world.send(peer, self.key, lambda _: answered(answer))

        refused = not world.nodes[key].alive and world.dice.random() < 0.5
        self.later(0.002 if refused else PEER_TIMEOUT_S, silent)
        world.send(self, key, asked)

    def do_show(self, effect: msg.ShowGrant) -> None:
        for key, node in self.world.nodes.items():
            if node.name == effect.holder and key != self.key:
                self.world.send(self, key, lambda holder: holder.answer_promise(effect.accepted) and None)

    def answer_promise(self, grant: Authority) -> Promise:
        if self.grant is None or grant.epoch >= self.grant.epoch:
            self.feed(msg.EpochSeen(grant.epoch, grant.holder, grant.nonce))
            self.pump()
        granted = self.accept(grant)
        known = self.grant
        assert known is not None
        return Promise(self.name, granted, known.epoch, known.holder, known.nonce, self.disk.applied)

    # --- taking office -----------------------------------------------------------------------------------------------

    def do_become(self, effect: msg.BecomePrimary) -> None:
        self.later(self.world.dice.uniform(0.001, 0.03), lambda: self.prepare(effect))

    def prepare(self, effect: msg.BecomePrimary) -> None:
        authority = effect.authority
        if self.state.authority != authority:
            return

        def failed() -> None:
            self.feed(msg.PrepareFailed(authority, "Redis or a peer was away"))
            self.pump()

        if effect.ahead is not None and not self._fetch_ahead(effect.ahead.nodes):
            failed()
            return
        server = self.world.server(self.key)
        if server is None or not self.world.links.get(self.key, FAST).fast:
            self.later(0.05, lambda: self.prepare(effect))
            return
        if not self.adopt(server.data):
            failed()
            return
        self.pull()
        self._enter(server, authority, failed)

    def _fetch_ahead(self, names: tuple[str, ...]) -> bool:
        for node in self.world.nodes.values():
            if node.name in names and node.alive and not node.stopped and self.reaches(node):
                self.take(node.disk.record)
                self.disk.applied = max(self.disk.applied, node.disk.applied)
                return True
        return False

    def _enter(self, server: RedisModel, authority: Authority, failed: Callable[[], None]) -> None:
        """The first entry of the term: everything this node knows, on top of whatever Redis has."""
        id = self.next_id(authority.epoch)
        lease = server.data.lease
        if self.authority() != authority or server.publish(
            authority, server.data.tail, id, self.disk.record.versions
        ) not in ("done", "repeat"):
            failed()
            return
        self.world.oracle.written_to_redis(authority, _same(lease, authority), id)
        self.disk.applied = id
        self.disk.record = Record(id, self.disk.record.versions)
        self.office = authority
        self.world.oracle.took_office(self.key, authority.epoch, self.disk.record.versions)
        self.world.trace(f"{self.key} takes office in {authority.epoch} with {sorted(self.disk.record.versions)}")
        self.feed(msg.Prepared(authority))
        self.pump()

    # --- publishing --------------------------------------------------------------------------------------------------

    def next_id(self, epoch: int) -> EntryId:
        applied = self.disk.applied
        return applied.next() if applied.epoch == epoch else EntryId(epoch, 1)

    def write(self) -> None:
        """Check the right to write, and some time later send: between the two a process can be stopped."""
        dice = self.world.dice
        self.later(dice.uniform(0.1, 0.4), self.write)
        authority = self.authority()
        if authority is None or authority != self.office or self.catalog_busy or self.state.role is not Role.PRIMARY:
            return
        if self.unsettled is None:
            versions = self.disk.record.versions
            number = max(versions, default=0) + 1
            id = self.next_id(authority.epoch)
            self.published += 1
            content = f"{self.key}{self.process}:{authority.nonce}#{self.published}"
            self.unsettled, self.sent = (self.disk.applied, id, Written(number, content, id)), 0
            self.disk.held.add(content)
        self.catalog_busy = True
        delay_s = dice.uniform(0, 0.5) if dice.random() < 0.1 else dice.uniform(0, 0.01)
        self.later(delay_s, lambda: self.send_write(authority))

    def send_write(self, authority: Authority) -> None:
        change = self.unsettled
        if change is None or authority != self.office:
            self.catalog_busy = False
            return
        after, id, written = change
        self.sent += 1

        def execute(redis: RedisModel) -> str:
            lease = redis.data.lease
            answer = redis.publish(authority, after, id, {written.version: written})
            if answer == "done":
                self.world.oracle.written_to_redis(authority, _same(lease, authority), id)
            return answer

        self.catalog_call(execute, lambda answer: self.written(authority, change, answer))

    def written(self, authority: Authority, change: tuple[EntryId, EntryId, Written], answer: str) -> None:
        if authority != self.office or self.unsettled is not change:
            return
        _, id, written = change
        if answer in ("done", "repeat"):
            self.unsettled = None
            if self.grant != authority:
                return  # promised away meanwhile: the next primary decides what this entry was
            self.disk.record = Record(id, {**self.disk.record.versions, written.version: written})
            self.disk.applied = id
            self.world.oracle.accepted(self.key, written)
            self.copies[id] = {self.name}
            self.acknowledged(self.name, authority, {id})
        elif answer == "behind":
            self.unsettled = None
            self.restore(authority)
        elif not self.may_stand(answer):
            self.unsettled = None

    def may_stand(self, refusal: str) -> bool:
        """Whether a refused write can have been executed before, by a try whose answer was lost."""
        return refusal == "lease" and self.sent > 1

    def restore(self, authority: Authority) -> None:
        """Redis lost entries: write all of the record, on top of what it has."""

        def execute(redis: RedisModel) -> EntryId | None:
            id, lease = self.next_id(authority.epoch), redis.data.lease
            answer = redis.publish(authority, redis.data.tail, id, self.disk.record.versions)
            if answer != "done":
                return None
            self.world.oracle.written_to_redis(authority, _same(lease, authority), id)
            return id

        def done(id: EntryId | None) -> None:
            if id is not None and authority == self.office and self.grant == authority:
                self.disk.record, self.disk.applied = Record(id, self.disk.record.versions), id

        if self.authority() == authority:
            self.catalog_call(execute, done)

    def catalog_call(self, execute: Callable[[RedisModel], Any], done: Callable[[Any], None]) -> None:
        """One request on the catalog's connection; no answer means that it is asked again later."""
        world = self.world
        link, server = world.links.get(self.key, FAST), world.server(self.key)
        if link.fast and server is not None:
            self.catalog_busy = False
            done(execute(server))
            return
        waiting = [True]

        def end(result: Any, answered: bool) -> None:
            if waiting.pop() if waiting else False:
                self.catalog_busy = False
                if answered:
                    done(result)

        self.catalog_busy = True
        self.later(CATALOG_TIMEOUT_S, lambda: end(None, False))
        if not link.cut and server is not None:
            world.at(
                world.now_s + world.dice.uniform(0, link.delay_s),
                lambda: self._executed(link, execute, lambda result: end(result, True)),
            )

    # --- following ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        self.later(0.3, self.sync)
        if self.state.authority is None and not self.catalog_busy:
            self.catalog_call(lambda redis: redis.data, self.synced)

    def synced(self, data: Data) -> None:
        if self.state.authority is None and self.adopt(data):
            self.pull()
            self.acknowledge_to(data.lease.holder)

    def adopt(self, data: Data) -> bool:
        """The receiver: check the grant that the catalog was read under, then take the catalog over."""
        lease = data.lease
        if lease.epoch == 0:
            return False
        if not self.accept(Authority(lease.epoch, NodeId(lease.holder), lease.nonce)):
            return False
        self.take(data.record)
        self.disk.applied = max(self.disk.applied, data.tail)
        return True

    def take(self, record: Record) -> None:
        mine = self.disk.record
        if record is not mine and record.id > mine.id:
            for number, written in record.versions.items():
                if mine.versions.get(number) is not written:
                    self.world.oracle.accepted(self.key, written)
            self.disk.record = record

    def pull(self) -> None:
        """Fetch the bytes of what the record names from whoever holds and serves them."""
        held = self.disk.held
        missing = {one.content for one in self.disk.record.versions.values() if one.content not in held}
        if not missing:
            return
        for node in self.world.nodes.values():
            if missing and node is not self and node.alive and not node.stopped and self.reaches(node):
                self.disk.held |= missing & node.disk.held
                missing -= node.disk.held

    def reaches(self, node: Node) -> bool:
        return self.world.reachable(self.key, node.key) and self.world.reachable(node.key, self.key)

    def acknowledge_to(self, holder: str) -> None:
        """Report: the term this node follows, and what it holds of its newest versions."""
        grant, name = self.grant, self.name
        newest = list(self.disk.record.versions.values())[-5:]
        held = {written.id for written in newest if written.content in self.disk.held}
        if grant is not None and held and holder != self.name and holder in self.world.nodes:
            self.world.send(self, holder, lambda node: node.acknowledged(name, grant, held))

    def acknowledged(self, name: str, grant: Authority, held: set[EntryId]) -> None:
        """Count copies, if whoever holds them still follows this very term."""
        if grant != self.office or grant != self.state.authority:
            return
        for id in held & self.copies.keys():
            self.copies[id].add(name)
            if len(self.copies[id]) >= promise.needed(len(self.disk.members)):
                del self.copies[id]
                for written in self.disk.record.versions.values():
                    if written.id == id:
                        self.world.oracle.acknowledge(written.version, written.content)

    # --- operators ---------------------------------------------------------------------------------------------------

    def release(self, successor: str = "") -> None:
        if self.alive and not self.stopped:
            self.world.trace(f"{self.key} is asked to release{' to ' + successor if successor else ''}")
            self.feed(msg.ReleaseAsked(successor))
            self.pump()

    def set_eligibility(self, *, excluded: str = "", paused: bool = False) -> None:
        rivals = tuple(Rival(node.name, node.disk.applied) for node in self.world.nodes.values())
        self.eligibility = Eligibility(excluded, paused, rivals)
        if self.alive:
            self.soon(lambda: self.feed(msg.EligibilityChanged(self.eligibility)))


def _same(lease: Any, authority: Authority) -> bool:
    """The oracle's own notion of the fence, so that a broken fence is seen."""
    return (lease.epoch, lease.holder, lease.nonce, lease.state) == (
        authority.epoch, authority.holder, authority.nonce, "held",
    )  # fmt: skip


_DOERS: dict[type, Callable[[Node, Any], None]] = {
    msg.ReadLease: Node.do_read,
    msg.AcquireLease: Node.do_acquire,
    msg.PersistGrant: Node.do_persist,
    msg.RenewLease: Node.do_renew,
    msg.ReassertLease: Node.do_reassert,
    msg.ReleaseLease: Node.do_release,
    msg.CollectPromises: Node.do_collect,
    msg.BecomePrimary: Node.do_become,
    msg.StepDown: Node.do_step_down,
    msg.ShowGrant: Node.do_show,
    msg.RaiseAlarm: Node.do_alarm,
}

__all__ = ["FAST", "TIMING", "Link", "Node", "World", "fenced"]
