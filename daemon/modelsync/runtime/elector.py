"""The election's loop: it waits, asks Redis, the disk and the peers, and hands what they say to core.election.machine.

Nothing is decided here. Events enter through ``_feed``, which is synchronous: from the instant at which a higher epoch
is known, ``authority`` is None, whatever request is still on its way. Effects are carried out one after another by the
loop; only promises and the preparation of a new primary run beside it, so that renewals go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog

from modelsync.core.election import machine as election
from modelsync.core.election import messages as msg
from modelsync.core.election.candidacy import Eligibility, Rival
from modelsync.core.election.lease import Timing
from modelsync.core.election.promise import Ahead, fencing
from modelsync.core.election.state import Role, State, writing_authority
from modelsync.core.errors import (
    IntegrityFault,
    LocalFault,
    ModelsyncError,
    PeerRefused,
    RedisUnavailable,
    RemoteFault,
    StaleEpoch,
)
from modelsync.core.ids import NodeId, node_id
from modelsync.ports import Authority, Clock, Coordinator, EpochLedger, LeaseView, Promise, PromisePeers

log = structlog.get_logger()

_FAULTS = (RemoteFault, IntegrityFault)
"""What Redis and peers may answer with; anything else is a fault of ours and ends the loop."""
PEER_TIMEOUT_HEARTBEATS = 2
"""How long one member is waited for before it counts as silent: a fleet of two waits that long for a dead one."""

_PREPARING: ContextVar[Authority | None] = ContextVar("preparing", default=None)


@dataclass(frozen=True, slots=True)
class ElectorIdentity:
    """Who this node is, and where others reach it."""

    node: NodeId
    url: str


@dataclass(frozen=True, slots=True)
class ElectorSettings:
    """``[lease]`` and what ``[node]`` says about promotion."""

    ttl_s: float = 3.0
    heartbeat_s: float = 0.25
    role: str = "auto"
    priority: int = 0
    nofailover: bool = False

    @property
    def excluded(self) -> str:
        """Why configuration keeps this node from being primary; empty: it does not."""
        if self.role == "replica":
            return "node.role is replica"
        return "node.nofailover is set" if self.nofailover else ""


async def _promoted(authority: Authority, ahead: Ahead | None) -> None:
    """The default for a node that has nothing to prepare."""


async def _demoted(reason: str) -> None:
    """The default for a node that has nothing to stop."""


class Elector:
    """One node's part in the election. Every method belongs to one event loop.

    ``on_promoted(authority, ahead)`` is awaited with the right to write, before the role becomes primary; ``ahead``
    says who holds something newer, to be fetched first. If it raises, the lease is given back. ``on_demoted(reason)``
    is awaited after the right is gone; it must not call ``release``.
    """

    def __init__(
        self,
        *,
        identity: ElectorIdentity,
        settings: ElectorSettings,
        coordinator: Coordinator,
        peers: PromisePeers,
        ledger: EpochLedger,
        clock: Clock,
        alarm: Callable[[str, str], None] = lambda kind, what: None,
    ) -> None:
        self.identity = identity
        self.settings = settings
        self.on_promoted: Callable[[Authority, Ahead | None], Awaitable[None]] = _promoted
        self.on_demoted: Callable[[str], Awaitable[None]] = _demoted
        self.beat = clock.boottime_s()
        """CLOCK_BOOTTIME of the last completed turn of the loop: what systemd's watchdog is fed by."""
        self._coordinator = coordinator
        self._peers = peers
        self._ledger = ledger
        self._clock = clock
        self._raise_alarm = alarm
        self._state = _initial(identity, settings, ledger)
        self._todo: deque[msg.Effect] = deque()
        self._wake = asyncio.Event()
        self._nudged = False
        self._turn = asyncio.Lock()
        self._beside: set[asyncio.Task[None]] = set()
        self._tick_s = self.beat
        self._fault: BaseException | None = None
        self._troubles: dict[str, str] = {}

    # --- what others ask ---------------------------------------------------------------------------------------------

    @property
    def authority(self) -> Authority | None:
        """The right to write at this very instant; None as soon as the own clock is past the lease's deadline.

        While a new primary prepares, only what ``on_promoted`` runs sees it: a publish that came in from outside
        before the node has fetched what is ahead would give a number a second content.
        """
        authority = writing_authority(self._state, self._clock.boottime_s())
        if self._state.role is Role.PRIMARY or authority == _PREPARING.get():
            return authority
        return None

    @property
    def role(self) -> str:
        """``replica``, ``candidate`` or ``primary``."""
        role = self._state.role
        return "candidate" if role is Role.ESTABLISHING else role.value

    @property
    def epoch(self) -> int:
        """The highest epoch this node knows of."""
        return self._state.highest

    @property
    def lease(self) -> LeaseView:
        """The lease as it was last seen."""
        return self._state.lease

    @property
    def holder_is_silent(self) -> bool:
        """Whether the lease has been seen, unchanged, for longer than it lasts: its holder is dead or cut off."""
        watch = self._state.watch
        return watch is not None and watch.last_s - watch.since_s > self._state.timing.ttl_s

    @property
    def follows(self) -> bool:
        """Whether another node holds the lease, and renews it."""
        lease = self.lease
        return lease.state == "held" and lease.holder != self.identity.node and not self.holder_is_silent

    @property
    def fencing(self) -> str:
        """``majority``, ``degraded`` (a fleet of two) or ``alone``."""
        return fencing(len(self._ledger.members | {self.identity.node}))

    def note_epoch(self, epoch: int, node: str = "") -> None:
        """``node`` used this epoch. A primary of a lower one has no authority when this returns."""
        self._feed(msg.EpochSeen(epoch, node))

    def set_eligibility(self, *, excluded: str = "", paused: bool = False, rivals: Sequence[Rival] = ()) -> None:
        """What the rest of the node knows about its fitness; configuration's own exclusions stay in force."""
        reason = self.settings.excluded or excluded
        self._feed(msg.EligibilityChanged(Eligibility(reason, paused, tuple(rivals))))

    def nudge(self) -> None:
        """Something was heard of the lease: look at it now rather than with the next heartbeat."""
        # A storm of announcements costs one read, and while a turn is under way one after it: a second read of the same
        # lease beside an acquire would start a second claim, and the first grant would be given back. None would be too
        # few: the turn may have read what the announcement says is over.
        if self._todo or self._turn.locked():
            self._nudged = True
        else:
            self._feed(msg.Ticked())

    async def note_members(self, members: frozenset[str]) -> None:
        """Remember who belongs to the fleet; majorities are counted of these. Raises DiskFull, DiskFailed."""
        await asyncio.to_thread(self._ledger.set_members, members | {self.identity.node})

    async def answer_promise(self, epoch: int, holder: NodeId, nonce: str) -> Promise:
        """Promise this grant, unless another was promised its epoch or a higher one. On disk before it is answered.

        Raises: DiskFull, DiskFailed: nothing was promised.
        """
        granted = True
        if epoch >= self._ledger.epoch:  # before the disk: what we promise away we do not use meanwhile
            self._feed(msg.EpochSeen(epoch, holder, nonce))
        try:
            await asyncio.to_thread(self._ledger.accept, epoch, holder, nonce)
        except StaleEpoch:
            granted = False
        ledger = self._ledger
        return Promise(self.identity.node, granted, ledger.epoch, ledger.holder, ledger.nonce, ledger.applied)

    async def release(self, successor: str = "") -> None:
        """Give the lease back, to ``successor`` if it is named; no authority from the first instant on.

        Returns when Redis was told and ``on_demoted`` has run. Raises nothing where Redis is away: the lease runs out.
        """
        self._feed(msg.ReleaseAsked(successor))
        await self._carry_out()

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled. Does not release: a cancelled loop may be a crash."""
        try:
            while True:
                self._feed(msg.Ticked())
                await self._until_next_heartbeat()
        finally:
            await self._stop_beside()

    async def _until_next_heartbeat(self) -> None:
        due_s = self._clock.boottime_s() + election.tick_every_s(self._state)
        while True:
            self._wake.clear()
            if self._fault is not None:
                raise self._fault  # a fault of ours, in what runs beside: end, and let systemd restart us
            await self._carry_out()
            self.beat = now_s = self._clock.boottime_s()
            wake_s = election.wake_at_s(self._state)
            if self._nudged:
                self._nudged = False
                return
            if now_s >= due_s or (wake_s is not None and now_s >= wake_s > self._tick_s):
                return
            until_s = due_s if wake_s is None or wake_s <= self._tick_s else min(due_s, wake_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_s - now_s):
                    await self._wake.wait()

    def _feed(self, event: msg.Event) -> None:
        now_s = self._clock.boottime_s()
        if isinstance(event, msg.Ticked):
            self._tick_s = now_s
        before = self._state
        self._state, effects = election.step(before, event, now_s)
        self._todo.extend(effects)
        if effects:
            self._wake.set()
        if before.role is not self._state.role:
            log.info("role.changed", role=self._state.role.value, was=before.role.value, epoch=self._state.highest)

    async def _carry_out(self) -> None:
        """Carry out what is to be done, one after another; replies add to it."""
        async with self._turn:
            while self._todo:
                effect = self._todo.popleft()
                await self._doers[type(effect)](self, effect)

    # --- effects -----------------------------------------------------------------------------------------------------

    async def _read(self, effect: msg.ReadLease) -> None:
        try:
            lease = await self._coordinator.read()
        except _FAULTS as error:
            self._note_trouble("lease", error)
            self._feed(msg.ReadFailed())
        else:
            self._troubles.pop("lease", None)
            if not self.holder_is_silent:
                self._troubles.pop("acquire", None)  # somebody holds it: it needs not be taken
            self._feed(msg.LeaseRead(lease, _accepted(self._ledger)))

    async def _acquire(self, effect: msg.AcquireLease) -> None:
        try:
            reply = await self._coordinator.acquire(effect.observed, effect.nonce, effect.min_epoch)
        except _FAULTS as error:
            self._note_trouble("acquire", error)
            self._feed(msg.AcquireFailed())
            return
        self._troubles.pop("acquire", None)
        granted = isinstance(reply, int)
        self._feed(msg.Granted(reply, effect.nonce) if granted else msg.AcquireRefused(reply))  # type: ignore[arg-type]

    async def _persist(self, effect: msg.PersistGrant) -> None:
        authority, ledger = effect.authority, self._ledger
        try:
            await asyncio.to_thread(ledger.accept, authority.epoch, authority.holder, authority.nonce)
        except (LocalFault, StaleEpoch) as error:
            log.warning("grant.unpersisted", error=str(error), next="the lease is given back")
            self._feed(msg.GrantNotPersisted(authority, str(error)))
        else:
            self._feed(msg.GrantPersisted(authority, ledger.members, ledger.applied))

    async def _renew(self, effect: msg.RenewLease) -> None:
        sent_s = self._clock.boottime_s()
        try:
            lease = await self._coordinator.renew(effect.authority, effect.seq)
        except _FAULTS as error:
            self._renewal_failed(effect.authority, error)
            return
        self._troubles.pop("lease", None)
        authority = effect.authority
        self._feed(msg.Renewed(authority, sent_s) if lease is None else msg.RenewRefused(authority, lease))

    async def _reassert(self, effect: msg.ReassertLease) -> None:
        sent_s = self._clock.boottime_s()
        try:
            lease = await self._coordinator.reassert(effect.authority, effect.seq)
        except _FAULTS as error:
            self._renewal_failed(effect.authority, error)
            return
        authority = effect.authority
        log.warning("lease.reasserted", epoch=authority.epoch, done=lease is None, next="Redis had lost the lease")
        self._feed(msg.Renewed(authority, sent_s) if lease is None else msg.ReassertRefused(authority, lease))

    @property
    def trouble(self) -> str:
        """What keeps this node from its part in the election and needs a person's hand; empty: nothing."""
        return "; ".join(self._troubles.values())

    def _note_trouble(self, what: str, error: ModelsyncError) -> None:
        """Once into the log, and kept for status. Redis being away mends itself, and status tells it elsewhere."""
        if isinstance(error, RedisUnavailable) or self._troubles.get(what) == str(error):
            return
        self._troubles[what] = str(error)
        log.warning("election.hindered", what=what, error=str(error), next="it is tried again")

    def _renewal_failed(self, authority: Authority, error: ModelsyncError) -> None:
        self._note_trouble("lease", error)
        self._feed(msg.RenewFailed(authority))

    async def _release(self, effect: msg.ReleaseLease) -> None:
        try:
            await self._coordinator.release(effect.authority, effect.successor)
        except _FAULTS as error:
            log.warning("release.failed", error=str(error), next="the lease runs out by itself")

    async def _collect(self, effect: msg.CollectPromises) -> None:
        for node in sorted(effect.members - {self.identity.node}):
            self._start(self._ask(effect.authority, node_id(node)))

    async def _become(self, effect: msg.BecomePrimary) -> None:
        self._start(self._prepare(effect))

    async def _step_down(self, effect: msg.StepDown) -> None:
        await self._stop_beside()
        log.warning("primary.stepped_down", epoch=effect.authority.epoch, reason=effect.reason)
        if effect.was_established:
            await self.on_demoted(effect.reason)

    async def _show(self, effect: msg.ShowGrant) -> None:
        self._start(self._shown(node_id(effect.holder), effect.accepted))

    async def _alarm(self, effect: msg.RaiseAlarm) -> None:
        self._raise_alarm(effect.kind, f"epoch {effect.epoch}, {', '.join(effect.holders)}")

    # --- beside the loop ---------------------------------------------------------------------------------------------

    async def _ask(self, authority: Authority, node: NodeId) -> None:
        """Ask one member until it answers or nobody wants to know any more."""
        timing = self._state.timing
        while self._state.authority == authority and self._state.round is not None:
            try:
                async with asyncio.timeout(PEER_TIMEOUT_HEARTBEATS * timing.heartbeat_s):
                    promise = await self._peers.promise(node, authority.epoch, authority.holder, authority.nonce)
                if promise.node != node:  # another node took over this address: its promise is not this member's
                    raise PeerRefused(peer=node, status=200, reason=f"{promise.node} answered at its address")
            except (*_FAULTS, TimeoutError):
                self._feed(msg.PeerSilent(authority, node))
                await asyncio.sleep(timing.heartbeat_s)
            else:
                self._feed(msg.Promised(authority, promise))
                return

    async def _shown(self, holder: NodeId, accepted: Authority) -> None:
        """To be asked for a promise of what we promised is how the holder learns that its epoch is contested."""
        with contextlib.suppress(*_FAULTS, TimeoutError):
            async with asyncio.timeout(PEER_TIMEOUT_HEARTBEATS * self._state.timing.heartbeat_s):
                await self._peers.promise(holder, accepted.epoch, accepted.holder, accepted.nonce)

    async def _prepare(self, effect: msg.BecomePrimary) -> None:
        _PREPARING.set(effect.authority)  # in this task's context, and in what it starts
        try:
            await self.on_promoted(effect.authority, effect.ahead)
        except ModelsyncError as error:
            self._note_trouble("promotion", error)
            log.warning("promotion.failed", error=str(error), next="the lease is given back")
            self._feed(msg.PrepareFailed(effect.authority, str(error)))
        else:
            self._troubles.pop("promotion", None)
            self._feed(msg.Prepared(effect.authority))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = fault
            self._wake.set()

    async def _stop_beside(self) -> None:
        tasks = [task for task in self._beside if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    _doers: dict[type, Callable[[Elector, Any], Awaitable[None]]] = {  # noqa: RUF012  never changed
        msg.ReadLease: _read,
        msg.AcquireLease: _acquire,
        msg.PersistGrant: _persist,
        msg.RenewLease: _renew,
        msg.ReassertLease: _reassert,
        msg.ReleaseLease: _release,
        msg.CollectPromises: _collect,
        msg.BecomePrimary: _become,
        msg.StepDown: _step_down,
        msg.ShowGrant: _show,
        msg.RaiseAlarm: _alarm,
    }


def _accepted(ledger: EpochLedger) -> Authority | None:
    return Authority(ledger.epoch, NodeId(ledger.holder), ledger.nonce) if ledger.epoch else None


def _initial(identity: ElectorIdentity, settings: ElectorSettings, ledger: EpochLedger) -> State:
    return State(
        node=identity.node,
        incarnation=secrets.token_hex(8),
        timing=Timing(settings.ttl_s, settings.heartbeat_s),
        highest=max(ledger.epoch, ledger.applied.epoch),
        applied=ledger.applied,
        predecessor=_accepted(ledger),
        eligibility=Eligibility(settings.excluded),
    )
