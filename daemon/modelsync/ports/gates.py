"""What stands between a version and its use: validation before the swap (step 6), servers after it (step 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelsync.core.gates import Check, Health, Rejection
from modelsync.core.hooks import Hook
from modelsync.core.ids import Digest, ModelName, Version


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version as gates and servers see it: its whole, durable tree on this host."""

    model: ModelName
    version: Version
    digest: Digest
    tree: Path


class Validator(Protocol):
    """Looks at a version before anything visible changes."""

    async def validate(self, candidate: Candidate, check: Check) -> None:
        """Return where it is good. Raises VersionRejected, LocalFault (the check itself could not run)."""


class Servers(Protocol):
    """The inference servers of this host."""

    async def tell(self, candidate: Candidate, hooks: Sequence[Hook]) -> None:
        """Let the servers take a version, one hook after another. Raises HookFailed."""

    async def probe(self, candidate: Candidate, health: Health) -> str | None:
        """Ask once whether they are well; what is wrong, or None."""


class Views(Protocol):
    """The directory layouts that servers watch. Methods block; they raise DiskFull, DiskFailed, LayoutCorrupt."""

    def show(self, candidate: Candidate, kinds: Sequence[str]) -> None:
        """Make a version the one that these views offer; a number that is shown already is never changed.

        Raises HookFailed too: nothing says how to show it.
        """

    def withdraw(self, model: ModelName, keep: frozenset[Digest], kinds: Sequence[str]) -> None:
        """Unlink what is not among these, and every kind that is not wanted any more: before trees are removed."""


class RejectionDisk(Protocol):
    """STATE/rejected. Methods block; they raise DiskFull, DiskFailed, LayoutCorrupt."""

    def load_rejections(self) -> dict[ModelName, list[Rejection]]: ...

    def save_rejections(self, model: ModelName, rejections: Sequence[Rejection]) -> None: ...
