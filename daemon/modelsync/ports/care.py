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

    async def verify(self, name: ModelName | None) -> list[dict[str, Any]]:
        """``model``, ``version`` and ``fault`` (or None) of what is held, of one model or of all; only read.

        Raises LocalFault, NoSuchVersion.
        """

    def scrubbing(self) -> dict[str, Any]:
        """How far the scrub or verification under way is, as ``status`` says it; empty: none is."""

    async def find(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """The versions whose metadata satisfy all conditions, as far as their manifests are held here."""


class BytesCheck(Protocol):
    """Reads held bytes again at a bounded rate. Blocks; raises DiskFailed."""

    def check(
        self, manifest: Manifest, name: ModelName, digest: Digest, progress: Progress, *, set_aside: bool = True
    ) -> list[str]:
        """The paths of a version whose bytes are damaged or gone, counting what is read.

        Args:
            set_aside: whether objects that are damaged are, so that nobody is served them.
        """

    def stop(self) -> None:
        """End what is being read, soon."""
