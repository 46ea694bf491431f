"""Putting a model into a watched models directory, whole and in one step, and reading what its publisher said of it.

This file alone writes into a models directory; the daemon itself only reads there. Everything is built in a hidden
directory beside the model, which the watch ignores, and renamed. The marker ``.complete`` is the last file made, so
that a daemon that missed the rename (lost events, a network file system) need not wait either.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core.errors import MalformedMessage, NotAModel
from modelsync.core.ids import Digest, ModelName, Version
from modelsync.core.manifest import FileEntry
from modelsync.core.sources import notes as source_notes
from modelsync.core.sources.names import MARKERS, as_number, is_ignored, model_of, shown
from modelsync.core.sources.notes import SourceNotes
from modelsync.edges.disk.durable import local_faults, replace_directory
from modelsync.edges.http.json import json_object
from modelsync.edges.http.outgoing import OutgoingFile, files_of

_MARKER = ".complete"


@dataclass(frozen=True, slots=True)
class Placed:
    """What was put there."""

    content: Digest
    """As in the manifest that the primary will make of it: what it is found by in the catalog."""
    version: Version | None
    """The number that its directory has; None: it gets the next."""


@contextlib.contextmanager
def staging(models_dir: Path, name: ModelName) -> Iterator[Path]:
    """A hidden directory in the models directory, for one publish; removed with all that is left in it.

    Raises: NotAModel: there is no such models directory. NotPermitted, DiskFull, DiskFailed.
    """
    if not models_dir.is_dir():
        raise NotAModel(path=str(models_dir), reason="there is no such models directory")
    root = models_dir / f".{name[:80]}.{secrets.token_hex(8)}.tmp"
    with local_faults(root, "create"):
        root.mkdir(mode=0o755)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def place(
    models_dir: Path, name: ModelName, source: Path, stage: Path, version: Version | None, notes: SourceNotes
) -> Placed:
    """Publish files by renaming them into the models directory. Blocks.

    Args:
        source: a file or a directory; what lies in ``stage`` is moved, anything else is copied.
        stage: from ``staging``.
    Raises:
        NotAModel: nothing to publish there, or another entry of the directory is this model already.
        BadName: a name that could not be published. DiskFull, DiskFailed, NotPermitted.
    """
    _require_no_rival(models_dir, name)
    final = models_dir / name
    numbers = _numbers(final)
    if version is None and numbers:
        version = Version(max(numbers) + 1)
    if version is not None and version in numbers:
        raise NotAModel(path=str(final / str(version)), reason="this version lies there already")
    files = _published(source)
    with local_faults(models_dir, "publish into"):
        tree = stage / "whole" / str(version) if version is not None else stage / "whole"
        content = _fill(tree, files, stage)
        _write(tree / source_notes.NAME, source_notes.encode(notes))
        _write(tree / _MARKER, b"")
        if version is not None and numbers:
            os.rename(tree, final / str(version))
        else:
            replace_directory(final, stage / "whole", stage / "replaced")
    return Placed(content, version)


def read_notes(root: Path) -> SourceNotes:
    """What the publisher of a directory said; nothing where there is no such file.

    Raises:
        NotAModel: there is one, and it cannot be read or is not what it should be.
    """
    path = root / source_notes.NAME
    try:
        data = _read(path)
        return source_notes.checked(json_object(data, source_notes.NAME)) if data is not None else SourceNotes()
    except (OSError, MalformedMessage) as error:
        reason = f"{getattr(error, 'reason', error)}; correct it, then touch a file of the model"
        raise NotAModel(path=str(path), reason=reason) from error


def _read(path: Path) -> bytes | None:
    try:
        # O_NONBLOCK: a FIFO of that name must not hang the daemon.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MalformedMessage(what=source_notes.NAME, reason="it is not a regular file")
        data = file.read(source_notes.MAX_BYTES + 1)
    if len(data) > source_notes.MAX_BYTES:
        raise MalformedMessage(what=source_notes.NAME, reason=f"it is larger than {source_notes.MAX_BYTES} bytes")
    return data


def _require_no_rival(models_dir: Path, name: ModelName) -> None:
    """Two entries that claim one model would both be refused; better before than after."""
    with local_faults(models_dir, "list"):
        entries = os.listdir(models_dir)
    for entry in entries:
        if is_ignored(entry) or entry == name:
            continue
        claims = (entry.lower(), (model_of(entry) or entry).lower())
        if name.lower() in claims:
            raise NotAModel(
                path=str(models_dir / shown(entry)),
                reason=f"it is the model {name} already; remove it first, or publish without models_dir",
            )
    if os.path.lexists(models_dir / name) and not (models_dir / name).is_dir():
        raise NotAModel(path=str(models_dir / name), reason="it is in the way and no directory")


def _numbers(directory: Path) -> list[Version]:
    """The numbered versions that a model's directory holds, if that is how it is laid out."""
    if not directory.is_dir():
        return []
    names = [child.name for child in directory.iterdir() if not is_ignored(child.name) and child.name not in MARKERS]
    numbers = [as_number(child) for child in names if child != "config.pbtxt"]
    return [number for number in numbers if number is not None] if all(numbers) else []


def _published(source: Path) -> list[OutgoingFile]:
    """The files that will count: hidden and temporary ones are nobody's model."""
    files = [file for file in files_of(source) if not _left_out(file.name)]
    tops = {file.name.partition("/") for file in files}
    if not files:
        raise NotAModel(path=str(source), reason="no file in it that would be published")
    if all(rest and as_number(top) is not None for top, _, rest in tops):
        reason = "a directory of numbers only would be read as versions; publish it without models_dir"
        raise NotAModel(path=str(source), reason=reason)
    return files


def _left_out(path: str) -> bool:
    return path in MARKERS or any(is_ignored(part) for part in path.split("/"))


def _fill(tree: Path, files: Sequence[OutgoingFile], stage: Path) -> Digest:
    """Move or copy the files, readable by the daemon whatever the umask; returns what their content will be called."""
    _make_directory(tree)
    entries = []
    for file in files:
        target = tree / file.name
        _make_directory(target.parent)
        if file.path.is_relative_to(stage):
            os.rename(file.path, target)
        else:
            shutil.copyfile(file.path, target, follow_symlinks=False)
        mode = 0o755 if os.stat(file.path if file.path.exists() else target).st_mode & 0o111 else 0o644
        os.chmod(target, mode)
        entries.append(FileEntry(file.name, os.stat(target).st_size, mode, _digest(target)))
    return Digest(blake3(manifests.content_bytes(entries)).digest())


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir()
        os.chmod(path, 0o755)


def _digest(path: Path) -> Digest:
    return Digest(blake3(max_threads=blake3.AUTO).update_mmap(path).digest())


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.chmod(path, 0o644)
