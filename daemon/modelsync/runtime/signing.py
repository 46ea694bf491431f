"""What one host makes of signatures: it asks for them before a version gets ready, and gives them where it publishes.

This file is the one place on the way to `current` where a version's signature is looked at: staging asks it, and so do
the two switches that pass staging by, a rollout's signal and the way back. What a signature is over, and whose counts,
is core.signing's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from modelsync.core import signing
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.errors import PolicyRefusal, VersionRejected
from modelsync.core.ids import Digest, FleetName, ModelName, Version
from modelsync.core.manifest import Manifest
from modelsync.core.signing import PublicKey, Signature
from modelsync.ports import ActiveRecord, Signer, Verifier

GATE = "signature"
MANIFEST_GATE = "manifest"
"""As a rejection names them."""


class Signing:
    """One host's key, and the keys that it trusts.

    Args:
        signer: None where this host has no key.
        active: what runs here, of one model: that goes on, whatever becomes of its signature.
        alarm: told of what runs, and what is to, without a signature that counts.
    """

    def __init__(
        self,
        *,
        fleet: FleetName,
        signer: Signer | None,
        verifier: Verifier,
        trusted: Sequence[PublicKey],
        active: Callable[[ModelName], ActiveRecord | None],
        alarm: Callable[[str, str], None],
    ) -> None:
        self._fleet = fleet
        self._signer = signer
        self._verifier = verifier
        self._active = active
        self._alarm = alarm
        self.trusted = trusted
        """Whose versions are run here; none: everybody's. A reload replaces it."""

    # --- asking ------------------------------------------------------------------------------------------------------

    def _refusal(self, entry: VersionRecord) -> str | None:
        if not self.trusted:
            return None
        return signing.refusal(entry.signature, self._fleet, entry.digest, self.trusted, self._verifier.verify)

    def require(self, record: ModelRecord, number: Version) -> Digest:
        """The digest of a version that may be held and run here; what runs here already may.

        Raises NoSuchVersion; VersionRejected: its signature does not count.
        """
        entry = record.require(number)
        active = self._active(record.name)
        if active is not None and (active.version, active.digest) == (number, entry.digest):
            return entry.digest  # it goes on, and may have to be mended
        if why := self._refusal(entry):
            raise VersionRejected(model=record.name, version=number, gate=GATE, reason=why)
        return entry.digest

    def require_named(self, record: ModelRecord, number: Version, manifest: Manifest) -> None:
        """A signature is over a manifest, and only the manifest says of which version it is. Raises VersionRejected."""
        if (manifest.model, manifest.version) == (record.name, number):
            return
        reason = (
            f"its record names the manifest of version {manifest.version} of {manifest.model}: the record was altered; "
            "find out who can write to Redis, and publish it again"
        )
        raise VersionRejected(model=record.name, version=number, gate=MANIFEST_GATE, reason=reason)

    def may_switch(self, record: ModelRecord, number: Version | None, digest: Digest | None) -> bool:
        """Whether this version may be switched to, for those that do not stage it first."""
        if not self.trusted:
            return True
        entry = record.versions.get(number) if number is not None else None
        return entry is not None and entry.digest == digest and self._refusal(entry) is None

    def runs_untrusted(self, record: ModelRecord) -> str | None:
        """What is wrong with the signature of what runs here, as a sentence; None if nothing is."""
        active = self._active(record.name)
        entry = record.versions.get(active.version) if active is not None else None
        if active is None or entry is None or entry.digest != active.digest or not (why := self._refusal(entry)):
            return None
        return f"version {active.version} runs here and {why}; it goes on until another version is wanted"

    def look(self, record: ModelRecord) -> None:
        """Raise the alarms for what runs here, and what is to, without a signature that counts."""
        if why := self.runs_untrusted(record):
            self._alarm("version.runs_untrusted", f"{record.name}: {why}")
        for number, why in self.shown(record).items():
            self._alarm("version.untrusted", f"version {number} of {record.name}: {why}")

    def note(self, error: VersionRejected) -> None:
        """A version that was to run here was rejected: raise the alarm if its record is what is wrong."""
        if error.gate == MANIFEST_GATE:
            self._alarm("version.untrusted", f"version {error.version} of {error.model}: {error.reason}")

    def shown(self, record: ModelRecord) -> Mapping[str, str]:
        """Of the versions that matter, those that are refused and why, for the node's report."""
        active, roll = self._active(record.name), record.rollout
        numbers = (record.wanted, record.head, roll.version if roll is not None and roll.open else None)
        return {
            str(number): f"{GATE}: {why}"
            for number, entry in sorted(record.versions.items())
            if number in numbers
            and not (active is not None and (active.version, active.digest) == (number, entry.digest))
            and (why := self._refusal(entry))
        }

    # --- giving ------------------------------------------------------------------------------------------------------

    @property
    def sealing_fault(self) -> str:
        """Why this host can publish nothing as primary; empty if it can."""
        return signing.sealing_fault(self._signer.public if self._signer else None, self.trusted) or ""

    def require_sealing(self) -> None:
        """Before anything is taken in. Raises PolicyRefusal: what this host publishes it would itself refuse."""
        if fault := self.sealing_fault:
            raise PolicyRefusal(reason=fault)

    def seal(self, digest: Digest) -> str:
        """The signature of a manifest that this host has just made; empty where it has no key. Raises PolicyRefusal."""
        self.require_sealing()
        if self._signer is None:
            return ""
        raw = self._signer.sign(signing.signed_bytes(self._fleet, digest))
        return str(Signature(self._signer.public.id, raw))

    def wants_seal(self, entry: VersionRecord) -> bool:
        """Whether a version lacks a signature that counts and this host can give: the same bytes are then worth another
        version. What somebody else has written is never signed after the fact."""
        if self._signer is None:
            return False
        own, known = self._signer.public, Signature.parse(entry.signature)
        if not self.trusted and known is not None and known.key_id != own.id:
            return False  # another primary signed it; whether that counts nobody has told this host
        keys = self.trusted or (own,)
        return signing.refusal(entry.signature, self._fleet, entry.digest, keys, self._verifier.verify) is not None
