"""Files that hold a secret: a token or a password. This file alone decides which of them may be trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modelsync.core.errors import ConfigurationFault

_MAX_BYTES = 4096
CREDENTIALS = Path("/run/credentials")
"""Where LoadCredential= puts them."""


def read_secret(path: Path, key: str) -> str:
    """Read a secret, without the line feed at its end.

    Args:
        path: a regular file that only its owner and group may read; at most 4096 bytes of printable ASCII.
        key: the dotted key that named it, for the fault.
    Raises:
        ConfigurationFault: it is missing, open to everyone, empty or not text. The secret is never in the message.
    """
    if fault := secret_fault(path):
        raise ConfigurationFault(source=str(path), faults=(f"{key}: {fault}",))
    return _content(path)


def access_fault(path: Path) -> str | None:
    """What is wrong with who may read and change a file, whatever it holds; None if nothing is."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # opening a FIFO would wait for its writer
            return f"{path} is not a regular file"
        path.open("rb").close()
    except OSError as error:
        shown = (
            "; systemd shows it to root alone, and while the service runs" if path.is_relative_to(CREDENTIALS) else ""
        )
        return f"{path} cannot be read: {os.strerror(error.errno or 0)}{shown}"
    if info.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        mode = stat.S_IMODE(info.st_mode)
        return f"{path} has mode {mode:04o}, so others can read or change the secret; chmod 600 would be right"
    return None


def secret_fault(path: Path) -> str | None:
    """What is wrong with a secret file and what would be right; None if nothing is."""
    if fault := access_fault(path):
        return fault
    try:
        content = _content(path) if path.stat().st_size <= _MAX_BYTES else ""
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {os.strerror(error.errno or 0) if isinstance(error, OSError) else error}"
    if not content or not content.isascii() or not content.isprintable() or " " in content:
        return f"{path} does not hold one line of 1 to {_MAX_BYTES} printable ASCII characters without spaces"
    return None


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES + 1).decode("utf-8").rstrip("\r\n")
