"""A real S3 server for tests: moto's, as a process of its own, with conditional writes."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.daemons import free_port, until

KEYS = "aws_access_key_id=test\naws_secret_access_key=unspeakable\naws_region=us-east-1\n"


@contextmanager
def s3_server(bucket: str = "models") -> Iterator[str]:
    """Its URL; a bucket is there."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=environment)
    try:
        until(lambda: _answers(f"{url}/moto-api/"), "the S3 server")
        urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT"), timeout=10).close()
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


@contextmanager
def expired(url: str) -> Iterator[None]:
    """Meanwhile the server knows no access key any more, and refuses with a 403."""
    _authorise(url, "0")
    try:
        yield
    finally:
        _authorise(url, "inf")


def _authorise(url: str, free_requests: str) -> None:
    request = urllib.request.Request(
        f"{url}/moto-api/reset-auth", free_requests.encode(), {"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(request, timeout=10).close()
