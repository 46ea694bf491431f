"""The lock of a state directory: whoever has it is the only daemon there, and its last one is dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from modelsync.core.errors import StateInUse


def hold(root: Path) -> int:
    """Take it; the kernel lets go of it when this process dies.

    Returns:
        The descriptor that holds it until it is closed.
    Raises:
        StateInUse: another daemon has it.
    """
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StateInUse(path=str(root), holder=f"pid {holder}") from error
    with contextlib.suppress(OSError):
        # For people only, so a full disk must not stop a start over it. Written over the last one, in place.
        os.pwrite(descriptor, f"{os.getpid():<10}\n".encode(), 0)
    return descriptor
