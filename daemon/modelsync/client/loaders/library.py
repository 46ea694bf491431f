"""Imports a model library when the first model needs it, and says which package is missing when it is not there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from modelsync.core.errors import LoaderUnavailable


def library(module: str, loader: str, path: Path, package: str = "") -> Any:
    """Import a module. Raises LoaderUnavailable."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = package or module.partition(".")[0]
        raise LoaderUnavailable(path=str(path), loader=loader, package=f"{wanted} ({error})") from error
