"""The right to write: the lease, the promises of other members, and what a node must never forget of both."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from modelsync.core.election.lease import Authority, LeaseView
from modelsync.core.election.promise import Promise
from modelsync.core.ids import EntryId, NodeId


class Coordinator(Protocol):
    """The lease scripts of PROTOCOL.md section 4. Every method raises RedisUnavailable or RedisRefused."""

    async def read(self) -> LeaseView: ...

    async def acquire(self, observed: LeaseView, nonce: str, min_epoch: int) -> int | LeaseView:
        """The granted epoch, or the lease that stood in the way."""

    async def renew(self, authority: Authority, seq: int) -> LeaseView | None:
        """None: renewed. A view with epoch 0: there is no lease. Any other view: whose it is now."""

    async def reassert(self, authority: Authority, seq: int) -> LeaseView | None: ...

    async def release(self, authority: Authority, successor: str = "") -> None: ...


class PromisePeers(Protocol):
    """Asks other members, over HTTP, to promise (epoch, holder, nonce). Raises PeerUnavailable, PeerRefused."""

    async def promise(self, node: NodeId, epoch: int, holder: NodeId, nonce: str) -> Promise: ...


class EpochLedger(Protocol):
    """What a node must never forget about epochs: persisted and fsynced before each method returns."""

    @property
    def epoch(self) -> int: ...

    @property
    def holder(self) -> str: ...

    @property
    def nonce(self) -> str: ...

    @property
    def applied(self) -> EntryId: ...

    @property
    def members(self) -> frozenset[str]:
        """The known members of the fleet, this node among them."""

    def set_applied(self, at: EntryId) -> None:
        """Remember the last catalog change seen; it never goes down."""

    def set_members(self, members: Collection[str]) -> None:
        """Remember who belongs to the fleet, this node among them."""

    def accept(self, epoch: int, holder: str, nonce: str) -> None:
        """Remember a grant. Raises StaleEpoch below the highest accepted, or at it with another holder or nonce."""
