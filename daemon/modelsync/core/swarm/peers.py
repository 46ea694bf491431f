"""What a pull knows of each peer, and what it may be asked for by that. Pure; time is handed in.

``swarm`` decides who is asked for which chunks; this file decides how long a peer that failed, lied or was slow is left
alone, and when its map of chunks is to be read again.
"""

from __future__ import annotations

from dataclasses import dataclass

GRACE_S = 0.5
"""A peer that might be pulling too is counted as one for so long before it has answered: a fleet wakes within this."""
STUCK_S = 15.0
"""A pulling peer whose map did not grow for so long is no longer waited for; it may be on a link of 70 KB/s."""
LOOK_SOONEST_S, LOOK_LATEST_S = 0.1, 2.0
"""Between two readings of one peer's map: 10 a second while it is waited for, and less the less it has to tell."""
RETRY_FIRST_S, RETRY_LATEST_S = 0.5, 30.0
"""Before a peer that did not answer, or refused, is asked again within one pull."""
HEAR_S = 0.1
"""No source is asked before those that might be pulling too have told what they asked of it, or had so long to."""
COMING_S = 3.0
"""What a peer said is on its way to it is not asked of a source as well, for so long after its map last grew."""
SLOW_S = 30.0
"""A peer that was overtaken by another is asked last for so long."""
MIN_RATE_BYTES_PER_S = 64 << 10
"""Below it a peer is as good as silent: 1 GiB would take four hours and a half."""
_SMOOTHING = 0.3
_MOMENT_S = 1e-6
"""More than what is lost when numbers of seconds are rounded."""


@dataclass(slots=True)
class KnownPeer:
    """One peer in the eyes of one pull."""

    id: str
    since_s: float
    """Known since."""
    distance: int = 2
    primary: bool = False
    has: int = 0
    """Bit n: chunk n."""
    complete: bool = False
    pulling: bool = False
    pulled: bool = False
    """It has been seen pulling: what it holds by now came out of the fleet, and goes back to it without measure."""
    answered: bool = False
    """It has told its map, or that it has none."""
    lied: bool = False
    failures: int = 0
    retry_at_s: float = 0.0
    slow_until_s: float = 0.0
    coming: int = 0
    """What it has asked of a source."""
    grew_s: float = 0.0
    look_at_s: float = 0.0
    look_pause_s: float = LOOK_SOONEST_S
    looking: bool = False
    rate_bytes_per_s: float = 0.0
    """0: not known yet."""
    open: int = 0
    """Requests under way."""

    @property
    def cost(self) -> int:
        """The primary, whom everybody can ask, counts as one step further away than it stands."""
        return self.distance + self.primary

    @property
    def useless(self) -> bool:
        return self.lied or self.failures > 0 or (self.answered and not self.pulling and not self.has)

    @property
    def is_source(self) -> bool:
        """Whether it held everything from the beginning: of such there are few, and each byte is to leave them once."""
        return self.complete and not self.pulled

    def usable(self, now_s: float) -> bool:
        return not self.lied and self.retry_at_s <= now_s and self.has != 0

    def shares(self, now_s: float) -> bool:
        """Whether it is counted as one that takes its own share of what is pulled, to be had from it afterwards."""
        if self.complete or self.lied or self.failures:
            return False
        if self.answered:
            return self.pulling and now_s - max(self.grew_s, self.since_s) < STUCK_S
        return now_s - self.since_s < GRACE_S

    def is_unheard(self, now_s: float) -> bool:
        """Whether it may be pulling, and has not had the time to say so."""
        unknown = not (self.answered or self.complete or self.lied or self.failures)
        return unknown and now_s < self.heard_at_s

    @property
    def might_pull(self) -> bool:
        """Whether it could begin to pull, if it has not: what is asked of a source by then, it gets late."""
        return not (self.complete or self.lied or self.failures)

    @property
    def standing(self) -> tuple[bool, ...]:
        """What the properties here make of it, but for what time and single chunks change."""
        return (self.complete, self.answered, self.failures > 0, self.pulling, self.pulled, self.has != 0)

    @property
    def heard_at_s(self) -> float:
        """When ``is_unheard`` is over."""
        return self.since_s + HEAR_S

    def changes_at_s(self) -> tuple[float, ...]:
        """When ``shares``, ``expects``, ``usable`` or its merit may turn out otherwise by time alone."""
        counted_until_s = max(self.grew_s, self.since_s) + STUCK_S if self.answered else self.since_s + GRACE_S
        expected_until_s = self.grew_s + COMING_S if self.coming else 0.0
        turns_s = (counted_until_s + _MOMENT_S, expected_until_s + _MOMENT_S, self.heard_at_s)
        return (*turns_s, self.retry_at_s, self.slow_until_s)

    @property
    def to_be_read(self) -> bool:
        """Whether its map may still change, and is not being read just now."""
        return not self.complete and not self.lied and not self.looking

    def expects(self, now_s: float) -> int:
        """The chunks that will soon be had from it: whoever asks a source for them as well fetches them twice."""
        return self.coming if self.shares(now_s) and now_s - self.grew_s < COMING_S else 0

    def told(self, chunks: int, everything: int, pulling: bool, coming: int, wanted: int, now_s: float) -> None:
        """Its map has come. ``wanted``: what is still looked for, of which it may have something new."""
        fresh = chunks & ~self.has
        if fresh or not self.answered:
            self.grew_s = now_s
        self.has, self.complete, self.pulling, self.answered = chunks, chunks == everything, pulling, True
        self.coming = coming & ~chunks
        self.pulled = self.pulled or pulling
        self.looking, self.failures = False, 0
        self._look_again(wanted, fresh, now_s)

    def _look_again(self, wanted: int, fresh: int, now_s: float) -> None:
        if not wanted & ~self.has:
            self.look_pause_s = LOOK_LATEST_S  # it has all that it could tell of
        elif fresh:
            self.look_pause_s = LOOK_SOONEST_S
        else:
            self.look_pause_s = min(LOOK_LATEST_S, self.look_pause_s * 1.5)
        self.look_at_s = now_s + self.look_pause_s

    def failed(self, now_s: float) -> None:
        self.failures += 1
        self.looking = False
        pause_s = min(RETRY_LATEST_S, RETRY_FIRST_S * 2 ** min(self.failures - 1, 10))
        self.retry_at_s = self.look_at_s = now_s + pause_s

    def broke_off(self, now_s: float, refused: bool, busy_s: float) -> None:
        """A request to it broke off; see ``RunFailed``. What it does not hold is not asked of it until it says so."""
        if busy_s:
            self.retry_at_s = now_s + busy_s
            return
        if refused and not self.answered:  # that it holds everything was only a report: what it has, its map tells
            self.has, self.complete = 0, False
            self.since_s = self.look_at_s = now_s
            return
        self.failed(now_s)
        if refused:
            self.has, self.complete, self.answered = 0, False, True

    def was_slow(self, now_s: float) -> None:
        self.slow_until_s = now_s + SLOW_S

    def learn_rate(self, size_bytes: int, took_s: float) -> None:
        """Learn its speed from a request that has ended."""
        rate = size_bytes / max(took_s, 1e-6)
        known = self.rate_bytes_per_s
        self.rate_bytes_per_s = rate if not known else known + _SMOOTHING * (rate - known)
