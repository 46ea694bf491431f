"""What a node answers when the HTTP server asks: ports.NodeApi over the parts of one node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelsync.core import fleet as fleets
from modelsync.core import status
from modelsync.core.catalog import ModelRecord
from modelsync.core.catalog_fields import to_fields
from modelsync.core.errors import ModelsyncError, NoSuchVersion
from modelsync.core.ids import Digest, ModelName, NodeId, Version
from modelsync.core.manifest import Manifest
from modelsync.core.storage import shown
from modelsync.ports import Growing, HeldPart, Promise, Published, Upload
from modelsync.runtime.node import Node
from modelsync.runtime.publisher import Draft


class NodeAnswers:
    """Implements ports.NodeApi."""

    def __init__(self, node: Node, metrics: Callable[[], bytes]) -> None:
        self._node = node
        self._metrics = metrics

    @property
    def is_primary(self) -> bool:
        return self._node.elector.authority is not None

    @property
    def primary_url(self) -> str | None:
        lease = self._node.elector.lease
        alive = lease.state == "held" and not self._node.elector.holder_is_silent
        return lease.url if alive and lease.url else None

    def runs_here(self, text: str) -> bool:
        return self.is_primary or (text.split()[:1] == ["resume"] and self.primary_url is None)

    def ready(self) -> tuple[bool, str]:
        missing = self._node.activator.unready()
        return not missing, "; ".join(missing[:20])

    def require_publishing(self) -> None:
        self._node.stager.signing.require_sealing()

    def staging_dir(self) -> Path:
        return self._node.store.new_staging()

    def metrics(self) -> bytes:
        return self._metrics()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        node = self._node
        await self._fresh_reports()
        await node.placer.know_files()
        lease = node.elector.lease
        document = status.document(
            fleet=node.identity.fleet,
            epoch=max(node.elector.epoch, lease.epoch),
            primary=lease.holder if lease.state == "held" else "",
            redis="ok" if node.health.error is None else f"unavailable: {node.health.error}",
            nodes=node.book.nodes,
            models=node.book.records.values(),
        )
        return {**document, **fleets.shown(node.book.fleet), **self._placements()}

    def _placements(self) -> dict[str, Any]:
        sizes = {model.name: model.sizes for model in self._node.placer.kept()}
        return shown.document(self._node.book.records.values(), self._node.book.nodes, sizes)

    async def _fresh_reports(self) -> None:
        """What nodes said a moment ago, or, with Redis away, what they said last."""
        node = self._node
        if node.health.error is not None:
            return
        try:
            await node.reporting.write()
            await node.book.refresh_nodes()
        except ModelsyncError as error:
            node.health.failed("report", error)

    async def models(self) -> list[dict[str, Any]]:
        records = sorted(self._node.book.records.values(), key=lambda record: record.name)
        return [status.model_line(record) for record in records]

    async def model(self, name: ModelName) -> dict[str, Any]:
        record = self._record(name)
        await self._fresh_reports()
        line = {**status.model_line(record), "changes": status.changes(record)}
        return {**line, "history": status.history(record, self._node.book.nodes)}

    def _record(self, name: ModelName) -> ModelRecord:
        record = self._node.book.records.get(name)
        if record is None:
            raise NoSuchVersion(reason=f"there is no model {name}")
        return record

    async def manifest(self, name: ModelName, version: Version) -> bytes:
        record = self._record(name)
        entry = record.require(version)
        if record.placement.mode != "replicated":
            await self._node.stager.document_of(record, version)
        data = await asyncio.to_thread(self._node.store.read_document, entry.digest)
        if data is None:
            raise NoSuchVersion(reason=f"version {version} of {name} is not held on this host")
        return data

    def file_of(self, name: ModelName, version: Version, path: str) -> Path:
        record = self._record(name)
        digest = self._node.stager.signing.require(record, version)
        manifest = self._node.store.manifest(digest)
        if manifest is None:
            raise NoSuchVersion(reason=f"version {version} of {name} is not held on this host")
        self._node.stager.signing.require_named(record, version, manifest)
        found = self._object(manifest, path)
        if record.placement.mode != "replicated":  # else there is no cache that would ask
            self._node.activator.keeper.used(digest)
        return found

    def _object(self, manifest: Manifest, path: str) -> Path:
        for entry in manifest.files:
            if entry.path == path:
                found = self._node.store.find(entry.digest)
                if found is not None:
                    return found
        raise NoSuchVersion(reason=f"version {manifest.version} of {manifest.model} has no file {path!r} here")

    async def read_through(self, name: ModelName, version: Version, path: str) -> Growing:
        self._record(name).require(version)
        return await self._node.reader.file(name, version, path)

    async def load(self, name: ModelName, *, wanted: bool) -> dict[str, Any]:
        self._record(name)
        await self._node.ask(name, wanted=wanted)
        return {"model": name, "asked": wanted, "held": self._node.activator.keeper.must_hold(name)}

    def placement(self, name: ModelName) -> dict[str, Any]:
        record = self._record(name)
        living = {report.id: report for report in self._node.book.nodes if not report.lost}
        runs = [report.id for report in living.values() if report.models.get(name, {}).get("active")]
        # Who runs it without owning it: of a model in parts whoever was asked to; of others, who has not let go yet.
        asked = [living[node] for node in dict.fromkeys((*record.placement.owners, *sorted(runs))) if node in living]
        return {
            "model": name,
            "mode": record.placement.mode,
            "owners": [{"id": one.id, "url": one.url, "serve_url": one.extra.get("serve_url")} for one in asked[:64]],
            "parts": len(record.placement.parts),
        }

    def object_path(self, digest: Digest) -> Path | None:
        return self._node.store.find(digest)

    def object_part(self, digest: Digest) -> HeldPart | None:
        return self._node.store.part(digest)

    def catalog(self) -> dict[str, dict[str, str]]:
        records = {str(name): to_fields(record) for name, record in self._node.book.records.items()}
        return {"": fleets.to_fields(self._node.book.fleet), **records}

    @property
    def epoch(self) -> int:
        return self._node.elector.epoch

    def note_epoch(self, epoch: int, node: str) -> None:
        self._node.elector.note_epoch(epoch, node)

    # --- writing -----------------------------------------------------------------------------------------------------

    async def publish(self, upload: Upload) -> Published:
        files = () if upload.received else await asyncio.to_thread(self._node.store.survey, upload.root)
        draft = Draft(
            model=upload.model,
            root=upload.root,
            files=files,
            version=upload.version,
            author=upload.author,
            note=upload.note,
            metadata=upload.metadata or {},
            received=upload.received,
            content=upload.content,
        )
        return await self._node.publisher.publish(draft)

    async def command(self, text: str, by: str) -> dict[str, Any]:
        return await self._node.orders.execute(text, by)

    async def promise(self, epoch: int, holder: NodeId, nonce: str) -> Promise:
        return await self._node.elector.answer_promise(epoch, holder, nonce)
