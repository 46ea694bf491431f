"""Putting a model into a models directory: whole, readable by the daemon, and with words that are checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemon, Fleet, until

from modelsync import publish
from modelsync.core.errors import DiskFailed, NotAModel
from modelsync.core.ids import ModelName, Version
from modelsync.core.sources.notes import SourceNotes
from modelsync.edges.models.directory import place, read_notes, staging

FRAUD = ModelName("fraud")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def tree_of(root: Path) -> dict[str, int]:
    """Every path below, with its permissions."""
    return {str(path.relative_to(root)): path.stat().st_mode & 0o777 for path in sorted(root.rglob("*"))}


def put(models: Path, source: Path, version: Version | None = None, notes: SourceNotes | None = None) -> None:
    with staging(models, FRAUD) as stage:
        place(models, FRAUD, source, stage, version, notes or SourceNotes())


def test_what_lies_there_before_the_daemon_starts_needs_no_wait(fleet: Fleet) -> None:
    daemon = Daemon("solo", fleet.root, fleet.redis_url)
    daemon.config.write_text(daemon.base.replace("settle_s = 0.3", "settle_s = 60.0"))
    (fleet.root / "early.npz").write_bytes(b"weights")
    done = publish("early", fleet.root / "early.npz", models_dir=daemon.models, config=str(fleet.root / "none"))
    assert (done.version, done.copies) == (None, 0)  # nobody could be asked
    fleet.daemons.append(daemon.start())
    until(daemon.alive, "solo to answer")
    until(lambda: daemon.active("early") == 1, "the marked model, long before settle_s", 20)


def test_a_narrow_umask_does_not_hide_it_from_the_daemon(tmp_path: Path) -> None:
    models, source = tmp_path / "models", tmp_path / "source"
    models.mkdir()
    (source / "deep").mkdir(parents=True)
    (source / "weights.bin").write_bytes(b"x")
    (source / "deep" / "run").write_bytes(b"x")
    (source / "deep" / "run").chmod(0o700)
    (source / ".hidden").write_bytes(b"x")
    before = os.umask(0o077)
    try:
        put(models, source)
    finally:
        os.umask(before)
    assert tree_of(models) == {
        "fraud": 0o755, "fraud/.complete": 0o644, "fraud/.modelsync.json": 0o644,
        "fraud/deep": 0o755, "fraud/deep/run": 0o755, "fraud/weights.bin": 0o644,
    }  # fmt: skip
    assert (source / "weights.bin").exists()  # the user's own files are copied, not taken away


def test_a_failure_leaves_the_old_one_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for content in (b"old", b"new"):
        (tmp_path / "w.bin").write_bytes(content)
        if content == b"new":
            rename = os.rename
            monkeypatch.setattr(os, "rename", lambda a, b: _refuse() if str(a).endswith("/whole") else rename(a, b))
            with pytest.raises(DiskFailed, match="publish into"):
                put(models, tmp_path / "w.bin")
            monkeypatch.undo()
        else:
            put(models, tmp_path / "w.bin")
    assert (models / "fraud" / "w.bin").read_bytes() == b"old"
    assert [path.name for path in models.iterdir()] == ["fraud"]


def _refuse() -> None:
    raise BlockingIOError("no")


def test_numbers_go_on_from_the_highest(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "w.bin").write_bytes(b"x")
    put(models, tmp_path / "w.bin", Version(4))
    put(models, tmp_path / "w.bin")
    assert sorted(path.name for path in (models / "fraud").iterdir()) == ["4", "5"]


def test_a_directory_of_numbers_would_be_read_as_versions(tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / "x" / number).mkdir(parents=True)
        (tmp_path / "x" / number / "w.bin").write_bytes(b"x")
    (tmp_path / "models").mkdir()
    with pytest.raises(NotAModel, match="numbers only"):
        put(tmp_path / "models", tmp_path / "x")


def test_words_go_in_and_come_out(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"x")
    notes = SourceNotes("a note", "ada", {"score": 0.93, "classes": ["ja", "nein"]})
    put(tmp_path, tmp_path / "w.bin", notes=notes)
    assert read_notes(tmp_path / "fraud") == notes
    assert read_notes(tmp_path) == SourceNotes()


HOSTILE: dict[str, Callable[[Path], object]] = {
    "not JSON": lambda path: path.write_bytes(b"{note: 1}"),
    "not UTF-8": lambda path: path.write_bytes(b'{"note": "\xff"}'),
    "not an object": lambda path: path.write_bytes(b"[]"),
    "a number for a note": lambda path: path.write_bytes(b'{"note": 1}'),
    "an unknown key": lambda path: path.write_bytes(b'{"not": "a"}'),
    "metadata that is a list": lambda path: path.write_bytes(b'{"metadata": []}'),
    "a key twice": lambda path: path.write_bytes(b'{"note": "a", "note": "b"}'),
    "NaN": lambda path: path.write_bytes(b'{"metadata": {"x": NaN}}'),
    "very deep": lambda path: path.write_bytes(b'{"metadata": {"x": ' + b"[" * 5000 + b"]" * 5000 + b"}}"),
    "very long": lambda path: path.write_bytes(b'{"note": "' + b"x" * (2 << 20) + b'"}'),
    "a long note": lambda path: path.write_bytes(b'{"note": "' + b"x" * (70 << 10) + b'"}'),
    "a FIFO": os.mkfifo,
    "a directory": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_words_refuse_the_model_by_name(tmp_path: Path, what: str) -> None:
    HOSTILE[what](tmp_path / ".modelsync.json")
    with pytest.raises(NotAModel, match=r"\.modelsync\.json"):
        read_notes(tmp_path)
