"""The uploads that this host keeps: found by id, begun, gone on with after a restart, given up. PROTOCOL.md section 3.

This file alone decides what lies below STATE/uploads: a directory each, with ``about.json`` and, for a planned one,
``plan``. Which may be kept, ``core.uploads`` decides. Everything blocks and raises DiskFull, DiskFailed beside what its
docstring says; one lock orders beginnings and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from modelsync.core import uploads
from modelsync.core.errors import ModelsyncError, NoSuchUpload
from modelsync.core.ids import ModelName, model_name
from modelsync.core.uploads import Kept
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.pull.old_bytes import HeldChunks
from modelsync.edges.uploads.plain import PlainUpload
from modelsync.edges.uploads.planned import PlannedUpload
from modelsync.ports import Progress

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_ABOUT_BYTES = 2 << 20


@dataclass
class KeptUpload:
    """One upload with what the routes must know of it beside its bytes."""

    id: str
    body: PlannedUpload | PlainUpload
    plan_bytes: int
    touched_s: float
    requests: int = 0
    """Bodies that arrive just now."""
    outcome: dict[str, Any] | None = None
    """What the publish answered: an answer that was lost can be asked for again."""
    ending: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One publish at a time."""


class Uploads:
    """All uploads of this host.

    Args:
        store: whose STATE they lie in, and what they need not be sent of.
    """

    def __init__(self, store: IngestingStore) -> None:
        self._store = store
        self.root = store.root / "uploads"
        self._held = HeldChunks(store)
        self._guard = threading.Lock()
        self._kept: dict[str, KeptUpload] = {}
        self._plans: dict[bytes, str] = {}
        self._loaded = False
        self._ended_bytes = 0
        self._at_once: list[tuple[ModelName, Progress]] = []

    def open_plan(self, model: ModelName, data: bytes) -> KeptUpload:
        """Begin a planned upload, or go on with the one of the same model and plan.

        Raises: MalformedMessage, BadName, NotAModel, DigestMismatch; UploadsFull; DiskFull: nothing is kept then.
        """
        plan = uploads.decode_plan(data)
        key = blake3(model.encode() + b"\0" + data).digest()
        with self._guard:
            self._load()
            known = self._kept.get(self._plans.get(key, ""))
            if known is None:
                known = self._begin(model, {"kind": "plan"}, data)
                self._plans[key] = known.id
            assert isinstance(known.body, PlannedUpload) and known.body.plan == plan
        try:
            known.body.survey(self._held)
        except ModelsyncError:
            if not known.requests:
                self.discard(known.id)
            raise
        return known

    def open_file(self, model: ModelName, said: dict[str, str], size_bytes: int | None) -> KeptUpload:
        """Begin an upload of one file. Raises BadName; UploadsFull; DiskFull: nothing is kept then."""
        with self._guard:
            self._load()
            known = self._begin(model, {"kind": "file", "said": said, "size_bytes": size_bytes}, b"")
        assert isinstance(known.body, PlainUpload)
        try:
            known.body.open()
        except ModelsyncError:
            self.discard(known.id)
            raise
        return known

    def find(self, upload: str) -> KeptUpload:
        """Raises NoSuchUpload."""
        with self._guard:
            self._load()
            known = self._kept.get(upload)
        if known is None:
            raise NoSuchUpload(upload=upload[:80])
        return known

    def progress(self) -> dict[str, Progress]:
        """What bodies arrive of, by model; several of one model count as one."""
        found: dict[str, Progress] = {}
        for known in list(self._kept.values()):
            if known.requests:
                one = found.setdefault(str(known.body.model), Progress())
                one.done_bytes += known.body.progress.done_bytes
                one.total_bytes += known.body.progress.total_bytes
        for model, passing in list(self._at_once):
            one = found.setdefault(str(model), Progress())
            one.done_bytes += passing.done_bytes
            one.total_bytes += max(passing.total_bytes, passing.done_bytes)  # a sender need not say how much
        return found

    @contextlib.contextmanager
    def at_once(self, model: ModelName, size_bytes: int) -> Iterator[Progress]:
        """An upload in one request, of which nothing is kept if it breaks off: counted while its body arrives."""
        passing = Progress(total_bytes=size_bytes)
        self._at_once.append((model, passing))
        try:
            yield passing
        finally:
            self._at_once.remove((model, passing))
            self._ended_bytes += passing.wire_bytes

    @property
    def received_bytes(self) -> int:
        """Of all uploads since the start."""
        kept = sum(known.body.progress.wire_bytes for known in list(self._kept.values()))
        return self._ended_bytes + kept + sum(passing.wire_bytes for _, passing in list(self._at_once))

    def touch(self, known: KeptUpload) -> None:
        """Somebody goes on with it: it is kept for longer."""
        known.touched_s = time.time()
        with contextlib.suppress(OSError):
            (self.root / known.id / "about.json").touch()

    def settled(self, known: KeptUpload, outcome: dict[str, Any]) -> None:
        """It is published. Of a plain one the answer is kept for a while, since its sender may have missed it; a plan
        can be sent again, and finds everything held.
        """
        with self._guard:
            known.outcome = outcome
            self._forget(known.id)
            if isinstance(known.body, PlainUpload):
                known.body.progress.wire_bytes = 0  # counted when it was forgotten
                self._kept[known.id] = known

    def discard(self, upload: str) -> None:
        """Give one up, and remove what there is of it."""
        with self._guard:
            self._forget(upload)

    def sweep(self) -> list[str]:
        """Give up those that nobody goes on with; their ids."""
        with self._guard:
            self._load()
            gone = uploads.expired(self._views(), time.time())
            for upload in gone:
                self._forget(upload)
        return gone

    def close(self) -> None:
        """Let go of descriptors; what is on disk stays."""
        with self._guard:
            for known in self._kept.values():
                known.body.close()
            self._kept.clear()

    # --- under the lock ----------------------------------------------------------------------------------------------

    def _views(self) -> list[Kept]:
        """One that is published gives way at once."""
        return [
            Kept(one.id, 0.0 if one.outcome else one.touched_s, one.plan_bytes, one.requests > 0)
            for one in self._kept.values()
        ]

    def _begin(self, model: ModelName, about: dict[str, Any], plan: bytes) -> KeptUpload:
        for upload in uploads.gives_way(self._views(), len(plan), time.time()):
            self._forget(upload)
        directory = self.root / secrets.token_hex(16)
        with local_faults(directory, "begin an upload"):
            directory.mkdir(parents=True)
            try:
                known = self._made(directory, model, about, plan)
                if plan:
                    durable.replace_file(directory / "plan", plan)
                durable.replace_file(directory / "about.json", json.dumps({"model": model, **about}).encode())
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                raise
        self._kept[known.id] = known
        return known

    def _made(self, directory: Path, model: ModelName, about: dict[str, Any], plan: bytes) -> KeptUpload:
        body: PlannedUpload | PlainUpload
        if about["kind"] == "plan":
            body = PlannedUpload(self._store, directory, model, uploads.decode_plan(plan))
        else:
            body = PlainUpload(self._store, directory, model, about["said"], about["size_bytes"])
        return KeptUpload(directory.name, body, len(plan), time.time())

    def _forget(self, upload: str) -> None:
        known = self._kept.pop(upload, None)
        if known is not None:
            self._ended_bytes += known.body.progress.wire_bytes
            known.body.close()
            for key in [key for key, other in self._plans.items() if other == upload]:
                del self._plans[key]
        shutil.rmtree(self.root / upload, ignore_errors=True)

    def _load(self) -> None:
        """What an earlier process left; what cannot be understood is removed, and is sent anew."""
        if self._loaded:
            return
        self._loaded = True
        with local_faults(self.root, "read the uploads"):
            durable.make_directories(self.root)
            for directory in sorted(self.root.iterdir()):
                try:
                    self._load_one(directory)
                except (ModelsyncError, OSError, ValueError, KeyError, TypeError):
                    shutil.rmtree(directory, ignore_errors=True)

    def _load_one(self, directory: Path) -> None:
        path = directory / "about.json"
        if _ID.fullmatch(directory.name) is None or path.stat().st_size > _MAX_ABOUT_BYTES:
            raise ValueError(directory.name)
        about = json.loads(path.read_bytes())
        model = model_name(about["model"])
        plan = (directory / "plan").read_bytes() if about["kind"] == "plan" else b""
        known = self._made(directory, model, about, plan)
        known.touched_s = path.stat().st_mtime
        if isinstance(known.body, PlainUpload):
            known.body.open()
        else:
            self._plans[blake3(model.encode() + b"\0" + plan).digest()] = known.id
        self._kept[known.id] = known
