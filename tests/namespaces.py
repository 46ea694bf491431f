"""Hosts as network namespaces, for what a process alone cannot show: cut and one-way links, a host that loses power.

The hosts hang on a bridge in a namespace of its own, where a test sits and reaches all of them whatever it has cut
between them. Nothing of the machine itself is touched. Needs root, ``ip`` and ``nft``.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator

PREFIX = "10.83.0"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def why_not() -> str:
    """What this machine lacks for it; empty: nothing."""
    if os.geteuid() != 0:
        return "network namespaces can only be made by root"
    missing = [name for name in ("ip", "nft") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (Debian: iproute2, nftables)" if missing else ""


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """Let this thread, and what it starts, see the network of a namespace; sockets keep theirs afterwards."""
    with open("/proc/thread-self/ns/net", "rb") as own, open(path, "rb") as other:
        _set(other.fileno())
        try:
            yield
        finally:
            _set(own.fileno())


def _set(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """Named hosts on one bridge; every change takes effect at once. Use it with ``with``."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._lan = f"ms{os.getpid()}-{next(_numbers)}"
        self._cuts: list[tuple[str, str]] = []

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("", *self.names):
            subprocess.run(["ip", "netns", "del", self._namespace(name)], capture_output=True, check=False)

    def _make(self) -> None:
        _ip("netns", "add", self._lan)
        self._ip("link", "add", "lan", "type", "bridge", "forward_delay", "0")
        self._ip("addr", "add", f"{PREFIX}.254/24", "dev", "lan")
        self._ip("link", "set", "lan", "up")
        self._ip("link", "set", "lo", "up")
        for name in self.names:
            space = self._namespace(name)
            _ip("netns", "add", space)
            self._ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", f"to-{name}", "master", "lan", "up")
            for words in (
                ["addr", "add", f"{self.address(name)}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                _ip("-n", space, *words)

    def address(self, name: str) -> str:
        return f"{PREFIX}.{1 + self.names.index(name)}"

    def inside(self, name: str = "") -> contextlib.AbstractContextManager[None]:
        """This thread as a host; without a name, as the observer whom no cut concerns."""
        return entered(f"/run/netns/{self._namespace(name)}")

    # --- faults ------------------------------------------------------------------------------------------------------

    def drop(self, source: str, target: str) -> None:
        """Whatever ``source`` sends to ``target`` is lost from now on, silently; the other way it goes on."""
        self._cuts.append((source, target))
        self._apply()

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between two hosts."""
        self._cuts += [(one, other), (other, one)]
        self._apply()

    def heal(self) -> None:
        """All links as at the beginning, but for those unplugged."""
        self._cuts.clear()
        self._apply()

    def unplug(self, name: str) -> None:
        """No frame leaves or reaches this host any more, not even a FIN of a process that dies on it."""
        self._ip("link", "set", f"to-{name}", "down")

    def plug(self, name: str) -> None:
        self._ip("link", "set", f"to-{name}", "up")

    def _apply(self) -> None:
        rules = "".join(f"ip saddr {self.address(a)} ip daddr {self.address(b)} drop\n" for a, b in self._cuts)
        table = f"table bridge cuts {{\nchain forward {{\ntype filter hook forward priority 0;\n{rules}}}\n}}"
        script = f"table bridge cuts {{}}\ndelete table bridge cuts\n{table}\n"
        with self.inside():
            subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)

    def space(self, name: str = "") -> str:
        """The namespace of a host; without a name, that of the bridge."""
        return self._namespace(name)

    def _namespace(self, name: str) -> str:
        return f"{self._lan}-{name}" if name else self._lan

    def _ip(self, *words: str) -> None:
        _ip("-n", self._lan, *words)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
