"""Where a version's bytes could come from, best first: who holds it, who is near, the object store."""

from __future__ import annotations

from modelsync.core.ids import ModelName, Version
from modelsync.core.status import NodeReport
from modelsync.core.storage import parts
from modelsync.core.swarm.neighbours import distance
from modelsync.ports import Depot, Peer
from modelsync.runtime.book import Book
from modelsync.runtime.elector import Elector
from modelsync.runtime.settings import Identity


class Sourcing:
    """The peers of a pull."""

    def __init__(self, *, identity: Identity, book: Book, elector: Elector, depot: Depot | None) -> None:
        self._identity = identity
        self._book = book
        self._elector = elector
        self._depot = depot

    def of(self, name: ModelName, number: Version, part: int | None) -> list[Peer]:
        """Who could serve a version, or a part of it: the primary first, then living holders, then who may pull it."""
        primary, lease = self._elector.lease.holder, self._elector.lease
        others = [node for node in self._book.nodes if node.id != self._identity.node and node.url and not node.lost]
        peers = [self._peer(node, node.id == primary, name, number, part) for node in others]
        peers.sort(key=lambda peer: (not peer.primary, not peer.holds, peer.id))
        if lease.url and lease.holder != self._identity.node and all(peer.id != lease.holder for peer in peers):
            published = self._published_here(name)
            peers.insert(0, Peer(lease.holder, lease.url, primary=published, holds=published))
        depot = self._depot
        return [*peers, depot.peer] if depot is not None else peers

    def _peer(self, node: NodeReport, primary: bool, name: ModelName, number: Version, part: int | None) -> Peer:
        shares = self._book.record(name).placement.shares
        owner, count = any(node.id in shares[each] for each in _asked(part, len(shares))), len(shares)
        primary = primary and self._published_here(name)
        holds = primary or parts.holds(node.models.get(name, {}), number, part, count)
        return Peer(node.id, node.url, distance(self._identity.labels, node.labels), primary, holds, owner)

    def _published_here(self, name: ModelName) -> bool:
        """Whether the primary has every version, before it says so. Of ``shared`` models the store has, it need not."""
        return self._depot is None or self._book.record(name).placement.mode != "shared"


def _asked(part: int | None, count: int) -> range:
    """The shares that are asked for: one, or any; none that a record of fewer does not know."""
    return range(count) if part is None else range(part, min(part + 1, count))
