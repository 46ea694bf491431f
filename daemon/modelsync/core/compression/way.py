"""How quick the way to a host is, as far as what was sent there tells. Pure; time is handed in.

Only a link that was full shows how quick it is. Packed chunks may leave it idle most of the time: each is gone before
the next one is packed, and what passes then in no time at all says nothing of what the link would do for more (a token
bucket that had time to fill lets it through at once). Such a window shows what the link does at least.
"""

from __future__ import annotations

from dataclasses import dataclass

ENOUGH_BYTES = 512 << 10
"""Acknowledged before a rate is believed: what comes earlier is the window's growth, not the link."""
LEAST_S = 0.002
"""Half a tick of the clock that the kernel counts busy time by, where it was never seen busy."""
FULL = 0.5
"""Busy for so much of the time with what the receiver had room for, a link was full."""
TRUSTED_S = 10.0
"""A link that was full so long ago may have become quicker unseen, behind packed chunks that do not fill it."""


@dataclass(frozen=True, slots=True)
class Window:
    """What a connection did for a while.

    Args:
        acked_bytes: that arrived.
        busy_s: some were waiting to be acknowledged.
        held_s: of these, the receiver had no room.
        took_s: on the clock.
    """

    acked_bytes: int
    busy_s: float
    held_s: float
    took_s: float


@dataclass(slots=True)
class Way:
    """The way to one host. ``bytes_per_s``: what it does, or does at least; None: not known."""

    bytes_per_s: float | None = None
    _full_at_s: float = float("-inf")
    _idle: bool = False

    def saw(self, window: Window, now_s: float, *, plain: bool) -> bool:
        """One more window; whether it is long enough to tell anything.

        Args:
            plain: of bytes as they are, which leave as fast as they are taken: a receiver that is slow counts as a
                link that is.
        """
        if window.acked_bytes < ENOUGH_BYTES:
            return False
        moving_s = window.busy_s if plain else window.busy_s - window.held_s
        self._idle = not plain and moving_s < FULL * window.took_s
        if self._idle:
            self.bytes_per_s = max(self.bytes_per_s or 0.0, window.acked_bytes / max(window.took_s, LEAST_S))
        else:
            self.bytes_per_s, self._full_at_s = window.acked_bytes / max(moving_s, LEAST_S), now_s
        return True

    def may_be_quicker(self, now_s: float) -> bool:
        """Whether it was idle lately, and not full for a while."""
        return self._idle and now_s - self._full_at_s >= TRUSTED_S
