"""VIEW: the directory layouts that inference servers watch, for the models whose configuration asks for them.

    VIEW/triton/NAME/{config.pbtxt, NUMBER -> …/STATE/store/NAME/HEX}
    VIEW/tfs/NAME/NUMBER -> …     VIEW/tfs/models.config
    VIEW/mlserver/NAME/model-settings.json

What a server lists holds finished things only. Triton takes ``7.tmp`` for version 7 and fails its whole listing on one
link that leads nowhere, so temporaries lie in VIEW/.tmp, and a link goes before its tree does. It loads a version again
only if its files are newer than before, so a number is never pointed at another tree, and config.pbtxt, which names the
version to serve, gets a later time with every change, whatever the clock says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from modelsync.core import views
from modelsync.core.errors import HookFailed, LayoutCorrupt
from modelsync.core.hooks import VIEW_KINDS
from modelsync.core.ids import Digest, ModelName
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.ports import Candidate

TEMPLATE_BYTES = 1 << 20


class ViewTrees:
    """Implements ports.Views. Its methods block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tmp = root / ".tmp"
        self._blocks = root / ".tfs"

    def sweep(self) -> None:
        """At a start: remove temporaries, and links to trees that are gone. Raises DiskFailed."""
        with local_faults(self.root, "sweep the views"):
            if self._tmp.is_dir():
                shutil.rmtree(self._tmp, ignore_errors=True)
            for kind in VIEW_KINDS:
                for link in self._slots(self.root / kind):
                    if not link.exists():
                        os.unlink(link)

    def show(self, candidate: Candidate, kinds: Sequence[str]) -> None:
        """Make a version the one that these views offer. Raises HookFailed, LayoutCorrupt, DiskFull, DiskFailed."""
        with local_faults(self.root, "show a version"):
            durable.make_directories(self._tmp)
            files = sorted(str(p.relative_to(candidate.tree)) for p in candidate.tree.rglob("*") if p.is_file())
            if "triton" in kinds:
                self._show_triton(candidate, files)
            if "tfs" in kinds:
                self._show_tfs(candidate)
            if "mlserver" in kinds:
                self._show_mlserver(candidate, files)

    # --- one kind each -----------------------------------------------------------------------------------------------

    def _show_triton(self, candidate: Candidate, files: Sequence[str]) -> None:
        directory = self.root / "triton" / candidate.model
        template = _text(candidate.tree / "config.pbtxt")
        config = views.triton_config(template, candidate.version, files)
        self._slot(directory, candidate)
        path = directory / "config.pbtxt"
        if _text(path) != config:
            self._replace(path, config, newer=True)

    def _show_tfs(self, candidate: Candidate) -> None:
        directory = self.root / "tfs" / candidate.model
        self._slot(directory, candidate)
        block = views.tfs_block(candidate.model, str(directory), candidate.version)
        if _text(self._blocks / candidate.model) != block:
            self._replace(self._blocks / candidate.model, block)
        self._write_tfs_config()

    def _write_tfs_config(self) -> None:
        blocks = {name: _text(self._blocks / name) or "" for name in _names(self._blocks)}
        config = views.tfs_config({name: text for name, text in blocks.items() if not name.endswith(".tmp")})
        path = self.root / "tfs" / "models.config"
        if _text(path) != config:
            self._replace(path, config)

    def _show_mlserver(self, candidate: Candidate, files: Sequence[str]) -> None:
        template = _text(candidate.tree / "model-settings.json")
        try:
            value: Any = json.loads(template) if template is not None else None
        except (ValueError, RecursionError) as error:
            raise HookFailed(hook="view mlserver", reason=f"model-settings.json: {str(error)[:160]}") from error
        if value is not None and not isinstance(value, dict):
            raise HookFailed(hook="view mlserver", reason="model-settings.json holds no object")
        settings = views.mlserver_settings(value, candidate.model, str(candidate.tree), files)
        path = self.root / "mlserver" / candidate.model / "model-settings.json"
        if _text(path) != settings:
            self._replace(path, settings)

    def _slot(self, directory: Path, candidate: Candidate) -> None:
        """The link of a number; one that is there already and leads to another tree is never changed."""
        link = directory / str(candidate.version)
        target = os.path.relpath(candidate.tree, os.path.realpath(directory))
        if link.is_symlink():
            if os.readlink(link) == target:
                return
            if link.exists():
                reason = "it shows other bytes under this number: unload it from its server, then remove the link"
                raise LayoutCorrupt(path=str(link), reason=reason)
        durable.make_directories(directory)
        durable.replace_symlinks(directory, [(link.name, target)], beside=self._tmp)

    def _replace(self, path: Path, text: str, *, newer: bool = False) -> None:
        """``newer``: with a time after the old file's, by which its reader notices the change."""
        before_ns = path.stat().st_mtime_ns if newer and path.exists() else 0
        durable.replace_file(path, text.encode(), beside=self._tmp)
        if before_ns >= path.stat().st_mtime_ns:
            os.utime(path, ns=(time.time_ns(), before_ns + 1_000_000_000))

    # --- before trees are removed ------------------------------------------------------------------------------------

    def withdraw(self, model: ModelName, keep: frozenset[Digest], kinds: Sequence[str]) -> None:
        """Unlink what leads to other trees than these, and whole kinds that are not wanted any more."""
        kept = {digest.hex for digest in keep}
        with local_faults(self.root, "withdraw a version"):
            for kind in VIEW_KINDS:
                directory = self.root / kind / model
                if kind not in kinds:
                    self._remove(kind, model)
                    continue
                gone = [link for link in self._slots_of(directory) if Path(os.readlink(link)).name not in kept]
                for link in gone:
                    os.unlink(link)
                if gone:
                    durable.fsync_directory(directory)

    def _remove(self, kind: str, model: ModelName) -> None:
        directory = self.root / kind / model
        if kind == "tfs" and (self._blocks / model).exists():
            os.unlink(self._blocks / model)
            durable.make_directories(self._tmp)
            self._write_tfs_config()
        if directory.is_dir():
            durable.make_directories(self._tmp)
            aside = self._tmp / durable.temporary_name(model)
            os.rename(directory, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _slots(self, kind: Path) -> Iterable[Path]:
        for name in _names(kind):
            yield from self._slots_of(kind / name)

    @staticmethod
    def _slots_of(directory: Path) -> list[Path]:
        return [directory / name for name in _names(directory) if (directory / name).is_symlink()]


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(directory))
    return []


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(TEMPLATE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
