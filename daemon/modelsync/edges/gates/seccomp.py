"""A system-call filter for caged programs, as the kernel's own byte code: no library does this for us.

It keeps a program from signalling the daemon that started it, from tracing anything, and where told to, from opening
sockets. It needs no privilege and no namespaces, which a hardened service may not have. Source: seccomp(2),
linux/filter.h, linux/audit.h, and the call tables of the two architectures.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Sequence

PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _DENY = 0x7FFF0000, 0x80000000, 0x00050001  # the last: fails with EPERM
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16

_ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        {"signal": (62, 200, 234, 129, 297), "never": (101, 311, 424, 425, 426, 427), "socket": (41,)},
    ),
    "aarch64": (
        0xC00000B7,
        {"signal": (129, 130, 131, 138, 240), "never": (117, 271, 424, 425, 426, 427), "socket": (198,)},
    ),
}
"""signal: kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo; never: ptrace process_vm_writev pidfd_send_signal
io_uring_setup io_uring_enter io_uring_register (a ring opens sockets without a call that a filter sees)."""


def available() -> bool:
    """Whether this machine's architecture is in the table."""
    return platform.machine() in _ARCHITECTURES


def install(protected: Sequence[int], *, network: bool) -> None:
    """Put the filter on this process and all it will ever start. It cannot be taken off.

    Args:
        protected: process ids that it may not signal, alone or as a group.
    Raises: OSError: the kernel has no filters.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = program(platform.machine(), protected, network=network)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(header), 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl: the kernel does not filter system calls")


def program(machine: str, protected: Sequence[int], *, network: bool) -> bytes:
    """The filter's byte code for one architecture."""
    architecture, calls = _ARCHITECTURES[machine]
    code = [_step(_LOAD, _ARCH_AT), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, _NUMBER_AT)]
    if machine == "x86_64":
        code += _deny(_AT_LEAST, 0x40000000)  # the x32 names of the same calls
    for number in (*calls["never"], *(() if network else calls["socket"])):
        code += _deny(_EQUAL, number)
    spared = [_step(_LOAD, _FIRST_ARGUMENT_AT)]
    for pid in (-1, *protected, *(-pid for pid in protected)):
        spared += _deny(_EQUAL, pid & 0xFFFFFFFF)
    spared.append(_step(_RETURN, _ALLOW))
    for number in calls["signal"]:
        code += [_step(_EQUAL, number, 0, len(spared)), *spared]
    code.append(_step(_RETURN, _ALLOW))
    return b"".join(code)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _deny(comparison: int, value: int) -> list[bytes]:
    return [_step(comparison, value, 0, 1), _step(_RETURN, _DENY)]
