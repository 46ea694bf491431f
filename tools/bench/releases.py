"""Published releases of models that PyPI packages ship, fetched once with pip and kept, as successive versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "silero-vad": ("silero_vad/data/", ("5.1", "5.1.2", "6.0.0", "6.2.0")),
    "magika": ("magika/models/", ("0.5.1", "0.6.1", "1.0.2")),
    "rapidocr-onnxruntime": ("rapidocr_onnxruntime/models/", ("1.2.13", "1.3.25", "1.4.4")),
}
"""By package: where in its wheel the weights lie, and the releases. Small, since each is fetched whole."""


def releases(package: str, root: Path, kept: Path) -> Iterator[Path]:
    """The weights of each release as a directory below ``root``, in order. Wheels stay in ``kept``.

    Raises:
        LookupError: pip cannot fetch them here.
    """
    inside, versions = PACKAGES[package]
    before: dict[str, int] = {}
    for version in versions:
        target = root / f"{package}-{version}"
        with zipfile.ZipFile(_wheel(package, version, kept)) as wheel:
            names = [name for name in wheel.namelist() if name.startswith(inside) and not name.endswith((".py", "/"))]
            sums = {name: wheel.getinfo(name).CRC for name in names}
            if sums == before:
                print(f"{package} {version}: the same weights, which would be the same version", flush=True)
                continue
            before = sums
            for name in names:
                path = target / name.removeprefix(inside)
                path.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(name) as packed, path.open("wb") as file:
                    shutil.copyfileobj(packed, file)
        yield target


def _wheel(package: str, version: str, kept: Path) -> Path:
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(kept.glob(pattern)):
        words = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11"]
        command = [sys.executable, "-m", "pip", *words, "--dest", kept, f"{package}=={version}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise LookupError(f"{package} {version}: {done.stderr.strip().splitlines()[-1]}")
    return next(kept.glob(pattern))
