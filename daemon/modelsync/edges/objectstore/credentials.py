"""What an object store's client is configured with: its URL, and a file of ``name=value`` lines.

The file wins over the environment, which the client reads by itself under the names that the store's own tools use.
Nothing of it is ever logged: a fault names the file and the line's number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from modelsync.core.errors import ObjectStoreRefused

ENDPOINTS = ("aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint", "azure_storage_endpoint")
"""Names of settings, and in capitals of the environment."""
CREDENTIAL = "object-store"
MAX_FILE_BYTES = 64 << 10
TIMEOUT_S = 300
"""For one request and its body: at least 220 KB/s for a segment of 64 MiB. Silence is noticed by who reads."""
CONNECT_TIMEOUT_S = 3


def credentials_of(configured: Path | None) -> Path | None:
    """The file to read: the configured one, else what systemd's ``LoadCredential=object-store:…`` has put there."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if configured is not None or not directory:
        return configured
    loaded = Path(directory, CREDENTIAL)
    return loaded if loaded.exists() else None


def read_settings(path: Path | None) -> dict[str, str]:
    """``name=value`` lines; empty ones and ``#`` comments are skipped. Raises ObjectStoreRefused."""
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise ObjectStoreRefused(operation=f"read {path}", reason=os.strerror(error.errno or 0)) from error
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
    return {
        "allow_http": _endpoint(settings).startswith("http://"),
        "timeout": f"{TIMEOUT_S}s",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
    }


def _endpoint(settings: Mapping[str, str]) -> str:
    """Of the file, else of the environment; empty: the service's own."""
    given = next((settings[name] for name in ENDPOINTS if settings.get(name)), "")
    if '"gcs_base_url": "http://' in settings.get("google_service_account_key", ""):
        return "http://"
    return given or next((os.environ[name.upper()] for name in ENDPOINTS if os.environ.get(name.upper())), "")
