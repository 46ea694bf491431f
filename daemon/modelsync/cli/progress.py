"""A bar on a terminal's stderr while a command waits; nothing where stderr is not one, or JSON was asked for."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from modelsync.cli.output import printable, size
from modelsync.core import pace
from modelsync.core.pace import Pace

EVERY_S = 0.1
BAR_CHARS = 12
"""So that all of it fits eighty columns."""


class Bar:
    """One line that is written over. ``show`` and ``note`` may be called as often as one likes."""

    def __init__(self, *, quiet: bool, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet or not self._stream.isatty()
        self._pace: Pace | None = None
        self._what = ""
        self._written_s = 0.0

    def show(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """How much of something is done."""
        now_s = time.monotonic()
        if what != self._what:
            self._what, self._pace = what, None
        self._pace = pace.seen(self._pace, done_bytes, total_bytes, now_s)
        self._write(rendered(what, self._pace.line()), now_s, last=done_bytes >= total_bytes)

    def note(self, text: str) -> None:
        """What is waited for, in words."""
        self._write(text, time.monotonic(), last=False)

    def say(self, text: str) -> None:
        """A line that stays, on any stderr."""
        if not self._quiet:
            self._stream.write("\r\x1b[K")
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line empty."""
        if not self._quiet and self._written_s:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _write(self, text: str, now_s: float, *, last: bool) -> None:
        if self._quiet or (now_s - self._written_s < EVERY_S and not last):
            return
        self._written_s = now_s
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{printable(text)[:width]}\x1b[K")
        self._stream.flush()


def rendered(what: str, line: Mapping[str, Any]) -> str:
    """``sending  [###.........]  26 %  0.5 of 2.0 GiB  310.0 MiB/s  5 s left``."""
    done, total = line["done_bytes"], line["total_bytes"]
    share = min(1.0, done / total) if total else 1.0
    filled = int(share * BAR_CHARS)
    bar = "#" * filled + "." * (BAR_CHARS - filled)
    return f"{what}  [{bar}]  {int(100 * share):3d} %  {moved(line)}"


def moved(line: Mapping[str, Any]) -> str:
    """Bytes, rate and time left of one line of a report; what is not known is left out."""
    rate, left_s = line.get("rate_bytes_per_s"), line.get("left_s")
    parts = [f"{size(line['done_bytes'])} of {size(line['total_bytes'])}"]
    if rate is not None:
        parts.append(f"{size(rate)}/s")
    if left_s:
        parts.append(f"{duration(left_s)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A time as people say it: ``5 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
