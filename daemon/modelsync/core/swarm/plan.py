"""Who is asked for which chunks of one object, and when: the whole plan of a pull, without socket, clock or thread.

``step`` takes in what has happened, ``next_effects`` says what to do now. The rules, in the order in which they bind:

    1. never a chunk that is held or asked for already, but for a hedge; never more requests than ``Limits`` allows
    2. never a peer that gave wrong bytes; one that failed only after a pause
    3. what a nearer peer has is not asked of one further away, and nothing of the primary that a replica has; but a
       primary that is near keeps nothing from being asked of others that pull, wherever they are
    4. of several pulling nodes each takes its own share from those that hold everything, and so do the nodes of a rack
       from beyond it (``shares``); who has had nothing to do for a while helps itself all the same; neither asks a
       source for what another says is on its way to it, while that one gets on
    5. the rarest chunks first, within a window of the first that can be had
    6. a request that stands still, or is the last and slow, is asked of a second peer; whoever is first wins
"""

from __future__ import annotations

from modelsync.core.swarm import shares
from modelsync.core.swarm.choice import Offer, in_order, offers, rarity, run_of
from modelsync.core.swarm.messages import AbandonRun, AskRun, Effect, ReadMap
from modelsync.core.swarm.peers import KnownPeer
from modelsync.core.swarm.runs import HEDGE_S, OpenRun, is_due, is_late, is_still
from modelsync.core.swarm.state import SwarmState

ALONE_BYTES = 256 << 20
"""One request's range where there is but one peer: the gap between two is nothing, and it can still move."""
SHARED_BYTES = 32 << 20
"""At most, where there are several: what one has others soon have too."""
RUN_S = 1.0
"""A request is to last about so long: short enough to move on, long enough that the round trip is nothing."""
SOURCE_RUN_S = 0.15
"""The same of one that held everything from the beginning: nobody else asks it for what has been asked of it, so that
who comes a moment later would wait for all of a long request, at the first one's pace."""
PATIENCE_S = 1.0
"""Nothing to do for so long: this node takes a chunk that was another's to take. Later ones in rank wait longer."""
STALL_S = 30.0
"""Nothing new from anybody for so long: the pull is given up for now; its owner tries again later."""

_AGAIN_S = 0.1


