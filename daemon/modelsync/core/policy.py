"""What a host should run, and why: its own pins over the fleet's wish over the latest version.

The answer always comes with a sentence, because "why does this host run 12?" is asked at night.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core import catalog
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import NoSuchVersion
from modelsync.core.ids import Version
from modelsync.core.rollout import record as rollout
from modelsync.core.rollout.record import Rollout

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Wish:
    """``version`` None: nothing to run, or (``waiting``) a pinned version that does not exist yet."""

    version: Version | None
    why: str
    waiting: bool = False
    pinned: bool = False
    """By an operator, for this host or for the fleet: it is not given up for room either."""


def wanted(record: ModelRecord, node_pin: int | str | None, node: str = "") -> Wish:
    """Decide for one host.

    Args:
        node_pin: its own ``[pins]`` entry for the model, a version or an alias.
        node: its id; empty asks for what the fleet as a whole wants.
    """
    if node_pin is not None:
        return _by_node_pin(record, node_pin)
    if record.pinned is not None:
        return Wish(record.pinned, f"the fleet is pinned to version {record.pinned}", pinned=True)
    roll = record.rollout
    if roll is not None and roll.covers(node):
        return Wish(roll.version, f"version {roll.version} is rolled out to this host, {_wave(roll)}")
    number = record.wanted
    if roll is not None and roll.version != number and _matters(roll, record):
        return Wish(number, f"{_stays(number)} {_outcome(roll)}")
    if number is None:
        return Wish(None, "nothing is published yet")
    if number != record.head:
        return Wish(number, f"version {number} was chosen over the head, {record.head}")
    return Wish(number, f"version {number} is the latest")


def _stays(number: Version | None) -> str:
    return f"version {number} stays:" if number is not None else "nothing runs yet:"


def _wave(roll: Rollout) -> str:
    return f"wave {roll.wave + 1} of {len(roll.waves)}"


def _outcome(roll: Rollout) -> str:
    """What keeps a rollout's version from being what the fleet wants."""
    match roll.state:
        case rollout.STAGING:
            return f"version {roll.version} waits until every host has staged it"
        case rollout.WAVE | rollout.SOAKING:
            return f"the rollout of version {roll.version} is in {_wave(roll)} and has not reached this host"
        case rollout.ABORTED:
            return f"the rollout of version {roll.version} was aborted: {roll.reason}"
        case rollout.ROLLED_BACK:
            return f"the rollout of version {roll.version} was rolled back: {roll.reason}"
    raise AssertionError(f"a rollout that is {roll.state} keeps nothing back")


def _matters(roll: Rollout, record: ModelRecord) -> bool:
    return roll.state in rollout.OPEN - {rollout.MOVING} or (
        roll.version == record.head and roll.state in (rollout.ABORTED, rollout.ROLLED_BACK)
    )


def _by_node_pin(record: ModelRecord, node_pin: int | str) -> Wish:
    try:
        number = catalog.resolve(record, node_pin)
    except NoSuchVersion:
        return Wish(None, f"this host's config pins {node_pin!r}, which is not published: waiting for it", waiting=True)
    how = f" (alias {node_pin})" if isinstance(node_pin, str) and node_pin != str(number) else ""
    return Wish(number, f"this host's config pins version {number}{how}", pinned=True)


def retained(
    record: ModelRecord, keep: int, keep_days: float, active: Version | None, previous: Version | None, wish: Wish
) -> frozenset[Version]:
    """The versions whose bytes a host keeps: what runs, ran before, is wanted, pinned or aliased, and the newest.

    Args:
        keep: how many of the newest versions; at least 1.
        keep_days: of these none that was published so many days before the newest; 0: whatever their age. Measured
            between publishes and not from now, so that a clock that jumps removes nothing, nor does a quiet year.
    """
    named = {active, previous, wish.version, *record.named}
    newest = catalog.newest_first(record.versions)[:keep]
    if keep_days and newest:
        oldest_ms = max(record.versions[number].created_ms for number in newest) - keep_days * DAY_MS
        newest = [number for number in newest if record.versions[number].created_ms >= oldest_ms]
    return frozenset(number for number in (*named, *newest) if number is not None)
