"""Ed25519 by ``cryptography``: keys in files, signatures, and whether one is right.

The library is imported by whoever signs or checks for the first time: a daemon that does neither is no larger for it.
Who is trusted is core.signing's; who may read a key's file the configuration has looked at.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from modelsync.core.errors import ConfigurationFault, PolicyRefusal
from modelsync.core.signing import PublicKey
from modelsync.edges.disk import durable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_FILE_BYTES = 4096
"""A key in PEM has about 120."""


class Ed25519Verifier:
    """Implements ports.Verifier."""

    def __init__(self) -> None:
        self.verify = lru_cache(maxsize=4096)(_verify)  # each look at a model asks again about the same few


def _verify(key: PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  see above
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no point of the curve
        return False
    return True


class Ed25519Signer:
    """Implements ports.Signer."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)


def load_signer(path: Path, key: str = "security.signing_key_file") -> Ed25519Signer:
    """Read a private key.

    Args:
        path: PKCS 8 in PEM, not encrypted.
        key: the dotted key, or whatever else named it, for the fault.
    Raises:
        ConfigurationFault: it cannot be read or is no such key. Nothing of the file is in the message.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  see above
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            private = load_pem_private_key(file.read(MAX_FILE_BYTES), None)
    except OSError as error:
        raise _fault(path, key, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _fault(path, key, "is no private key in PEM without a passphrase") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _fault(path, key, "is a key of another kind than Ed25519")
    return Ed25519Signer(private)


def _fault(path: Path, key: str, what: str) -> ConfigurationFault:
    text = f"{key}: {path} {what}; `modelsync keys new FILE` makes one"
    return ConfigurationFault(source=str(path), faults=(text,))


def new_key(path: Path) -> PublicKey:
    """Make a private key and write it, readable by its owner alone; what is there already is never replaced.

    Raises: PolicyRefusal: something is there; DiskFull, DiskFailed.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  see above
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    private = Ed25519PrivateKey.generate()
    data = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with durable.local_faults(path, "write a key"):
        try:
            descriptor = durable.create_file(path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ELOOP):
                raise PolicyRefusal(reason=f"{path} is there already, and a key is never written over") from error
            raise
        try:
            durable.write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        durable.fsync_directory(path.parent)
    return PublicKey(private.public_key().public_bytes_raw())
