"""What lies in the models directory and is not published, with the reason: for `status`, and once for the log.

This file alone keeps it and bounds it. It decides nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import structlog

from modelsync.core.sources.names import shown

log = structlog.get_logger()

MAX_REFUSALS = 1_000
"""Shown, logged and kept of one entry; a directory that is full of things that are not models must not fill the log."""
DIRECTORY = "."
"""The entry that stands for the models directory itself."""


class Refusals:
    """Reasons by entry (the first part of a path) and path."""

    def __init__(self) -> None:
        self._refused: dict[str, dict[str, str]] = {}
        self._waiting: dict[str, dict[str, str]] = {}

    def say(self, entry: str, refused: Mapping[str, str], waiting: Mapping[str, str] | None = None) -> None:
        """Replace what is said of one entry; a refusal that is new is logged, what is only waited for is not."""
        old = self._refused.pop(entry, {})
        self._waiting.pop(entry, None)
        new = dict(islice(refused.items(), MAX_REFUSALS))
        for path, reason in new.items():
            if old.get(path) != reason and len(self._refused) < MAX_REFUSALS:
                log.warning("source.refused", source=shown(path), reason=reason, next="looked at again when it changes")
        if new:
            self._refused[entry] = new
        if waiting:
            self._waiting[entry] = dict(islice(waiting.items(), MAX_REFUSALS))

    def entries(self) -> frozenset[str]:
        """The entries of which anything is said, the directory itself left out."""
        return frozenset([*self._refused, *self._waiting]) - {DIRECTORY}

    def of(self, entry: str) -> Mapping[str, str]:
        return self._refused.get(entry, {})

    def snapshot(self) -> dict[str, str]:
        """Path, safe to print, to reason; at most MAX_REFUSALS of them, those that wait last."""
        everything = (
            (shown(path), reason)
            for kept in (self._refused, self._waiting)
            for entry in sorted(kept)
            for path, reason in kept[entry].items()
        )
        return dict(islice(everything, MAX_REFUSALS))
