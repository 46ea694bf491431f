"""The state and live directories: what goes in comes out, what is damaged is set aside, what nobody wants goes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.disk import FRAUD, Content, activate, describe, misnamed, noise, sources, temporaries
from tests.unit.test_catalog import record

from modelsync.core.errors import (
    DigestMismatch,
    DiskFailed,
    DiskFull,
    LayoutCorrupt,
    ModelsyncError,
    NotAModel,
    NotPermitted,
    OutOfDescriptors,
    SourceChanged,
    StateInUse,
)
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import CHUNK_BYTES, Manifest
from modelsync.edges.disk import durable
from modelsync.edges.disk import store as store_file
from modelsync.edges.disk.catalog_files import CatalogFiles
from modelsync.edges.disk.durable import translated
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.disk.live import Live
from modelsync.edges.disk.store import hash_file
from modelsync.ports import ActiveRecord, SourceFile

ONE = Content(
    {
        "model.bin": noise(1, CHUNK_BYTES + 5),
        "tiny": b"1",
        "empty": b"",
        "sub/deep/vocab.txt": b"a\nb\n",
        "run.sh": b"#!",
    },
    frozenset({"run.sh"}),
)
TWO = Content({**ONE.files, "model.bin": noise(2, CHUNK_BYTES + 5), "new/one": b"2"}, ONE.executable)
MANY = Content(
    {f"part-{n:03}/weights": b"%d" % n for n in range(store_file.BATCH_FILES + 3)} | {"run": b"#!"}, frozenset({"run"})
)


@dataclass
class Disk:
    root: Path
    store: IngestingStore
    live: Live

    def source(self, content: Content, name: str = "source") -> Path:
        root = self.root / "models" / name
        root.mkdir(parents=True, exist_ok=True)
        return content.write(root)

    def publish(self, content: Content, number: int, model: ModelName = FRAUD) -> tuple[Manifest, Digest]:
        made = describe(self.store, self.source(content, f"{model}-{number}"), number, model)
        activate(self.store, self.live, *made)
        return made

    def current(self, model: str = FRAUD) -> Path:
        return self.root / "live" / model / "current"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(
        tmp_path,
        IngestingStore(tmp_path / "state"),
        Live(tmp_path / "live", tmp_path / "state/store", tmp_path / "state"),
    )
    made.store.open()
    made.live.open()
    yield made
    made.store.close()


# --- publish and activate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [ONE, MANY], ids=["few files", "many files"])
def test_what_goes_in_is_what_current_holds(disk: Disk, content: Content) -> None:
    manifest, digest = disk.publish(content, 1)
    assert content.seen_at(disk.current())
    assert disk.store.manifest(digest) == manifest
    assert disk.store.missing(manifest) == []
    disk.store.verify_tree(manifest, digest)
    assert (misnamed(disk.root / "state"), temporaries(disk.root / "state", disk.root / "live")) == ([], [])


def test_current_and_previous_are_relative_links_into_the_store(disk: Disk) -> None:
    _, one = disk.publish(ONE, 1)
    assert os.readlink(disk.current()) == f"../../state/store/fraud/{one.hex}"
    assert not disk.current().with_name("previous").exists()
    _, two = disk.publish(TWO, 2)
    assert os.readlink(disk.current()) == f"../../state/store/fraud/{two.hex}"
    assert os.readlink(disk.current().with_name("previous")) == f"../../state/store/fraud/{one.hex}"
    assert TWO.seen_at(disk.current())
    assert ONE.seen_at(disk.current().with_name("previous"))


def test_files_of_two_versions_share_their_bytes(disk: Disk) -> None:
    disk.publish(ONE, 1)
    disk.publish(TWO, 2)
    shared = [disk.current().with_name(name) / "sub/deep/vocab.txt" for name in ("current", "previous")]
    assert shared[0].stat().st_ino == shared[1].stat().st_ino
    assert shared[0].stat().st_nlink == 3


def test_a_large_file_has_its_chunks_in_a_document(disk: Disk) -> None:
    large = Content({"model.bin": noise(3, 17 * CHUNK_BYTES + 1)})
    manifest, _ = disk.publish(large, 1)
    [entry] = manifest.files
    assert entry.chunks == ()
    assert entry.chunk_list is not None
    chunks = disk.store.chunk_digests(entry)
    assert chunks is not None
    assert len(chunks) == 18
    assert disk.store.chunk_digests(replace(entry, chunk_list=Digest(bytes(32)))) is None


@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o755), (0o077, 0o700)])
def test_the_umask_is_for_directories_only(disk: Disk, umask: int, mode: int) -> None:
    """An operator may close the directories; a file's mode is a part of what was published."""
    before = os.umask(umask)
    try:
        disk.publish(ONE, 1)
        assert ONE.seen_at(disk.current())
        assert [(disk.current() / name).stat().st_mode & 0o777 for name in (".", "sub", "sub/deep")] == [mode] * 3
    finally:
        os.umask(before)


