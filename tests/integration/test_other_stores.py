"""Azure and GCS, on emulators: the same as S3, with everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.integration.emulators import azurite, gcs
from tests.integration.test_objectstore import held, manifest
from tests.integration.test_store_garbage import Site, grow_old

from modelsync.core.errors import VersionConflict
from modelsync.core.ids import EntryId, ModelName, Version
from modelsync.edges.disk.ingest import IngestingStore

__all__ = ["held"]  # a fixture
pytestmark = pytest.mark.timeout(180)


def test_azure(held: IngestingStore, tmp_path: Path) -> None:
    with azurite(tmp_path / "azurite") as settings:
        publishes_reads_guards_two_writers_and_is_cleaned_up("az://models/prod", settings, held, tmp_path)


def test_gcs(held: IngestingStore, tmp_path: Path) -> None:
    """obstore writes by the XML API, of which no emulator in the registries knows the uploads: fake-gcs-server answers
    "invalid uploadType", gcplocal knows the JSON API alone, gcp-storage-emulator no preconditions. Here fake-gcs-server
    judges the preconditions, and a relay changes how they are spelled."""
    with gcs() as settings:
        publishes_reads_guards_two_writers_and_is_cleaned_up("gs://models/prod", settings, held, tmp_path)


def publishes_reads_guards_two_writers_and_is_cleaned_up(
    url: str, settings: str, held: IngestingStore, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(settings)
    site = Site((url, keys), held, tmp_path)
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
    bucket = site.store.bucket
    found = bucket.read("versions/m/1", 1 << 20)
    assert found is not None
    assert bucket.replace("versions/m/1", found[0], found[1])
    assert not bucket.replace("versions/m/1", found[0], found[1]), "somebody else was quicker"
    site.kept = {Version(1): later_digest}
    grow_old()
    assert site.sweep().condemned == 3
    assert site.sweep().deleted == 3
    assert not site.there(1) and site.there(2)
    site.store.close()
