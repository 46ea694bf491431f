"""What a host remembers of its own use of models."""

from __future__ import annotations

from typing import Protocol

from modelsync.core.ids import Digest
from modelsync.core.storage.cache import Cached


class AskedModels(Protocol):
    """STATE/asked.json: models that were loaded here by request. Methods block and raise DiskFull, DiskFailed."""

    def load(self) -> frozenset[str]: ...

    def save(self, names: frozenset[str]) -> None: ...


class VersionCache(Protocol):
    """When versions here were last used, and what they take. Methods block; they raise DiskFailed."""

    def touch(self, digest: Digest) -> None:
        """It is used now."""

    def cached(self, digest: Digest, besides: frozenset[Digest]) -> Cached | None:
        """What of a version lies here, ``besides`` not counted; None if its manifest does not."""
