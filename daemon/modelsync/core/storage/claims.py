"""Who may say what a version number means in an object store that others could write to as well. Pure.

The claim of a number is the last thing that a publish puts there. It names the manifest, the fleet, and the id of the
catalog change: ids order all writes of a fleet, so a claim that never reached the catalog is replaced by a later one,
and a primary that was replaced meanwhile cannot take a number from its successor.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core import canonical
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import Digest, EntryId, FleetName, fleet_name

MAX_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Claim:
    """One version number's meaning."""

    fleet: FleetName
    id: EntryId
    digest: Digest

    def may_replace(self, other: Claim) -> bool:
        """Whether this one, being of the same fleet and no earlier, stands above another."""
        return self.fleet == other.fleet and self.id >= other.id


def encode(claim: Claim) -> bytes:
    return canonical.encode({"fleet": claim.fleet, "id": str(claim.id), "digest": str(claim.digest)})


def decode(data: bytes) -> Claim:
    """Parse a claim as hostile input. Raises MalformedMessage."""
    value = canonical.decode(data, "claim", max_bytes=MAX_BYTES)
    if not isinstance(value, dict) or value.keys() != {"fleet", "id", "digest"}:
        raise MalformedMessage(what="claim", reason="it is not an object of fleet, id and digest")
    try:
        return Claim(fleet_name(value["fleet"]), EntryId.parse(value["id"]), Digest.parse(value["digest"]))
    except BadName as error:
        raise MalformedMessage(what="claim", reason=str(error)) from error