class Swarm(SwarmState):
    """The plan of one pull of one object."""

    # --- what to do now ----------------------------------------------------------------------------------------------

    def stuck(self, now_s: float) -> bool:
        """Whether nobody can give what is missing, or is likely to soon: to be asked after ``next_effects``."""
        if self.done or self._open:
            return False
        return now_s - self._news_s >= STALL_S or not any(self._may_help(peer, now_s) for peer in self._peers.values())

    def _may_help(self, peer: KnownPeer, now_s: float) -> bool:
        if peer.lied or peer.failures:
            return False
        return bool(peer.has & self._missing) or peer.shares(now_s) or peer.looking

    def next_effects(self, now_s: float) -> list[Effect]:
        """What to begin and what to break off, given all that has happened."""
        effects: list[Effect] = [*self._abandon()]
        news = self._changed or now_s >= self._same_until_s
        if news and len(self._open) < self._limits.in_all and self._wanted():
            effects += self._runs(now_s)
            self._changed, self._same_until_s = False, self._next_change_s(now_s)
        effects += self._hedges(now_s)
        effects += self._help_oneself(now_s)
        effects += self._looks(now_s)
        return effects

    def wake_s(self, now_s: float) -> float:
        """When to ask for effects again if nothing happens before."""
        times = []
        for peer in self._peers.values():
            if peer.to_be_read:
                times.append(peer.look_at_s)
            if peer.retry_at_s > now_s:
                times.append(peer.retry_at_s)
            if peer.is_unheard(now_s):
                times.append(peer.heard_at_s)
        again_s = now_s + _AGAIN_S  # what did not help now will not in a moment
        if self._open and self._limits.hedges:
            times.append(max(again_s, min([run.mark_s for run in self._open.values()]) + HEDGE_S))
        if self._idle_since_s is not None:
            times.append(max(again_s, self._idle_since_s + self._patience_s(now_s)))
        return max(now_s, min(times, default=now_s + STALL_S))

    def _next_change_s(self, now_s: float) -> float:
        """When time alone may let something be asked for that may not be now."""
        times = [at_s for peer in self._peers.values() for at_s in peer.changes_at_s() if at_s > now_s]
        return min(times, default=float("inf"))

    def _abandon(self) -> list[AbandonRun]:
        if not self._overtaking:
            return []
        self._overtaking = False
        lost = [run for run in self._open.values() if run.overtaken and not run.abandoned]
        for run in lost:
            run.abandoned, run.pending = True, 0
            self._changed = True
        return [AbandonRun(run.ask.ask) for run in lost]

    # --- whose turn it is --------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        """Missing, and asked of nobody."""
        wanted = self._missing
        for run in self._open.values():
            wanted &= ~run.pending
        return wanted

    def _runs(self, now_s: float) -> list[AskRun]:
        sharers = self._sharers(now_s)
        plenty = self._is_plenty(now_s)
        wanted = self._wanted()
        found = offers(self._peers.values(), wanted, now_s, lambda peer: self._share(peer, sharers, plenty, now_s))
        alone = len(found) == 1 and not any(peer.might_pull for peer in self._peers.values())
        # Bytes that come in order go through to whoever downloads them here. Not so for the primary or an object
        # store: there the second request fills the gap that the first byte of the next takes.
        in_turn = alone or (len(found) == 1 and not sharers and not found[0].peer.primary)
        classes = rarity(self._peers.values())
        asks: list[AskRun] = []
        while wanted and len(self._open) < self._limits.in_all:
            ordered = in_order(found, 1 if in_turn else self._limits.per_peer, now_s)
            if sharers and not plenty:  # what only a source has yet, everybody waits for
                ordered.sort(key=lambda offer: not offer.peer.is_source)
            offer = next((offer for offer in ordered if offer.chunks & wanted), None)
            if offer is None:
                break
            draw = None if offer.peer.is_source else self._draw
            longest = self._longest(offer.peer, alone=alone)
            asks.append(self._ask(offer.peer, run_of(offer.chunks & wanted, classes, longest, draw), now_s))
            wanted &= ~self._open[asks[-1].ask].pending
        return asks

    def _ask(self, peer: KnownPeer, run: tuple[int, int], now_s: float, *, hedge: bool = False) -> AskRun:
        self._asked += 1
        ask = AskRun(self._asked, peer.id, *run, hedge=hedge)
        pending = ((1 << run[1] + 1) - (1 << run[0])) & self._missing
        self._open[ask.ask] = OpenRun(ask, pending, since_s=now_s, mark_s=now_s)
        peer.open += 1
        self._idle_since_s = None
        return ask

    def _longest(self, peer: KnownPeer, *, alone: bool) -> int:
        """Chunks of one request."""
        block = shares.block_chunks(len(self._sizes))
        if alone:
            return max(block, ALONE_BYTES // self._mean_bytes)
        lasts_s = SOURCE_RUN_S if peer.is_source else RUN_S
        quick = min(SHARED_BYTES, int(peer.rate_bytes_per_s * lasts_s)) // self._mean_bytes
        return max(block if not peer.rate_bytes_per_s else 1, quick)

    def _sharers(self, now_s: float) -> frozenset[str]:
        """Who, beside this node, takes shares of this object, or might in a moment."""
        near = {peer.id for peer in self._peers.values() if peer.shares(now_s)}
        if self._tier is None:
            return frozenset(near)
        return frozenset(self._tier - (self._peers.keys() - near) - {self._me})

    def _share(self, peer: KnownPeer, sharers: frozenset[str], plenty: bool, now_s: float) -> int:
        """The chunks that are this node's to take from a peer.

        From one that holds everything: this node's part of the whole, but for what others have asked of it already;
        where the replicas that do are no fewer than the nodes that pull, there is enough for everybody. From one
        further away than others that pull, too: its part among those nearer, so that a chunk comes into a rack once.
        """
        if not peer.is_source:
            nearer = (e.id for e in self._peers.values() if e.distance < peer.distance and e.shares(now_s))
            return self._part(frozenset((self._me, *nearer)))
        if plenty:
            return self._everything
        if any(each.is_unheard(now_s) for each in self._peers.values()):
            return 0
        part = self._part(sharers | {self._me} if self._tier is None or self._me in self._tier else sharers)
        return part & ~self._coming_to_others(now_s)

    def _coming_to_others(self, now_s: float) -> int:
        coming = 0
        for peer in self._peers.values():
            coming |= peer.expects(now_s)
        return coming

    def _is_plenty(self, now_s: float) -> bool:
        """Whether more of those that this node knows held everything from the beginning than pull it."""
        holding = sum(1 for peer in self._peers.values() if peer.is_source and not peer.primary and not peer.useless)
        return holding > sum(1 for peer in self._peers.values() if peer.shares(now_s))

    def _part(self, takers: frozenset[str]) -> int:
        known = self._shares.get(takers)
        if known is None:
            if len(self._shares) > 16:
                self._shares.clear()  # the fleet has changed since: those of then are not asked for again
            known = self._shares[takers] = shares.share(self._me, takers, self._salt, len(self._sizes))
        return known

    # --- when it goes badly ------------------------------------------------------------------------------------------

    def _hedges(self, now_s: float) -> list[AskRun]:
        """Ask a second peer for what a request that stands still would bring; at the end also what is merely late."""
        asks: list[AskRun] = []
        if not self._limits.hedges:
            return asks
        last = not self._wanted()
        hedged = [run for run in self._open.values() if run.ask.hedge]
        may_be_late = last and len(hedged) < self._limits.hedges
        if not may_be_late and not [run for run in self._open.values() if is_due(run, now_s)]:
            return asks
        twice = 0
        for run in hedged:
            twice |= run.pending
        for run in [run for run in self._open.values() if not run.ask.hedge and run.pending]:
            still = not self._is_throttled() and is_still(run, now_s)
            pending = run.pending & ~twice
            if not pending or not (still or last) or len(hedged) + len(asks) >= self._limits.hedges:
                continue
            other = self._other_than(run, pending, now_s, only_quicker=not still)
            if other is not None:
                chosen = run_of(other.has & pending, (-1,), len(self._sizes), None)
                asks.append(self._ask(other, chosen, now_s, hedge=True))
        return asks

    def _other_than(self, run: OpenRun, pending: int, now_s: float, *, only_quicker: bool) -> KnownPeer | None:
        size_bytes = pending.bit_count() * self._mean_bytes
        rate = run.size_bytes / max(now_s - run.since_s, 1e-6)
        able = [Offer(peer, peer.has) for peer in self._peers.values() if peer.usable(now_s) and peer.has & pending]
        able = in_order(able, self._limits.per_peer, now_s)
        fit = [offer.peer for offer in able if offer.peer.id != run.ask.peer]
        if only_quicker:
            fit = [peer for peer in fit if is_late(size_bytes, rate, peer.rate_bytes_per_s)]
        return fit[0] if fit else None

    def _is_throttled(self) -> bool:
        """Whether requests stand still for a while only because this node's own limit lets them."""
        limit = self.rate_limit_bytes_per_s
        return bool(limit) and limit * HEDGE_S < 2 * self._mean_bytes * len(self._open)

    def _help_oneself(self, now_s: float) -> list[AskRun]:
        """After a while without anything to do: take one block that was another's to take."""
        wanted = 0 if self._open else self._wanted()
        if not wanted:
            self._idle_since_s = None
            return []
        if self._idle_since_s is None:
            self._idle_since_s = now_s
        if now_s - self._idle_since_s < self._patience_s(now_s):
            return []
        coming = self._coming_to_others(now_s)
        found = offers(self._peers.values(), wanted, now_s, lambda peer: ~coming if peer.is_source else -1)
        for offer in [offer for offer in in_order(found, self._limits.per_peer, now_s) if offer.chunks][:1]:
            self._helped += 1
            block = shares.block_chunks(len(self._sizes))
            return [self._ask(offer.peer, run_of(offer.chunks, (-1,), block, self._draw), now_s)]
        return []

    def _patience_s(self, now_s: float) -> float:
        """The first in rank begins; each time that nobody else delivers anything in between, the next comes sooner."""
        rank = self._rank if self._tier is not None else shares.rank(self._me, self._sharers(now_s), self._salt)
        return PATIENCE_S * (1 + rank / 4) * 0.5 ** min(self._helped, 20)

    def _looks(self, now_s: float) -> list[ReadMap]:
        due = [peer for peer in self._peers.values() if peer.look_at_s <= now_s and peer.to_be_read]
        for peer in due:
            peer.looking = True
        return [ReadMap(peer.id) for peer in due] if self._missing else []
