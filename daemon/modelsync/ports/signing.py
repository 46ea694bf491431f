"""Signatures of versions: what makes and what checks them."""

from __future__ import annotations

from typing import Protocol

from modelsync.core.signing import PublicKey


class Verifier(Protocol):
    """Checks signatures."""

    def verify(self, key: PublicKey, signature: bytes, message: bytes) -> bool:
        """Whether this key made this signature, 64 bytes, over these bytes. Raises nothing."""


class Signer(Protocol):
    """This host's private key."""

    @property
    def public(self) -> PublicKey: ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
