"""What an object store's client is configured with: its URL, and a file of ``name=value`` lines.

The file wins over the environment, which the client reads by itself under the names that the store's own tools use.
Nothing of it is ever logged: a fault names the file and the line's number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from modelsync.core.errors import ObjectStoreRefused
from modelsync.edges.disk.durable import local_faults

MAX_FILE_BYTES = 64 << 10
TIMEOUT_S = 300
"""For one request and its body: at least 220 KB/s for a segment of 64 MiB. Silence is noticed by who reads."""
CONNECT_TIMEOUT_S = 3


def read_settings(path: Path | None) -> dict[str, str]:
    """``name=value`` lines; empty ones and ``#`` comments are skipped. Raises DiskFailed, ObjectStoreRefused."""
    if path is None:
        return {}
    with local_faults(path, "read the object store's credentials"), open(path, "rb") as file:
        text = file.read(MAX_FILE_BYTES).decode(errors="replace")
    settings = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, found, value = stripped.partition("=")
        if not found or not name.strip():
            raise ObjectStoreRefused(operation=f"read {path}", reason=f"line {number} is not name=value")
        settings[name.strip().lower()] = value.strip().strip("\"'")
    return settings


def client_options(settings: Mapping[str, str]) -> dict[str, object]:
    """Time limits, and whether plain HTTP is meant: only where the endpoint says so."""
    endpoint = settings.get("aws_endpoint") or settings.get("aws_endpoint_url") or _endpoint_of_environment()
    return {
        "allow_http": endpoint.startswith("http://"),
        "timeout": f"{TIMEOUT_S}s",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
    }


def _endpoint_of_environment() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
