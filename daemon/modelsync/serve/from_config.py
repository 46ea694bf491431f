"""The server's settings from modelsync's configuration file, or from a live directory alone."""

from __future__ import annotations

from pathlib import Path

from modelsync.serve.settings import ServeSettings


def from_live(live_dir: Path) -> ServeSettings:
    """The defaults, over one live directory."""
    return ServeSettings(live_dir.absolute())
