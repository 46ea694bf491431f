"""What inference servers are shown, with each of their traps: a stand-in for Triton lists as Triton does."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from modelsync.core.errors import LayoutCorrupt
from modelsync.core.ids import Digest, ModelName, Version
from modelsync.edges.gates.views import ViewTrees
from modelsync.ports import Candidate

FRAUD = ModelName("fraud")


def candidate(root: Path, number: int, data: bytes = b"weights", mark: int | None = None) -> Candidate:
    digest = Digest(bytes([number if mark is None else mark]) * 32)
    tree = root / "state" / "store" / FRAUD / digest.hex
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "fraud.joblib").write_bytes(data)
    os.utime(tree, (number, number))  # older than anything that a server has seen
    return Candidate(FRAUD, Version(number), digest, tree)


@pytest.fixture
def shown(tmp_path: Path) -> ViewTrees:
    return ViewTrees(tmp_path / "views")


class Triton:
    """Lists and loads as Triton does: names that begin with a number are versions, one dead link fails the listing,
    and a model is only loaded again if something in it is newer than before."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.seen_ns = 0
        self.serving: bytes | None = None

    def versions(self, name: str) -> list[int]:
        found = []
        for entry in os.scandir(self.repository / name):
            entry.stat()  # follows the link; one that leads nowhere raises, and nothing is listed
            if number := re.match(r"\d+", entry.name):
                found.append(int(number.group()))
        return sorted(found)

    def load(self, name: str) -> None:
        directory = self.repository / name
        newest_ns = max(path.stat().st_mtime_ns for path in (directory, *directory.iterdir()))
        if newest_ns <= self.seen_ns:
            return
        self.seen_ns = newest_ns
        config = (directory / "config.pbtxt").read_text()
        wanted = int(re.findall(r"versions: \[ (\d+) \]", config)[0])
        file = json.loads(re.findall(r"default_model_filename: (.*)", config)[0])
        self.serving = (directory / str(wanted) / file).read_bytes()


def test_triton_loads_what_is_shown_back_and_forth(tmp_path: Path, shown: ViewTrees) -> None:
    triton = Triton(tmp_path / "views" / "triton")
    two, one = candidate(tmp_path, 2, b"two"), candidate(tmp_path, 1, b"one")
    for version in (two, one, two, one):  # every second time to an older tree, which times alone would not show
        shown.show(version, ["triton"])
        triton.load("fraud")
        assert triton.serving == (version.tree / "fraud.joblib").read_bytes()
        assert set(triton.versions("fraud")) <= {1, 2}, "nothing unfinished is listed"


def test_a_clock_that_went_back_is_no_reason_to_keep_old_weights(tmp_path: Path, shown: ViewTrees) -> None:
    triton = Triton(tmp_path / "views" / "triton")
    shown.show(candidate(tmp_path, 2, b"two"), ["triton"])
    config = tmp_path / "views/triton/fraud/config.pbtxt"
    os.utime(config, (4_000_000_000, 4_000_000_000))  # written when the clock was years ahead
    triton.load("fraud")
    shown.show(candidate(tmp_path, 1, b"one"), ["triton"])
    triton.load("fraud")
    assert triton.serving == b"one"


def test_a_number_is_never_pointed_elsewhere(tmp_path: Path, shown: ViewTrees) -> None:
    shown.show(candidate(tmp_path, 7), ["triton", "tfs"])
    before = os.readlink(tmp_path / "views/triton/fraud/7")
    with pytest.raises(LayoutCorrupt, match="other bytes"):
        shown.show(candidate(tmp_path, 7, mark=9), ["triton"])
    assert os.readlink(tmp_path / "views/triton/fraud/7") == before


def test_a_link_goes_before_its_tree_and_a_dead_one_at_the_start(tmp_path: Path, shown: ViewTrees) -> None:
    triton = Triton(tmp_path / "views" / "triton")
    versions = [candidate(tmp_path, number) for number in (1, 2, 3)]
    for version in versions:
        shown.show(version, ["triton", "tfs"])
    shown.withdraw(FRAUD, frozenset({versions[2].digest}), ["triton", "tfs"])
    assert triton.versions("fraud") == [3] and os.listdir(tmp_path / "views/tfs/fraud") == ["3"]
    (tmp_path / "views/triton/fraud/9").symlink_to("/nowhere")
    with pytest.raises(OSError):
        triton.versions("fraud")
    shown.sweep()
    assert triton.versions("fraud") == [3]


def test_a_view_that_is_not_wanted_any_more_goes_whole(tmp_path: Path, shown: ViewTrees) -> None:
    version = candidate(tmp_path, 1)
    shown.show(version, ["triton", "tfs", "mlserver"])
    shown.withdraw(FRAUD, frozenset({version.digest}), ["mlserver"])
    assert os.listdir(tmp_path / "views/triton") == []
    assert "fraud" not in (tmp_path / "views/tfs/models.config").read_text()
    assert (tmp_path / "views/mlserver/fraud/model-settings.json").exists()


def test_tensorflow_serving_is_told_the_version(tmp_path: Path, shown: ViewTrees) -> None:
    for number in (2, 1):
        shown.show(candidate(tmp_path, number), ["tfs"])
    config = (tmp_path / "views/tfs/models.config").read_text()
    assert "versions: 1 " in config and f'base_path: "{tmp_path}/views/tfs/fraud"' in config
    assert sorted(os.listdir(tmp_path / "views/tfs/fraud")) == ["1", "2"]


def test_mlserver_is_told_the_tree(tmp_path: Path, shown: ViewTrees) -> None:
    version = candidate(tmp_path, 4)
    shown.show(version, ["mlserver"])
    settings = json.loads((tmp_path / "views/mlserver/fraud/model-settings.json").read_text())
    assert settings["parameters"]["uri"] == str(version.tree / "fraud.joblib")
    assert settings["implementation"] == "mlserver_sklearn.SKLearnModel"


def test_showing_the_same_again_changes_nothing(tmp_path: Path, shown: ViewTrees) -> None:
    version = candidate(tmp_path, 4)
    shown.show(version, ["triton", "tfs", "mlserver"])
    paths = [path for path in (tmp_path / "views").rglob("*") if path.is_file() and not path.is_symlink()]
    before = {path: path.stat().st_mtime_ns for path in paths}
    shown.show(version, ["triton", "tfs", "mlserver"])
    assert {path: path.stat().st_mtime_ns for path in paths} == before
