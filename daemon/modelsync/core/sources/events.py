"""What a watch reports of the models directory: past tense, paths relative to it, ``/``-separated.

A path's undecodable bytes are surrogate escapes. This file only names what can happen; `settle` decides what it means.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Created:
    """A name appeared: a directory, a link, or a file. It says nothing about writers: those write, sooner or later."""

    path: str


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes were written to a file, so somebody has it open."""

    path: str


@dataclass(frozen=True, slots=True)
class Adjusted:
    """A file's times, mode or owner were set."""

    path: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A file that was open for writing was closed."""

    path: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """Something got another name; an empty source or target lies outside the models directory."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A name was removed."""

    path: str


@dataclass(frozen=True, slots=True)
class Overflowed:
    """Events were lost: only a scan can tell what is there."""


@dataclass(frozen=True, slots=True)
class RootRemoved:
    """The models directory itself was removed; another one may have taken its place."""


@dataclass(frozen=True, slots=True)
class WatchLost:
    """The watch does not see everything; ``reason`` for a person."""

    reason: str


FileEvent = Created | Written | Adjusted | Closed | Renamed | Removed
SourceEvent = FileEvent | Overflowed | RootRemoved | WatchLost
