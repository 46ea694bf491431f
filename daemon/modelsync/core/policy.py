"""What a host should run, and why: its own pins over the fleet's wish over the latest version.

The answer always comes with a sentence, because "why does this host run 12?" is asked at night.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core import catalog
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import NoSuchVersion
from modelsync.core.ids import Version


@dataclass(frozen=True, slots=True)
class Wish:
    """``version`` None: nothing to run, or (``waiting``) a pinned version that does not exist yet."""

    version: Version | None
    why: str
    waiting: bool = False


def wanted(record: ModelRecord, node_pin: int | str | None) -> Wish:
    """Decide for one host. ``node_pin``: its own ``[pins]`` entry for the model, a version or an alias."""
    if node_pin is not None:
        return _by_node_pin(record, node_pin)
    if record.pinned is not None:
        return Wish(record.pinned, f"the fleet is pinned to version {record.pinned}")
    if record.desired is not None and record.desired != record.head:
        return Wish(record.desired, f"version {record.desired} was chosen over the head, {record.head}")
    if record.head is not None:
        return Wish(record.head, f"version {record.head} is the latest")
    return Wish(None, "nothing is published yet")


def _by_node_pin(record: ModelRecord, node_pin: int | str) -> Wish:
    try:
        number = catalog.resolve(record, node_pin)
    except NoSuchVersion:
        return Wish(None, f"this host's config pins {node_pin!r}, which is not published: waiting for it", waiting=True)
    how = f" (alias {node_pin})" if isinstance(node_pin, str) and node_pin != str(number) else ""
    return Wish(number, f"this host's config pins version {number}{how}")


def retained(
    record: ModelRecord, keep: int, active: Version | None, previous: Version | None, wish: Wish
) -> frozenset[Version]:
    """The versions whose bytes a host keeps: what runs, ran before, is wanted, pinned or aliased, and the newest.

    Args:
        keep: how many of the newest versions; at least 1.
    """
    named = {active, previous, wish.version, record.pinned, record.desired, record.head, *record.aliases.values()}
    newest = catalog.newest_first(record.versions)[:keep]
    return frozenset(number for number in (*named, *newest) if number is not None)
