"""modelsync keeps machine-learning model weights in step across plain Linux hosts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelsync.client import Client, Handle, load_version
    from modelsync.publishing import PublishedVersion, publish

__all__ = ["Client", "Handle", "PublishedVersion", "load_version", "publish"]
__version__ = "0.1.0"

_WHERE = {
    "Client": "modelsync.client",
    "Handle": "modelsync.client",
    "load_version": "modelsync.client",
    "publish": "modelsync.publishing",
    "PublishedVersion": "modelsync.publishing",
}
"""What applications import from here, found when it is asked for: the daemon and every command import this file too."""


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
