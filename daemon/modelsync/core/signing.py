"""What is signed of a version, and whose signature counts.

This file alone decides which bytes a signature is over, how it is written down and what is wrong with one. How Ed25519
is computed an edge knows. A manifest's digest stands for all of a version: its model, number, id, words and files.
PROTOCOL.md section 11.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelsync.core.errors import BadName
from modelsync.core.ids import Digest, FleetName

DOMAIN = "modelsync version signature 1"
"""The first line of what is signed: nothing else that a key of ours may ever sign begins so."""
ALGORITHM = "ed25519"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
"""Both RFC 8032, section 5.1."""
MAX_TEXT_CHARS = 256
"""Of a signature in a record; one of a kind that this release does not know is carried along as it is."""

_KEY_RULE = f"{ALGORITHM}: and {KEY_BYTES} bytes in base64, as `modelsync keys new` prints it; a comment may follow"
_KEY_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key, 32 bytes."""

    raw: bytes

    @property
    def id(self) -> str:
        """What a signature says of who made it: a hint for the search, never proof. The first 8 bytes, in hex."""
        return self.raw[:8].hex()

    def __str__(self) -> str:
        return f"{ALGORITHM}:{base64.b64encode(self.raw).decode()}"

    @classmethod
    def parse(cls, text: object) -> PublicKey:
        """Parse a line of ``security.trusted_keys``; what follows the first blank is for people. Raises BadName."""
        words = text.split(maxsplit=1) if isinstance(text, str) else []
        algorithm, _, encoded = words[0].partition(":") if words else ("", "", "")
        raw = _decoded(encoded, KEY_BYTES)
        if algorithm != ALGORITHM or raw is None:
            raise BadName(kind="public key", value=repr(text)[:100], rule=_KEY_RULE)
        return cls(raw)


@dataclass(frozen=True, slots=True)
class Signature:
    """Who says to have signed, and the 64 bytes."""

    key_id: str
    raw: bytes

    def __str__(self) -> str:
        return f"{ALGORITHM}:{self.key_id}:{base64.b64encode(self.raw).decode()}"

    @classmethod
    def parse(cls, text: str) -> Signature | None:
        """Read a record's signature; None for what is none that this release knows."""
        algorithm, _, rest = text.partition(":")
        key_id, _, encoded = rest.partition(":")
        raw = _decoded(encoded, SIGNATURE_BYTES)
        if algorithm != ALGORITHM or raw is None or _KEY_ID.fullmatch(key_id) is None:
            return None
        return cls(key_id, raw)


def _decoded(text: str, size_bytes: int) -> bytes | None:
    """Base64 in the one form that encodes these bytes."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == size_bytes and base64.b64encode(raw).decode() == text else None


def signed_bytes(fleet: FleetName, digest: Digest) -> bytes:
    """What a signature of a version is over: three lines, each ended by a line feed."""
    return f"{DOMAIN}\n{fleet}\n{digest}\n".encode()


Verify = Callable[[PublicKey, bytes, bytes], bool]
"""Whether a key made a signature over a message."""


def refusal(text: str, fleet: FleetName, digest: Digest, trusted: Sequence[PublicKey], verify: Verify) -> str | None:
    """Why a version's signature does not count here, and what to do about it; None where it does.

    Args:
        text: the signature as it stands in the version's record; empty for none.
        trusted: whose signatures count.
    """
    if not text:
        return "it is not signed; publish it again through a primary that has a security.signing_key_file"
    signature = Signature.parse(text)
    if signature is None:
        return "its signature is of no form that this release knows; publish it again, or upgrade this host"
    candidates = [key for key in trusted if key.id == signature.key_id]
    if not candidates:
        return (
            f"it was signed with key {signature.key_id}, which security.trusted_keys of this host does not name; "
            "publish it again with a key that it does, or add that key"
        )
    message = signed_bytes(fleet, digest)
    if any(verify(key, signature.raw, message) for key in candidates):
        return None
    return (
        f"its signature with key {signature.key_id} is over something else: the record was altered, or taken from "
        "another version or fleet; find out who can write to Redis, and publish it again"
    )


def sealing_fault(own: PublicKey | None, trusted: Sequence[PublicKey]) -> str | None:
    """Why a host could not publish a version that it would accept itself; None if it can."""
    if not trusted or own in trusted:
        return None
    if own is None:
        return (
            "security.trusted_keys is set and security.signing_key_file is not, so this host can publish nothing as "
            "primary: give it a key (modelsync keys new FILE), and add its public key on every host"
        )
    return (
        f"the key of security.signing_key_file, {own.id}, is not among security.trusted_keys, so this host can publish "
        f'nothing as primary: add "{own}" on every host, or give it a key that is trusted'
    )
