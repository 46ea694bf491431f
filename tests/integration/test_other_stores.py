"""Azure, on its own emulator, with everything; and GCS, of which an emulator shows the reading half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.integration.emulators import azurite, gcs, put_to_gcs
from tests.integration.test_objectstore import held, ingested, made, manifest
from tests.integration.test_store_garbage import Site, grow_old

from modelsync.core.errors import VersionConflict
from modelsync.core.ids import EntryId, ModelName, Version
from modelsync.edges.disk.ingest import IngestingStore

__all__ = ["held"]  # a fixture
pytestmark = pytest.mark.timeout(180)


def test_azure_publishes_reads_guards_two_writers_and_is_cleaned_up(held: IngestingStore, tmp_path: Path) -> None:
    with azurite(tmp_path / "azurite") as settings:
        keys = tmp_path / "keys"
        keys.write_text(settings)
        site = Site(("az://models/prod", keys), held, tmp_path)
        data = os.urandom(20_000_001)
        digest = site.publish(1, data)
        assert site.store.has_version(ModelName("m"), Version(1), digest)
        assert site.store.manifest(digest) is not None
        assert b"".join(site.store.stream("objects", site.files[1][0].digest, 5, len(data))) == data[5:]
        other, its_digest, text = manifest(site.ingest(2, b"y" * 1000), EntryId(1, 0))
        with pytest.raises(VersionConflict):
            site.store.keep_version(other, its_digest, text)
        later, later_digest, text = manifest(site.files[2], EntryId(2, 1))
        site.store.keep_version(later, later_digest, text)
        assert site.store.has_version(ModelName("m"), Version(1), later_digest), "a later id takes its number"
        site.kept = {Version(1): later_digest}
        grow_old()
        assert site.sweep().condemned == 3
        assert site.sweep().deleted == 3
        assert not site.there(1) and site.there(2)
        site.store.close()


def test_gcs_is_read(held: IngestingStore, tmp_path: Path) -> None:
    """obstore writes by the XML API. fake-gcs-server answers that with 400, gcplocal knows the JSON API alone, and
    gcp-storage-emulator no preconditions, by which two writers are told apart: so what GCS writes is not shown."""
    local = made((f"file://{tmp_path}/bucket", None), held)
    data = os.urandom(20_000_001)
    files = ingested(held, tmp_path / "source", data)
    local.keep_files(files)
    one, digest, text = manifest(files, EntryId(1, 1))
    local.keep_version(one, digest, text)
    with gcs() as (url, settings):
        for path in (tmp_path / "bucket").rglob("*"):
            if path.is_file():
                put_to_gcs(url, f"prod/{path.relative_to(tmp_path / 'bucket')}", path.read_bytes())
        keys = tmp_path / "keys"
        keys.write_text(settings)
        remote = made(("gs://models/prod", keys), held)
        assert remote.has_version(ModelName("m"), Version(1), digest)
        assert remote.manifest(digest) == one
        assert b"".join(remote.stream("objects", files[0].digest, 5, len(data))) == data[5:]
        assert {item.key for item in remote.bucket.listed("versions/")} == {"versions/m/1"}
        remote.close()
    local.close()
