"""Whether compressing a chunk makes its transfer shorter, and how: pure decisions over what was measured.

A chunk passes three stages that overlap: it is packed, sent, unpacked. It arrives as fast as the slowest of them lets
it, so packing pays where the link is the slowest and the bytes shrink. On a quick link nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelsync.core.compression.frames import Compression

UNKNOWN_LINK_BYTES_PER_S = 12.5e6
"""A link that nothing is known of yet counts as slow: an answer in frames that should not be one ends after a few
chunks, one of plain bytes goes on to its end."""
UNPACK_BYTES_PER_S = 600e6
"""Unpacking, verifying and writing on one thread, until a receiver tells what it manages: two thirds of what the parts
add up to on an idle core (decision 15)."""
MIN_GAIN = 1.05
"""A chunk that arrives less than a twentieth sooner is not worth two hosts' processors."""
TRY_AGAIN_CHUNKS = 64
"""What a trial found holds for so many chunks, or until one is packed much worse than it said."""
_WORSE = 1.15
PATIENCE_CHUNKS = 4
"""So many chunks in a row that did not pay end an answer in frames: the rest goes by sendfile."""
DOUBT_CHUNKS = 4
"""Sent as they are, where that alone can show whether the link is quicker than the packers."""
_AS_GOOD = 0.95
"""Of ways to pack whose bytes arrive nearly as soon, the one that leaves the fewest of them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to pack some bytes, as it was tried on them. ``took_s`` is processor time."""

    planes: int
    raw_bytes: int
    packed_bytes: int
    took_s: float

    @property
    def ratio(self) -> float:
        """Below 1: it shrinks."""
        return self.packed_bytes / self.raw_bytes

    @property
    def pack_bytes_per_s(self) -> float:
        return self.raw_bytes / max(self.took_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Link:
    """What there is to send by, to pack with and to unpack with.

    Args:
        bytes_per_s: measured; None: not known yet.
        may_be_quicker: that is what it does at least, since it was not full lately.
        limit_bytes_per_s: what the receiver lets in; 0: no limit of its own.
        packer_share: of one idle core, for this answer; at most 1.
        unpack_bytes_per_s: what the receiver manages.
    """

    bytes_per_s: float | None = None
    limit_bytes_per_s: int = 0
    packer_share: float = 1.0
    unpack_bytes_per_s: float = UNPACK_BYTES_PER_S
    may_be_quicker: bool = False

    @property
    def speed(self) -> float:
        """Bytes a second."""
        measured = UNKNOWN_LINK_BYTES_PER_S if self.bytes_per_s is None else self.bytes_per_s
        return min(measured, self.limit_bytes_per_s) if self.limit_bytes_per_s else measured


def agreed(asked: Compression, own: Compression) -> Compression:
    """What holds between a puller that asks and a server that was configured: either may refuse."""
    if "never" in (asked, own):
        return "never"
    return "always" if "always" in (asked, own) else "auto"


def gain(trial: Trial, link: Link) -> float:
    """How many times sooner bytes arrive packed than as they are."""
    packing = trial.pack_bytes_per_s * link.packer_share
    sending = link.speed / max(trial.ratio, 1e-6)
    return min(packing, link.unpack_bytes_per_s, sending) / link.speed


def best(trials: Sequence[Trial], link: Link, mode: Compression) -> Trial | None:
    """The way to pack that pays most; None: none does.

    ``always`` asks for the fewest bytes, whatever that costs.
    """
    if mode == "always":
        smallest = min(trials, key=lambda trial: trial.ratio, default=None)
        return smallest if smallest is not None and smallest.ratio < 1 else None
    gains = [(trial, gain(trial, link)) for trial in trials]
    most = max((each for _, each in gains), default=0.0)
    fit = (trial for trial, each in gains if each >= max(MIN_GAIN, _AS_GOOD * most))
    return min(fit, key=lambda trial: trial.ratio, default=None)


@dataclass(slots=True)
class Course:
    """One answer's way through its chunks: which way each is packed, when to try anew, when to end.

    Args:
        mode: as agreed; not ``never``.
    """

    mode: Compression
    _trials: Sequence[Trial] = ()
    _left: int = 0
    _idle: int = 0
    _doubted: int = 0

    @property
    def wants_trial(self) -> bool:
        """Whether the next chunk is to be tried in every way first."""
        return self._left <= 0

    @property
    def spent(self) -> bool:
        """Whether the rest is better sent as it is."""
        return self.mode != "always" and self._idle >= PATIENCE_CHUNKS

    def tried(self, trials: Sequence[Trial]) -> None:
        """These hold for the next chunks."""
        self._trials, self._left = trials, TRY_AGAIN_CHUNKS

    def choose(self, link: Link) -> Trial | None:
        """How to pack the next chunk."""
        chosen = best(self._trials, link, self.mode)
        if chosen and self._doubted < DOUBT_CHUNKS and self._is_in_doubt(link):
            self._doubted += 1
            return None
        self._left -= 1 if chosen else TRY_AGAIN_CHUNKS // PATIENCE_CHUNKS  # it tells nothing of how it would be now
        self._idle = 0 if chosen else self._idle + 1
        return chosen

    def _is_in_doubt(self, link: Link) -> bool:
        """Whether packing pays only if the link is no quicker than it has shown itself."""
        if self.mode == "always" or not link.may_be_quicker:
            return False
        return best(self._trials, replace(link, bytes_per_s=float("inf")), self.mode) is None

    def packed(self, expected: Trial, actual: Trial) -> None:
        """What became of a chunk: it tells more than the samples did, and content that has changed is tried anew."""
        if actual.ratio > _WORSE * expected.ratio + 0.02:
            self._left = 0
        self._trials = [actual if trial.planes == actual.planes else trial for trial in self._trials]
