"""The identities that every other file speaks in: names, digests, versions, entry ids.

This file alone decides what a legal name is. It must not know where names come from (a directory, Redis, HTTP,
the command line): each of those is hostile, and each calls the same parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from modelsync.core.errors import BadName

ModelName = NewType("ModelName", str)
NodeId = NewType("NodeId", str)
FleetName = NewType("FleetName", str)
Version = NewType("Version", int)

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact (RFC 8259, section 6)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DECIMAL = re.compile(r"[1-9][0-9]{0,15}")
_DIGEST = re.compile(r"b3:([0-9a-f]{64})")
_ENTRY = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_TEMPORARY_SUFFIXES = (".tmp", ".part", ".partial", ".swp", ".crdownload", ".filepart")


def _name(kind: str, text: object) -> str:
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        raise BadName(
            kind=kind, value=repr(text)[:80], rule="1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
        )
    if text.lower().endswith(_TEMPORARY_SUFFIXES):
        raise BadName(kind=kind, value=repr(text), rule="a name may not end like a temporary file")
    return text


def model_name(text: object) -> ModelName:
    """Parse a model's name. Raises BadName."""
    return ModelName(_name("model name", text))


def node_id(text: object) -> NodeId:
    """Parse a node's id. Raises BadName."""
    return NodeId(_name("node id", text))


def fleet_name(text: object) -> FleetName:
    """Parse a fleet's name. Raises BadName."""
    return FleetName(_name("fleet name", text))


def place_label(text: object) -> str:
    """Parse the name of a rack or zone. Raises BadName."""
    return _name("label", text)


def alias_name(text: object) -> str:
    """Parse an alias; one that reads as a number would be taken for a version, so it is refused."""
    name = _name("alias", text)
    if name.isdigit():
        raise BadName(kind="alias", value=repr(text), rule="an alias may not be a number")
    return name


def version(text: object) -> Version:
    """Parse a version from an int or its canonical decimal text. Raises BadName.

    Booleans, signs, leading zeros and anything above 2^53-1 are refused: ``012`` and ``12`` would otherwise be
    two directories and one version.
    """
    if isinstance(text, int) and not isinstance(text, bool) and 1 <= text <= MAX_INTEGER:
        return Version(text)
    if isinstance(text, str) and _DECIMAL.fullmatch(text) and int(text) <= MAX_INTEGER:
        return Version(int(text))
    raise BadName(kind="version", value=repr(text)[:80], rule="a whole number from 1 to 2^53-1, without leading zeros")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A BLAKE3 digest, 32 bytes, written ``b3:`` and 64 hexadecimal digits (what b3sum prints)."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise BadName(kind="digest", value=f"{len(self.raw)} bytes", rule="32 bytes")

    @property
    def hex(self) -> str:
        return self.raw.hex()

    def __str__(self) -> str:
        return "b3:" + self.raw.hex()

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Parse ``b3:<64 hex>``. Raises BadName."""
        match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise BadName(kind="digest", value=repr(text)[:80], rule="b3: and 64 lower-case hexadecimal digits")
        return cls(bytes.fromhex(match.group(1)))


@dataclass(frozen=True, slots=True, order=True)
class EntryId:
    """The id of one catalog change: ``epoch-seq``. The epoch is the fencing token; Redis orders streams by it."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    def next(self) -> EntryId:
        """The entry that follows this one within the same epoch."""
        return EntryId(self.epoch, self.seq + 1)

    @classmethod
    def parse(cls, text: object) -> EntryId:
        """Parse ``epoch-seq``. Raises BadName."""
        match = _ENTRY.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match.group(1)) > MAX_INTEGER or int(match.group(2)) > MAX_INTEGER:
            raise BadName(kind="entry id", value=repr(text)[:80], rule="epoch-seq, two whole numbers below 2^53")
        return cls(int(match.group(1)), int(match.group(2)))


ZERO_ID = EntryId(0, 0)
"""Below every entry that was ever written."""


def same_command(ask: str, other: str) -> bool:
    """Whether two fields ``ask``, names with blanks between them, name one command heard on ``control``."""
    return not set(ask.split()).isdisjoint(other.split())