@pytest.mark.parametrize("behind", ["live", "state", "both"])
def test_links_are_right_where_a_directory_lies_behind_a_link(tmp_path: Path, behind: str) -> None:
    for name in ("live", "state"):
        if behind in (name, "both"):
            (tmp_path / "disks" / "big" / name).mkdir(parents=True)
            (tmp_path / name).symlink_to(tmp_path / "disks" / "big" / name)
    store, live = (
        IngestingStore(tmp_path / "state"),
        Live(tmp_path / "live", tmp_path / "state/store", tmp_path / "state"),
    )
    store.open()
    live.open()
    disk = Disk(tmp_path, store, live)
    _, digest = disk.publish(ONE, 1)
    assert ONE.seen_at(disk.current())
    assert live.active(FRAUD) == digest
    store.close()


# --- sources that are not what the scan saw -------------------------------------------------------------------------


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, 1))


@pytest.mark.parametrize(
    "change",
    [
        _touch,
        lambda path: path.write_bytes(b"longer than before"),
        lambda path: path.write_bytes(b"x" * len(ONE.files["tiny"])),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
        lambda path: (path.rename(path.with_name("aside")), path.write_bytes(b"1")),
    ],
    ids=["touched", "longer", "other bytes", "gone", "a FIFO", "a directory", "a link out", "another file"],
)
def test_a_source_that_changed_is_not_published(disk: Disk, change: object) -> None:
    root = disk.source(ONE)
    seen = sources(root)
    change(root / "tiny")  # type: ignore[operator]
    with pytest.raises(SourceChanged) as caught:
        disk.store.ingest(root, seen)
    assert caught.value.path == str(root / "tiny")
    assert temporaries(disk.root / "state") == []


