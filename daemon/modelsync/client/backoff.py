"""When a load that failed is tried again. Pure: time is handed in."""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core.errors import ModelsyncError

FIRST_S = 0.5
LONGEST_S = 60.0
"""A version that cannot be loaded stays so until another is published; a full memory or a missing library does not."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that is remembered for one content of one model."""

    identity: str
    """What was to be loaded; another content is tried at once."""
    error: ModelsyncError
    count: int
    retry_at_s: float


def failed(before: Failure | None, identity: str, error: ModelsyncError, now_s: float) -> Failure:
    """The failure to remember: each one of the same content doubles the pause."""
    count = before.count + 1 if before is not None and before.identity == identity else 1
    pause_s = min(LONGEST_S, FIRST_S * 2.0 ** min(count - 1, 16))
    return Failure(identity, error, count, now_s + pause_s)


def may_try(failure: Failure | None, identity: str, now_s: float) -> bool:
    """Whether to load, or to repeat the failure that is remembered."""
    return failure is None or failure.identity != identity or now_s >= failure.retry_at_s
