"""What one host makes of signatures: which versions it takes, what goes on, what it signs; and a rollout's signal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelsync.core import signing
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.errors import PolicyRefusal, VersionRejected
from modelsync.core.ids import Digest, EntryId, FleetName, ModelName, NodeId, Version
from modelsync.core.signing import PublicKey, Signature
from modelsync.edges.host.ed25519 import Ed25519Signer, Ed25519Verifier
from modelsync.ports import ActiveRecord
from modelsync.runtime.activator import Ack, Activator
from modelsync.runtime.signing import Signing

FLEET, M = FleetName("prod"), ModelName("m")
OURS, OLD, EVE = (Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)) for seed in (1, 2, 3))
BOTH = (OURS.public, OLD.public)


def digest(number: int) -> Digest:
    return Digest(blake3(str(number).encode()).digest())


def version(number: int, by: Ed25519Signer | None) -> VersionRecord:
    text = str(Signature(by.public.id, by.sign(signing.signed_bytes(FLEET, digest(number))))) if by else ""
    return VersionRecord(digest(number), digest(number), EntryId(1, number), 1, 1, signature=text)


ENTRIES = {Version(n): version(n, by) for n, by in enumerate((None, OLD, OURS, EVE), 1)}
RECORD = ModelRecord(M, EntryId(1, 9), Version(4), Version(3), versions=ENTRIES)
UNSIGNED, BY_OLD, BY_OURS, BY_EVE = ENTRIES


class Host:
    """One that runs a version, or none."""

    def __init__(
        self, trusted: Sequence[PublicKey], active: Version | None = None, signer: Ed25519Signer | None = OURS
    ) -> None:
        self.alarms: list[tuple[str, str]] = []
        self.active = active
        self.signing = Signing(
            fleet=FLEET,
            signer=signer,
            verifier=Ed25519Verifier(),
            trusted=trusted,
            active=self._running,
            alarm=lambda kind, what: self.alarms.append((kind, what)),
        )

    def _running(self, name: ModelName) -> ActiveRecord | None:
        if self.active is None:
            return None
        return ActiveRecord(M, self.active, ENTRIES[self.active].digest, EntryId(1, 1), 0)

    def takes(self) -> set[int]:
        taken = set()
        for number, entry in ENTRIES.items():
            try:
                assert self.signing.require(RECORD, number) == entry.digest
                taken.add(int(number))
            except VersionRejected as error:
                assert (error.model, error.version, error.gate) == (M, number, "signature")
        return taken


@pytest.mark.parametrize(
    ("trusted", "active", "taken"),
    [
        ((), None, {1, 2, 3, 4}),
        ((OURS.public,), None, {3}),
        (BOTH, None, {2, 3}),
        ((OURS.public,), UNSIGNED, {1, 3}),
        ((OURS.public,), BY_OLD, {2, 3}),
        ((EVE.public,), BY_OURS, {3, 4}),
    ],
)
def test_what_is_taken_is_what_is_trusted_and_what_runs(
    trusted: Sequence[PublicKey], active: Version | None, taken: set[int]
) -> None:
    assert Host(trusted, active).takes() == taken


def test_what_runs_is_not_switched_to_again_once_its_key_is_gone() -> None:
    host = Host((OURS.public,), BY_OLD)
    may = {int(n) for n, entry in ENTRIES.items() if host.signing.may_switch(RECORD, n, entry.digest)}
    assert may == {3}
    assert not host.signing.may_switch(RECORD, BY_OURS, digest(1)), "another version's bytes under its number"
    assert not host.signing.may_switch(RECORD, Version(9), digest(9)) and not host.signing.may_switch(
        RECORD, None, None
    )
    assert Host(()).signing.may_switch(RECORD, None, None)


def test_another_digest_under_the_number_that_runs_is_not_what_runs() -> None:
    host = Host((OURS.public,), BY_OLD)
    forged = replace(RECORD, versions={**ENTRIES, BY_OLD: replace(ENTRIES[BY_OLD], digest=digest(1))})
    with pytest.raises(VersionRejected, match="it was signed with key"):
        host.signing.require(forged, BY_OLD)
    assert host.signing.runs_untrusted(forged) is None, "nobody knows who signed it"


def test_alarms_say_what_runs_and_what_is_refused() -> None:
    host = Host((OURS.public,), BY_OLD)
    host.signing.look(RECORD)
    assert [kind for kind, _ in host.alarms] == ["version.runs_untrusted", "version.untrusted"]
    assert "version 2 runs here" in host.alarms[0][1] and host.alarms[1][1].startswith("version 4 of m: ")
    assert set(host.signing.shown(RECORD)) == {"4"}
    quiet = Host((), BY_OLD)
    quiet.signing.look(RECORD)
    assert not quiet.alarms and not quiet.signing.shown(RECORD)


@pytest.mark.parametrize(
    ("trusted", "signer", "wants"),
    [
        ((), None, set()),
        ((), OURS, {1}),  # what others have signed may count where it is asked for
        ((OURS.public,), OURS, {1, 2, 4}),
        (BOTH, OURS, {1, 4}),
    ],
)
def test_what_is_published_again_to_be_signed(
    trusted: Sequence[PublicKey], signer: Ed25519Signer | None, wants: set[int]
) -> None:
    host = Host(trusted, signer=signer)
    assert {int(n) for n, entry in ENTRIES.items() if host.signing.wants_seal(entry)} == wants


@pytest.mark.parametrize(("trusted", "signer"), [(BOTH, None), ((OLD.public,), OURS)])
def test_who_would_not_be_believed_signs_nothing(trusted: Sequence[PublicKey], signer: Ed25519Signer | None) -> None:
    host = Host(trusted, signer=signer)
    with pytest.raises(PolicyRefusal, match="can publish nothing"):
        host.signing.require_sealing()
    with pytest.raises(PolicyRefusal):
        host.signing.seal(digest(1))


def test_who_has_a_key_signs_and_who_has_none_does_not() -> None:
    assert Host(BOTH).signing.seal(digest(3)) == Host(()).signing.seal(digest(3)) == ENTRIES[BY_OURS].signature
    assert Host((), signer=None).signing.seal(digest(3)) == ""


async def test_a_signal_does_not_switch_to_what_was_revoked_since_it_was_staged() -> None:
    host, flipped = Host(BOTH), []
    parts: Any = SimpleNamespace(
        record=lambda name: RECORD,
        active=lambda name: None,
        flip=flipped.append,
        tells=lambda name: False,
        wall_ms=lambda: 0,
    )
    activator = Activator(
        node=NodeId("n"), book=parts, store=parts, live=parts, stager=parts, gates=parts, signing=host.signing,
        keeper=parts, clock=parts, on_change=parts,
    )  # fmt: skip
    activator._models[M] = SimpleNamespace(switching=asyncio.Lock())  # type: ignore[assignment]
    ack = Ack(EntryId(1, 2), BY_OLD, ENTRIES[BY_OLD].digest)
    host.signing.trusted = (OURS.public,)
    assert not await activator.flip(M, ack, EntryId(1, 9)) and not flipped
    host.signing.trusted = BOTH
    assert await activator.flip(M, ack, EntryId(1, 9)) and flipped[0].digest == ack.digest
