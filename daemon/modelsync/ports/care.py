"""What a person may ask one host to do with what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from modelsync.core.find import Condition
from modelsync.core.ids import Digest, ModelName
from modelsync.core.manifest import Manifest
from modelsync.ports.disk import Progress


class CareApi(Protocol):
    """Each is about this host alone."""

    async def collect(self, *, dry_run: bool) -> dict[str, Any]:
        """Remove what no retained version needs, or only say what that is. Raises LocalFault, MalformedMessage."""

    async def scrub(self) -> dict[str, Any]:
        """Read everything again, set aside what is damaged and pull it anew. Raises LocalFault."""

    def scrubbing(self) -> dict[str, Any]:
        """How far the scrub under way is, as ``status`` says it; empty: none is."""

    async def find(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """The versions whose metadata satisfy all conditions, as far as their manifests are held here."""


class BytesCheck(Protocol):
    """Reads held bytes again at a bounded rate. Blocks; raises DiskFailed."""

    def check(self, manifest: Manifest, name: ModelName, digest: Digest, progress: Progress) -> list[str]:
        """Set aside each object of a version that is damaged, counting what is read; the paths of those and of the
        ones that are gone."""

    def stop(self) -> None:
        """End what is being read, soon."""
