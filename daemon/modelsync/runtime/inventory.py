"""What of a model's versions lies on this host: whole, in parts, or at all. Blocks; run in a thread.

This file counts; what follows from it is the keeper's and the activator's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from modelsync.core.catalog import ModelRecord
from modelsync.core.ids import Digest, Version
from modelsync.core.manifest import Manifest
from modelsync.core.storage import parts
from modelsync.ports import VersionStore


@dataclass(frozen=True, slots=True)
class Inventory:
    """One model's, at one moment."""

    whole: frozenset[Version] = frozenset()
    """Versions of which every byte is here."""
    parts: dict[Version, frozenset[int]] = field(default_factory=dict)
    """Of others, the shares of the placement that are here in full."""
    touched: frozenset[Version] = frozenset()
    """Versions of which any byte is here."""

    def holds(self, number: Version, share: int) -> bool:
        return number in self.whole or share in self.parts.get(number, ())


def take(record: ModelRecord, store: VersionStore) -> Inventory:
    """Look at the store. Raises MalformedMessage, DiskFailed."""
    whole, split, touched, count = set(), {}, set(), len(record.placement.shares)
    for number, entry in record.versions.items():
        manifest = store.manifest(entry.digest)
        if manifest is None:
            continue
        missing = {file.digest for file in store.missing(manifest)}
        if not missing:
            whole.add(number)
        elif count > 1:
            split[number] = _complete(manifest, missing, count)
        if len(missing) < len({file.digest for file in manifest.files}):
            touched.add(number)
    return Inventory(frozenset(whole), split, frozenset(touched))


def _complete(manifest: Manifest, missing: set[Digest], count: int) -> frozenset[int]:
    """Parts of which nothing is missing. One without files, of a version with fewer than there are parts, is held."""
    groups = parts.split(manifest.files, count)
    return frozenset(index for index, group in enumerate(groups) if not group & missing)
