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
