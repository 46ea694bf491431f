"""Redis as the simulation has it: the five scripts over an immutable state, so that a snapshot is a reference.

The Lua scripts' own contract is tested in tests/integration/test_lease_contract.py; test_redis_model.py runs this model
and a real server side by side over random calls, so that the simulation simulates what is shipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from modelsync.core.election.lease import HANDOFF, HELD, NO_LEASE, RELEASED, Authority, LeaseView
from modelsync.core.ids import ZERO_ID, EntryId


@dataclass(frozen=True, slots=True)
class Written:
    """One version as a writer wrote it. ``content`` names the process and grant that wrote it."""

    version: int
    content: str
    id: EntryId


@dataclass(frozen=True, slots=True)
class Record:
    """The catalog's one model: the id of its last change, and its versions."""

    id: EntryId = ZERO_ID
    versions: dict[int, Written] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Data:
    lease: LeaseView = NO_LEASE
    epoch: int = 0
    tail: EntryId = ZERO_ID
    record: Record = Record()
    entry: tuple[EntryId, dict[int, Written]] | None = None
    """What the log's last entry was written as: the id it follows, and its versions."""


EMPTY = Data()


def fenced(lease: LeaseView, authority: Authority) -> bool:
    """The publish fence: the first check of publish.lua."""
    return (
        lease.epoch == authority.epoch
        and lease.holder == authority.holder
        and lease.nonce == authority.nonce
        and lease.state == HELD
    )


def follows(after: EntryId, tail: EntryId) -> bool:
    """The chain of the log: whoever writes knows the entry before, so a Redis that lost entries is noticed."""
    return after == tail


def repeats(entry: tuple[EntryId, dict[int, Written]] | None, offered: tuple[EntryId, dict[int, Written]]) -> bool:
    """Whether a write under the log's last id is that very entry, sent once more because its answer was lost."""
    return entry == offered


class RedisModel:
    """One server. Every method is one atomic script or command."""

    def __init__(self, data: Data = EMPTY) -> None:
        self.data = data
        self.history: list[tuple[float, Data]] = []
        """Earlier states, for rollbacks."""

    def read(self) -> LeaseView:
        return self.data.lease

    def acquire(self, holder: str, observed: LeaseView, nonce: str, min_epoch: int) -> int | LeaseView:
        data, lease = self.data, self.data.lease
        if (lease.epoch, lease.nonce, lease.seq) != (observed.epoch, observed.nonce, observed.seq):
            return lease
        epoch = max(lease.epoch, data.epoch, data.tail.epoch, min_epoch) + 1
        self.data = replace(data, lease=LeaseView(epoch, holder, nonce, 0, HELD), epoch=epoch)
        return epoch

    def renew(self, authority: Authority, seq: int) -> LeaseView | None:
        lease = self.data.lease
        if lease.epoch == 0 or not _granted(lease, authority):
            return lease
        self.data = replace(self.data, lease=LeaseView(lease.epoch, lease.holder, lease.nonce, seq, HELD))
        return None

    def reassert(self, authority: Authority, seq: int) -> LeaseView | None:
        data, epoch = self.data, authority.epoch
        if data.lease.epoch >= epoch or data.epoch > epoch or data.tail.epoch > epoch:
            return data.lease
        lease = LeaseView(epoch, authority.holder, authority.nonce, seq, HELD)
        self.data = replace(data, lease=lease, epoch=epoch)
        return None

    def release(self, authority: Authority, successor: str) -> None:
        lease = self.data.lease
        if _granted(lease, authority):
            state = HANDOFF if successor else RELEASED
            self.data = replace(self.data, lease=replace(lease, state=state, successor=successor))

    def publish(self, authority: Authority, after: EntryId, id: EntryId, written: dict[int, Written]) -> str:
        """``done``, ``repeat``, or why not. ``written`` is merged into the record, as HSET does."""
        data, versions = self.data, self.data.record.versions
        if not fenced(data.lease, authority):
            return "lease"
        if id == data.tail:
            return "repeat" if repeats(data.entry, (after, written)) else "id"
        if id.epoch != authority.epoch or id < data.tail:
            return "id"
        if not follows(after, data.tail):
            return "behind"
        self.data = replace(data, tail=id, record=Record(id, {**versions, **written}), entry=(after, dict(written)))
        return "done"


def _granted(lease: LeaseView, authority: Authority) -> bool:
    return (lease.epoch, lease.holder, lease.nonce, lease.state) == (
        authority.epoch,
        authority.holder,
        authority.nonce,
        HELD,
    )