def test_a_source_that_changes_while_it_is_copied(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    root = disk.source(ONE)
    write_all = durable.write_all

    def write_and_grow(descriptor: int, data: memoryview) -> None:
        write_all(descriptor, data)
        with open(root / "model.bin", "ab") as file:
            file.write(b"more")

    monkeypatch.setattr(durable, "write_all", write_and_grow)
    with pytest.raises(SourceChanged):
        disk.store.ingest(root, sources(root))
    assert temporaries(disk.root / "state") == []


def test_a_source_that_may_not_be_read_is_no_model(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    root = disk.source(ONE)
    _fail_open_of(monkeypatch, root / "tiny", 13)
    with pytest.raises(NotAModel) as caught:
        disk.store.ingest(root, sources(root))
    assert str(caught.value) == f"{root}/tiny: it cannot be read: Permission denied"


def test_a_source_on_a_failing_disk_is_our_trouble_not_its(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    root = disk.source(ONE)
    _fail_open_of(monkeypatch, root / "tiny", 5)
    with pytest.raises(DiskFailed) as caught:
        disk.store.ingest(root, sources(root))
    assert caught.value.details() == {"path": f"{root}/tiny", "operation": "open", "errno_name": "EIO"}


def _fail_open_of(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    real = os.open

    def opened(target: str | Path, *args: int, **keywords: int) -> int:
        if Path(target) == path:
            raise OSError(number, os.strerror(number), str(path))
        return real(target, *args, **keywords)

    monkeypatch.setattr(os, "open", opened)


def test_a_survey_finds_regular_files_only(disk: Disk) -> None:
    root = disk.source(ONE)
    assert disk.store.survey(root) == tuple(sources(root))
    os.mkfifo(root / "sub" / "pipe")
    with pytest.raises(NotAModel) as caught:
        disk.store.survey(root)
    assert str(caught.value) == "sub/pipe: not a regular file"


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_object_is_found_and_set_aside_with_its_tree(disk: Disk) -> None:
    manifest, digest = disk.publish(ONE, 1)
    entry = next(entry for entry in manifest.files if entry.path == "model.bin")
    flip(disk.store.object_path(entry.digest))  # the tree's file is the same inode
    with pytest.raises(DigestMismatch) as caught:
        disk.store.verify_tree(manifest, digest)
    assert (caught.value.path, caught.value.source) == (str(disk.store.tree_path(FRAUD, digest) / "model.bin"), "disk")
    assert disk.store.discard_damaged(manifest, digest) == ["model.bin"]
    assert disk.store.missing(manifest) == [entry]
    assert not disk.store.tree_is_whole(manifest, digest)
    assert [hash_file(path) == entry.digest for path in disk.store.quarantine.iterdir()] == [False]
    describe(disk.store, disk.root / "models/fraud-1", 1)
    disk.store.build_tree(manifest, digest)
    assert ONE.seen_at(disk.current())


def test_a_damaged_manifest_counts_as_not_held(disk: Disk) -> None:
    _, digest = disk.publish(ONE, 1)
    flip(disk.store.manifest_path(digest))
    assert disk.store.manifest(digest) is None
    assert disk.store.find(digest) is None
    assert len(list(disk.store.quarantine.iterdir())) == 1


def test_quarantine_is_bounded(disk: Disk) -> None:
    for number in range(103):
        path = disk.store.tmp / f"bad-{number}"
        path.write_bytes(b"x")
        os.utime(path, (number, number))
        disk.store.set_aside(path)
    names = {path.name.rpartition(".")[0] for path in disk.store.quarantine.iterdir()}
    assert names == {f"bad-{number}" for number in range(3, 103)}


@pytest.mark.parametrize("name", ["model.bin", "empty", "sub/deep/vocab.txt"])
def test_a_tree_that_lost_a_file_is_not_whole_and_is_built_again(disk: Disk, name: str) -> None:
    manifest, digest = disk.publish(ONE, 1)
    (disk.store.tree_path(FRAUD, digest) / name).unlink()
    assert not disk.store.tree_is_whole(manifest, digest)
    disk.store.discard_tree(FRAUD, digest)
    disk.store.discard_tree(FRAUD, digest)  # twice is once
    disk.store.build_tree(manifest, digest)
    assert ONE.seen_at(disk.current())


def test_a_tree_whose_object_is_gone_is_not_built(disk: Disk) -> None:
    manifest, digest = describe(disk.store, disk.source(ONE), 1)
    path = disk.store.object_path(manifest.files[0].digest)
    path.unlink()
    with pytest.raises(LayoutCorrupt) as caught:
        disk.store.build_tree(manifest, digest)
    assert caught.value.path == str(path)
    assert temporaries(disk.root / "state") == []


# --- garbage ----------------------------------------------------------------------------------------------------------


def test_garbage_is_what_no_kept_version_refers_to(disk: Disk) -> None:
    one, digest_one = disk.publish(ONE, 1)
    two, digest_two = disk.publish(TWO, 2)
    only_one = next(entry for entry in one.files if entry.path == "model.bin")
    expected = {"trees": 1, "documents": 1, "objects": 1, "size_bytes": only_one.size_bytes}
    kept = {FRAUD: frozenset({digest_two})}
    assert disk.store.collect({FRAUD: frozenset({digest_one, digest_two})}) == dict.fromkeys(expected, 0)
    dry = disk.store.collect(kept, dry_run=True)
    assert disk.store.has(only_one.digest)
    assert (dry, disk.store.collect(kept)) == (expected, expected)
    assert not disk.store.has(only_one.digest)
    assert disk.store.missing(two) == []
    assert TWO.seen_at(disk.current())
    assert disk.store.collect(kept) == dict.fromkeys(expected, 0)


def test_of_a_version_that_lies_in_parts_the_own_files_are_kept_without_its_tree(disk: Disk) -> None:
    manifest, digest = disk.publish(Content({"a.bin": noise(1, 9000), "b.bin": noise(2, 7000)}), 1)
    a, b = manifest.files
    disk.live.clear(FRAUD)
    removed = disk.store.collect({FRAUD: frozenset()}, {digest: frozenset({a.digest})})
    assert removed == {"trees": 1, "documents": 0, "objects": 1, "size_bytes": b.size_bytes}
    assert disk.store.has(a.digest) and not disk.store.has(b.digest)
    assert disk.store.manifest(digest) == manifest
    assert sum(disk.store.collect({FRAUD: frozenset()}, {digest: frozenset({a.digest})}).values()) == 0


def test_garbage_goes_in_slices_that_together_are_all_of_it(disk: Disk) -> None:
    for number in range(1, 6):
        _, digest = disk.publish(Content({"model.bin": noise(number, 5000), "b.bin": noise(number + 50, 100)}), number)
    kept = {FRAUD: frozenset({digest})}
    expected = disk.store.collect(kept, dry_run=True)
    assert expected == {"trees": 4, "documents": 4, "objects": 8, "size_bytes": 4 * 5100}
    slices = [disk.store.collect(kept, at_most=3) for _ in range(6)]
    assert [sum(part.values()) - part["size_bytes"] for part in slices] == [3, 3, 3, 3, 3, 1]
    assert {what: sum(part[what] for part in slices) for what in expected} == expected
    assert sum(disk.store.collect(kept).values()) == 0


def test_a_lease_on_a_chunk_list_is_kept_and_not_read_as_a_manifest(disk: Disk) -> None:
    large = Content({"model.bin": noise(5, 17 << 20)})
    manifest, digest = disk.publish(large, 1)
    chunk_list = manifest.files[0].chunk_list
    assert chunk_list is not None
    with disk.store.leased(manifest.referenced() | {digest}):
        disk.store.collect({FRAUD: frozenset()})
        assert disk.store.read_document(chunk_list) is not None
        assert disk.store.manifest(digest) == manifest and disk.store.missing(manifest) == []
    disk.store.collect({FRAUD: frozenset()})
    assert disk.store.read_document(chunk_list) is None


def test_a_model_that_this_node_forgot_keeps_everything(disk: Disk) -> None:
    manifest, digest = disk.publish(ONE, 1)
    assert sum(disk.store.collect({}).values()) == 0
    assert sum(disk.store.collect({ModelName("other"): frozenset()}).values()) == 0
    assert disk.store.missing(manifest) == []
    assert disk.store.manifest(digest) == manifest
    assert ONE.seen_at(disk.current())


def test_a_kept_tree_keeps_its_objects_when_its_manifest_is_damaged(disk: Disk) -> None:
    manifest, digest = disk.publish(ONE, 1)
    flip(disk.store.manifest_path(digest))
    disk.store.collect({FRAUD: frozenset({digest})})
    assert [entry.path for entry in disk.store.missing(manifest)] == ["run.sh"]  # in the tree a copy, not a link
    assert ONE.seen_at(disk.current())


def test_a_lease_holds_what_is_being_put_together(disk: Disk) -> None:
    manifest, digest = describe(disk.store, disk.source(ONE), 1)
    partial = disk.store.partial_path(manifest.files[0].digest)
    partial.write_bytes(b"half")
    with disk.store.leased(manifest.referenced() | {digest}), disk.store.leased(manifest.referenced()):
        assert sum(disk.store.collect({FRAUD: frozenset()}).values()) == 0
    assert disk.store.collect({FRAUD: frozenset()}) == {
        "trees": 0, "documents": 1, "objects": 6, "size_bytes": manifest.size_bytes + 4
    }  # fmt: skip
    assert not partial.exists()


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_start_sweeps_what_a_kill_left(disk: Disk) -> None:
    manifest, _ = disk.publish(ONE, 1)
    state, live = disk.root / "state", disk.root / "live"
    held, unfinished = manifest.files[0].digest, Digest(bytes(32))
    for path in ("tmp/x.tmp", "manifests/x.tmp", "catalog/x.json.1.tmp", "active/x.json.1.tmp", "state.json.1.tmp"):
        (state / path).parent.mkdir(exist_ok=True)
        (state / path).write_bytes(b"x")
    (state / "tmp/tree-fraud.1.tmp/sub").mkdir(parents=True)
    (state / "tmp/link.tmp").symlink_to("/etc")
    (live / "fraud/current.1.tmp").symlink_to("nowhere")
    os.link(disk.store.object_path(held), disk.store.partial_path(held))
    disk.store.partial_path(unfinished).write_bytes(b"half of it")
    disk.store.close()
    disk.store.open()
    disk.live.open()
    assert temporaries(state, live) == [str(disk.store.partial_path(unfinished))]
    assert Path("/etc").is_dir()
    assert ONE.seen_at(disk.current())


def test_a_lost_shard_is_made_again(disk: Disk) -> None:
    (disk.store.objects / "07").rmdir()
    disk.store.close()
    disk.store.open()
    assert len(list(disk.store.objects.iterdir())) == 256


@pytest.mark.parametrize("text", ["2", "", "1.1", "\x1b[2J", "x" * 200])
def test_a_later_format_is_refused_and_the_lock_let_go(disk: Disk, text: str) -> None:
    disk.store.close()
    (disk.root / "state/format").write_text(text)
    with pytest.raises(LayoutCorrupt) as caught:
        disk.store.open()
    assert caught.value.reason == (
        f"its format is {text[:80].strip()!r}, this release writes 1: run the release that wrote it"
    )
    (disk.root / "state/format").write_text("1")
    disk.store.open()


def test_one_process_opens_it_once(disk: Disk) -> None:
    with pytest.raises(StateInUse) as caught:
        IngestingStore(disk.root / "state").open()
    assert caught.value.details() == {"path": str(disk.root / "state"), "holder": f"pid {os.getpid()}"}
    assert caught.value.exit_code == 75


def test_a_start_on_a_full_disk_does_not_fail_over_its_pid(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    disk.store.close()
    monkeypatch.setattr(os, "pwrite", full)
    disk.store.open()


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(DiskFailed) as caught:
        IngestingStore(tmp_path / "state").open()
    assert caught.value.details() == {
        "path": str(tmp_path / "state"), "operation": "open the state directory", "errno_name": "ENOTDIR"
    }  # fmt: skip


# --- faults that are named --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind", "name"),
    [(28, DiskFull, None), (122, DiskFull, None), (5, DiskFailed, "EIO"), (30, DiskFailed, "EROFS"),
     (24, OutOfDescriptors, "EMFILE"), (23, OutOfDescriptors, "ENFILE"), (13, NotPermitted, "EACCES"),
     (1, NotPermitted, "EPERM"), (0, DiskFailed, "0")],
)  # fmt: skip
def test_what_an_errno_means(number: int, kind: type[ModelsyncError], name: str | None) -> None:
    made = translated(OSError(number, "x"), "/p", "write")
    assert isinstance(made, kind)
    assert made.details().get("errno_name") == name
    assert made.retryable


def test_space_is_asked_for_before_a_transfer(disk: Disk) -> None:
    free = durable.free_bytes(disk.root)
    with pytest.raises(DiskFull) as caught:
        disk.store.require_space(2 * free)
    assert caught.value.needed_bytes == 2 * free + store_file.RESERVE_BYTES
    assert caught.value.free_bytes is not None
    disk.store.require_space(1)


def test_no_descriptors_left_is_said_so_and_passes(disk: Disk) -> None:
    disk.publish(ONE, 1)
    root = disk.source(TWO)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
    try:
        hogs = []
        while True:
            try:
                hogs.append(os.open("/", os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(OutOfDescriptors) as caught:
            disk.store.ingest(root, [SourceFile("tiny", 1, 0, 0, 0, 0o644)])
        assert caught.value.errno_name == "EMFILE"
        with pytest.raises(OutOfDescriptors):
            disk.live.write_record(ActiveRecord(FRAUD, Version(9), Digest(bytes(32)), EntryId(1, 9), 0))
        for hog in hogs:
            os.close(hog)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ONE.seen_at(disk.current())
    disk.publish(TWO, 2)
    assert TWO.seen_at(disk.current())


# --- the small files --------------------------------------------------------------------------------------------------


def test_active_records_come_back(disk: Disk) -> None:
    made = ActiveRecord(FRAUD, Version(2), Digest(bytes(32)), EntryId(7, 42), 1234, Version(1), Digest(b"\1" * 32))
    disk.live.write_record(made)
    assert disk.live.records() == {FRAUD: made}
    first = replace(made, previous_version=None, previous_digest=None)
    disk.live.write_record(first)
    assert disk.live.records() == {FRAUD: first}


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'"x"', b'{"model":"../x"}', b"\xff"])
def test_a_damaged_record_says_how_to_recover(disk: Disk, data: bytes) -> None:
    path = disk.root / "state/active/fraud.json"
    path.write_bytes(data)
    with pytest.raises(LayoutCorrupt) as caught:
        disk.live.records()
    assert caught.value.path == str(path)
    assert caught.value.reason.endswith("; remove it: the daemon then activates what the fleet wants")


@pytest.mark.parametrize(
    "target", ["/etc", "../../state/store/fraud/xyz", "../../state/store/other/" + "0" * 64, "loop"]
)
def test_a_link_that_is_not_ours_is_no_active_version(disk: Disk, target: str) -> None:
    disk.current().parent.mkdir()
    disk.current().symlink_to(target)
    assert disk.live.active(FRAUD) is None


def test_catalog_files_come_back(disk: Disk) -> None:
    files = CatalogFiles(disk.root / "state")
    assert files.load() == {}
    files.save(record(1, 2, aliases={"stable": Version(1)}))
    (disk.root / "state/catalog/half.json.1.tmp").write_text("{")
    assert files.load() == {FRAUD: record(1, 2, aliases={"stable": Version(1)})}


@pytest.mark.parametrize(("name", "data"), [("fraud", b"{"), ("fraud", b'{"head":"x"}'), ("..", b"{}"), ("a b", b"{}")])
def test_a_damaged_catalog_file_says_how_to_recover(disk: Disk, name: str, data: bytes) -> None:
    files = CatalogFiles(disk.root / "state")
    files.load()
    path = disk.root / f"state/catalog/{name}.json"
    path.write_bytes(data)
    with pytest.raises(LayoutCorrupt) as caught:
        files.load()
    assert caught.value.path == str(path)
    assert caught.value.reason.endswith("; remove it: the daemon relearns it from the fleet")


def test_signatures_of_sources_come_back(disk: Disk) -> None:
    files = CatalogFiles(disk.root / "state")
    assert files.load_sources() == {}
    seen = {"fraud": tuple(sources(disk.source(ONE))), "huge": (SourceFile("x", 1, 2**63, 2**63, 2**64 - 1, 0o644),)}
    files.save_sources(seen)
    assert files.load_sources() == seen


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"a":[1]}', b'{"a":[["x",1,"y","z","0",420]]}', b'{"a":[["x"]]}', b"\xff"]
)
def test_damaged_signatures_only_cost_hashing(disk: Disk, data: bytes) -> None:
    (disk.root / "state/sources.json").write_bytes(data)
    assert CatalogFiles(disk.root / "state").load_sources() == {}
