"""The models directory for real: real files, real inotify, real leases."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from modelsync.core.errors import DiskFailed
from modelsync.core.sources.events import Closed, Overflowed, Removed, Renamed, Written
from modelsync.core.sources.layout import Entry
from modelsync.core.sources.settle import Writers
from modelsync.edges.models import scan as scan_edge
from modelsync.edges.models import watch as watch_edge
from modelsync.edges.models.scan import DirectoryScanner, open_for_writing
from modelsync.edges.models.watch import InotifyWatch
from modelsync.ports import ReadySource, SourceFile
from modelsync.runtime import refusals as refusals_module
from modelsync.runtime import watching
from modelsync.runtime.sources import SourceWatcher

SETTLE_S = 0.3
ENOUGH_S = 5.0
"""For anything that should happen within milliseconds, on a machine that is doing other things as well."""


class SystemClock:
    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


def run(*command: str | Path) -> bool:
    """Another program, to its end."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Bench:
    """A watcher on a directory of its own, and the questions that the tests ask of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.outside = tmp_path / "outside"
        self.outside.mkdir()
        self.root = tmp_path / "models"
        self.root.mkdir()
        self.scanner = DirectoryScanner(self.root)
        self.watch = InotifyWatch(self.root)
        self.include: tuple[str, ...] = ()
        self.exclude: tuple[str, ...] = ()
        self.known: Mapping[str, tuple[SourceFile, ...]] = {}
        self.rescan_s = 30.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SourceWatcher]:
        self.watcher = SourceWatcher(
            root=self.root,
            settle_s=SETTLE_S,
            rescan_s=self.rescan_s,
            include=self.include,
            exclude=self.exclude,
            known=self.known,
            scanner=self.scanner,
            watch=self.watch,
            clock=SystemClock(),
        )
        async with self.watcher:
            await self.until(lambda: self.watch.alive() or bool(self.watcher.refusals()))
            yield self.watcher

    async def next(self, timeout_s: float = ENOUGH_S) -> ReadySource:
        return await asyncio.wait_for(self.watcher.__anext__(), timeout_s)

    async def keys(self, count: int) -> list[str]:
        return sorted([(await self.next()).key for _ in range(count)])

    async def nothing(self, for_s: float = 3 * SETTLE_S) -> None:
        with pytest.raises(TimeoutError):
            source = await self.next(for_s)
            raise AssertionError(f"{source.key} was announced")

    async def until(self, what: Callable[[], bool], timeout_s: float = ENOUGH_S) -> None:
        async with asyncio.timeout(timeout_s):
            while not what():
                await asyncio.sleep(0.01)

    async def refused(self, path: str) -> str:
        await self.until(lambda: path in self.watcher.refusals())
        return self.watcher.refusals()[path]

    def make(self, name: str, data: bytes = b"weights") -> Path:
        path = self.outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def age(self) -> None:
        """Wait until what lies there is old enough by the kernel's own times, which cannot be set back."""
        time.sleep(SETTLE_S + 0.1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- arriving ---------------------------------------------------------------------------------------------------------


async def test_a_file_renamed_in_from_outside_is_there_at_once(bench: Bench) -> None:
    async with bench.running():
        begun_s = time.monotonic()
        os.rename(bench.make("fraud.joblib"), bench.root / "fraud.joblib")
        source = await bench.next()
        assert time.monotonic() - begun_s < SETTLE_S
    assert (source.model, source.version, source.arrived) == ("fraud", None, "event")
    assert source.root == bench.root
    found = (bench.root / "fraud.joblib").stat()
    assert source.files == (
        SourceFile("fraud.joblib", 7, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode & 0o7777),
    )


@pytest.mark.parametrize("where", ["outside", "hidden", "temporary"])
async def test_a_directory_renamed_in_is_there_at_once_with_all_that_is_in_it(bench: Bench, where: str) -> None:
    async with bench.running():
        made = {"outside": bench.outside / "x", "hidden": bench.root / ".x", "temporary": bench.root / "x.tmp"}[where]
        (made / "sub").mkdir(parents=True)
        (made / "w.bin").write_bytes(b"w")
        (made / "sub/v.json").write_bytes(b"v")
        await bench.nothing()
        begun_s = time.monotonic()
        os.rename(made, bench.root / "fraud")
        source = await bench.next()
        assert time.monotonic() - begun_s < SETTLE_S
        assert (source.key, source.root, source.arrived) == ("fraud", bench.root / "fraud", "event")
        assert [file.path for file in source.files] == ["sub/v.json", "w.bin"]
        await bench.nothing()


async def test_a_rename_does_not_wait_behind_one_that_leaves(bench: Bench) -> None:
    """Watchdog holds an unpaired MOVED_FROM back for 0.5 s, and everything behind it."""
    os.rename(bench.make("fraud.npy"), bench.root / "fraud.npy")
    async with bench.running():
        await bench.next()
        begun_s = time.monotonic()
        os.rename(bench.root / "fraud.npy", bench.outside / "old.npy")
        os.rename(bench.make("fraud.npy", b"v2"), bench.root / "fraud.npy")
        await bench.next()
        assert time.monotonic() - begun_s < SETTLE_S


async def test_numbered_versions_come_one_by_one(bench: Bench) -> None:
    async with bench.running():
        (bench.root / "fraud").mkdir()
        for number in (1, 2):
            bench.make("v/model.onnx", b"%d" % number)
            os.rename(bench.outside / "v", bench.root / "fraud" / str(number))
            source = await bench.next()
            assert (source.model, source.version, source.key) == ("fraud", number, f"fraud/{number}")
            assert source.root == bench.root / "fraud" / str(number)
        assert bench.watcher.refusals() == {}


async def test_a_copy_is_complete_when_it_has_settled(bench: Bench) -> None:
    big = bench.make("fraud.bin", os.urandom(3_000_000))
    async with bench.running():
        assert run("cp", big, bench.root / "fraud.bin")
        copied_s = time.monotonic()
        source = await bench.next()
        assert time.monotonic() - copied_s >= SETTLE_S - 0.05
        assert source.files[0].size_bytes == 3_000_000


async def test_a_slow_copy_with_pauses_is_not_complete_while_it_is_open(bench: Bench) -> None:
    async with bench.running():
        with (bench.root / "fraud.bin").open("wb", buffering=0) as file:
            for _ in range(3):
                file.write(b"piece")
                await bench.nothing(2.5 * SETTLE_S)
            assert "is open for writing" in bench.watcher.refusals()["fraud.bin"]
        source = await bench.next()
        assert source.files[0].size_bytes == 15
        assert bench.watcher.refusals() == {}


async def test_a_writer_from_before_the_start_is_noticed(bench: Bench) -> None:
    with (bench.root / "fraud.bin").open("wb", buffering=0) as file:
        file.write(b"half")
        bench.age()
        async with bench.running():
            await bench.nothing()
            file.write(b"rest")
            file.close()
            source = await bench.next()
            assert (source.files[0].size_bytes, source.arrived) == (8, "event")


async def test_a_mapped_file_counts_as_open(bench: Bench) -> None:
    path = bench.root / "fraud.bin"
    async with bench.running():
        with path.open("w+b") as file:
            file.truncate(4096)
            mapped = mmap.mmap(file.fileno(), 4096)
        await bench.nothing(2.5 * SETTLE_S)
        mapped[0] = 1
        mapped.close()
        assert (await bench.next()).files[0].size_bytes == 4096


async def test_a_tree_copied_with_cp_is_announced_once_and_whole(bench: Bench) -> None:
    for number in range(40):
        bench.make(f"fraud/d{number % 4}/w{number}.bin", os.urandom(10_000))
    async with bench.running():
        assert run("cp", "-r", bench.outside / "fraud", bench.root / "fraud")
        source = await bench.next()
        assert len(source.files) == 40
        await bench.nothing()


async def test_a_tree_that_is_written_slowly_is_announced_once_and_whole(bench: Bench) -> None:
    async with bench.running():
        (bench.root / "fraud").mkdir()
        for number in range(5):
            (bench.root / "fraud" / f"w{number}.bin").write_bytes(b"w")
            await bench.nothing(0.6 * SETTLE_S)
        assert len((await bench.next()).files) == 5
        await bench.nothing()


async def test_a_marker_completes_at_once(bench: Bench) -> None:
    async with bench.running():
        (bench.root / "fraud").mkdir()
        (bench.root / "fraud/w.bin").write_bytes(b"w")
        begun_s = time.monotonic()
        (bench.root / "fraud/_SUCCESS").touch()
        source = await bench.next()
        assert time.monotonic() - begun_s < SETTLE_S
        assert [file.path for file in source.files] == ["w.bin"]


async def test_a_hard_link_is_complete_when_settled_though_nobody_closes_it(bench: Bench) -> None:
    async with bench.running():
        os.link(bench.make("w.bin"), bench.root / "fraud.bin")
        assert (await bench.next()).key == "fraud.bin"


async def test_written_again_it_is_announced_again_and_touched_only_its_times(bench: Bench) -> None:
    async with bench.running():
        os.rename(bench.make("fraud.bin"), bench.root / "fraud.bin")
        first = await bench.next()
        (bench.root / "fraud.bin").write_bytes(b"other weights")
        second = await bench.next()
        assert first.files != second.files
        os.chmod(bench.root / "fraud.bin", 0o755)
        assert (await bench.next()).files[0].mode == 0o755
        await bench.nothing()


async def test_five_hundred_renames_in_one_go(bench: Bench) -> None:
    for number in range(500):
        bench.make(f"m{number}.npy", b"%d" % number)
    async with bench.running():
        begun_s = time.monotonic()
        for number in range(500):
            os.rename(bench.outside / f"m{number}.npy", bench.root / f"m{number}.npy")
        keys = [(await bench.next()).key for _ in range(500)]
        assert sorted(keys) == sorted(f"m{number}.npy" for number in range(500))
        assert time.monotonic() - begun_s < ENOUGH_S
        await bench.nothing()


async def test_one_name_replaced_five_hundred_times_ends_with_the_last(bench: Bench) -> None:
    async with bench.running():
        for number in range(500):
            os.rename(bench.make("m.npy", b"%03d" % number), bench.root / "m.npy")
        last = (bench.root / "m.npy").stat()
        async with asyncio.timeout(ENOUGH_S):
            async for source in bench.watcher:
                if source.files[0].inode == last.st_ino and source.files[0].ctime_ns == last.st_ctime_ns:
                    break
        await bench.nothing()


# --- starting and restarting ------------------------------------------------------------------------------------------


async def test_what_lies_there_at_the_start_is_found(bench: Bench) -> None:
    (bench.root / "a.npy").write_bytes(b"a")
    (bench.root / "b").mkdir()
    (bench.root / "b/w.bin").write_bytes(b"b")
    bench.age()
    async with bench.running():
        sources = [await bench.next(), await bench.next()]
        assert sorted((source.key, source.arrived) for source in sources) == [("a.npy", "scan"), ("b", "scan")]
        await bench.nothing()


async def test_what_was_known_before_is_not_announced_unless_it_changed_meanwhile(bench: Bench) -> None:
    os.rename(bench.make("a.npy"), bench.root / "a.npy")
    os.rename(bench.make("b.npy"), bench.root / "b.npy")
    async with bench.running():
        sources = [await bench.next(), await bench.next()]
    bench.known = {source.key: source.files for source in sources}
    (bench.root / "b.npy").write_bytes(b"changed while nobody watched")
    bench.age()
    async with bench.running():
        assert (await bench.next()).key == "b.npy"
        await bench.nothing()


async def test_retry_announces_again(bench: Bench) -> None:
    os.rename(bench.make("a.npy"), bench.root / "a.npy")
    async with bench.running() as watcher:
        first = await bench.next()
        watcher.retry(first)
        assert await bench.next() == first
        await bench.nothing()


async def test_include_and_exclude_are_patterns_on_model_names(bench: Bench) -> None:
    bench.include, bench.exclude = ("fraud*", "risk"), ("*-test",)
    for name in ("fraud.npy", "fraud-test.npy", "other.npy", "risk.npy", "not a name"):
        os.rename(bench.make(name), bench.root / name)
    async with bench.running() as watcher:
        assert await bench.keys(2) == ["fraud.npy", "risk.npy"]
        assert watcher.refusals() == {}


async def test_iteration_ends_when_it_is_closed(bench: Bench) -> None:
    async with bench.running() as watcher:
        waiting = asyncio.create_task(watcher.__anext__())
        await asyncio.sleep(0.05)
        await watcher.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, ENOUGH_S)
        await watcher.close()


# --- refused ----------------------------------------------------------------------------------------------------------


async def test_what_is_no_regular_file_is_refused_by_kind(bench: Bench) -> None:
    os.mkfifo(bench.root / "pipe.bin")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(bench.root / "sock.bin"))
    (bench.root / "dangling").symlink_to("nowhere")
    (bench.root / "out.bin").symlink_to(bench.make("secret.bin"))
    (bench.root / "circle").symlink_to("circle")
    (bench.root / "passwd").symlink_to("/etc")
    (bench.root / "m").mkdir()
    (bench.root / "m/w.bin").write_bytes(b"w")
    (bench.root / "m/../m/up").symlink_to("../../outside/secret.bin")
    with contextlib.closing(listening):
        async with bench.running():
            await bench.nothing()
            found = bench.watcher.refusals()
    assert {path: reason.split(";")[0] for path, reason in found.items()} == {
        "pipe.bin": "a FIFO, not a file",
        "sock.bin": "a socket, not a file",
        "dangling": "a symbolic link to nothing",
        "out.bin": "a symbolic link that leaves the models directory",
        "circle": "a symbolic link that leads in a circle",
        "passwd": "a symbolic link that leaves the models directory",
        "m/up": "a symbolic link that leaves the models directory",
    }


def test_a_directory_swapped_for_a_link_during_the_walk_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"s")
    (tmp_path / "models/m/sub").mkdir(parents=True)

    class Swapping(DirectoryScanner):
        def _entry(self, directory: int, name: str, path: str) -> Entry | None:
            entry = super()._entry(directory, name, path)
            if path == "m/sub":
                (tmp_path / "models/m/sub").rmdir()
                (tmp_path / "models/m/sub").symlink_to(tmp_path / "outside")
            return entry

    assert [entry.path for entry in Swapping(tmp_path / "models").scan(None).trees["m"]] == ["m/sub"]


async def test_links_within_one_model_are_followed_as_their_content(bench: Bench) -> None:
    bench.make("hf/blobs/0123", b"weights!")
    (bench.outside / "hf/model.safetensors").symlink_to("blobs/0123")
    async with bench.running():
        os.rename(bench.outside / "hf", bench.root / "hf")
        source = await bench.next()
    assert [(file.path, file.size_bytes) for file in source.files] == [("blobs/0123", 8), ("model.safetensors", 8)]


async def test_a_refusal_goes_when_its_reason_goes(bench: Bench) -> None:
    async with bench.running() as watcher:
        (bench.root / "fraud.joblib").touch()
        assert await bench.refused("fraud.joblib") == "an empty file"
        (bench.root / "fraud.joblib").write_bytes(b"w")
        assert (await bench.next()).key == "fraud.joblib"
        assert watcher.refusals() == {}


async def test_two_things_of_one_name_are_refused_until_one_goes(bench: Bench) -> None:
    async with bench.running() as watcher:
        bench.make("fraud/w.bin")
        os.rename(bench.outside / "fraud", bench.root / "fraud")
        assert (await bench.next()).key == "fraud"
        os.rename(bench.make("Fraud.joblib"), bench.root / "Fraud.joblib")
        assert "fraud would be the same model" in await bench.refused("Fraud.joblib")
        shutil.rmtree(bench.root / "fraud")
        watcher.request_rescan()
        assert (await bench.next()).key == "Fraud.joblib"
        assert watcher.refusals() == {}


async def test_a_sparse_file_larger_than_the_disk_is_refused(bench: Bench) -> None:
    with (bench.root / "huge.bin").open("wb") as file:
        try:
            file.truncate(15 << 40)
        except OSError as error:
            pytest.skip(f"no sparse file of 15 TiB here: {error}")
    bench.age()
    async with bench.running():
        assert "more than its whole file system can hold" in await bench.refused("huge.bin")
        await bench.nothing()


async def test_hostile_names_are_refused_and_shown_escaped(bench: Bench) -> None:
    os.close(os.open(os.fsencode(bench.root) + b"/caf\xe9.joblib", os.O_CREAT | os.O_WRONLY))
    (bench.root / "new\nline.joblib").write_bytes(b"w")
    (bench.root / "m").mkdir()
    (bench.root / "m" / "\x1b[31mred").write_bytes(b"w")
    (bench.root / ("n" * 255)).write_bytes(b"w")
    (bench.root / "long").mkdir()
    (bench.root / "long" / ("n" * 255)).write_bytes(b"w")
    bench.age()
    async with bench.running() as watcher:
        source = await bench.next()
        assert (source.key, [file.path for file in source.files]) == ("long", ["n" * 255])
        await bench.until(lambda: len(watcher.refusals()) == 4)
        assert set(watcher.refusals()) == {"caf\\xe9.joblib", "new\\nline.joblib", "m/\\x1b[31mred", "n" * 255}


async def test_a_model_of_a_hundred_thousand_files_passes_and_one_more_does_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelsync.core.sources.layout.MAX_FILES", 50)
    monkeypatch.setattr(scan_edge, "_MAX_NAMES", 60)
    for name, count in (("fits", 50), ("much", 51), ("endless", 200)):
        for number in range(count):
            bench.make(f"{name}/{number:03}.bin")
        os.rename(bench.outside / name, bench.root / name)
    async with bench.running() as watcher:
        source = await bench.next()
        assert (source.key, len(source.files)) == ("fits", 50)
        await bench.until(lambda: set(watcher.refusals()) == {"much", "endless"})
        assert all("more than" in reason for reason in watcher.refusals().values())


async def test_directories_nested_without_end_are_refused(bench: Bench) -> None:
    deep = bench.root / "deep"
    (deep / "/".join(["d"] * 80)).mkdir(parents=True)
    (deep / "w.bin").write_bytes(b"w")
    async with bench.running() as watcher:
        await bench.until(lambda: bool(watcher.refusals()))
        (reason,) = watcher.refusals().values()
        assert reason == "deeper than 64 directories"


async def test_refusals_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals_module, "MAX_REFUSALS", 10)
    for number in range(50):
        (bench.root / f"{number}.md").touch()
    async with bench.running() as watcher:
        await bench.until(lambda: len(watcher.refusals()) == 10)
        await asyncio.sleep(0.1)
        assert len(watcher.refusals()) == 10


@pytest.mark.skipif(os.getuid() != 0, reason="changes the owner and drops its rights, so it needs root")
def test_unreadable_files_and_other_owners_without_root(tmp_path: Path) -> None:
    """As nobody: a file that may not be read is named, and one of another owner gives no lease, so it is unknown."""
    models = tmp_path / "models"
    (models / "m").mkdir(parents=True)
    (models / "m/shut.bin").write_bytes(b"w")
    (models / "theirs.bin").write_bytes(b"w")
    (models / "locked").mkdir()
    os.chmod(models / "m/shut.bin", 0o000)
    os.chmod(models / "locked", 0o000)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.chdir(models)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            scanner = DirectoryScanner(Path("."))
            found = scanner.scan(None)
            files = [entry for entry in (*found.top, *found.trees["m"]) if entry.kind == "file"]
            said = (scanner.writers(files), found.trees["locked"])
            os.write(write_end, repr(said).encode())
            status = 0
        os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert "unknown=frozenset({'theirs.bin'})" in said
    assert "('m/shut.bin', 'it cannot be read: Permission denied')" in said
    assert "a directory that cannot be read: Permission denied" in said


async def test_an_unreadable_published_file_refuses_and_a_hidden_one_does_not(bench: Bench) -> None:
    class Blind(DirectoryScanner):
        def writers(self, files: object) -> Writers:
            return Writers(unreadable=(("a/w.bin", "it cannot be read: no"), ("b/.x", "it cannot be read: no")))

    bench.scanner = Blind(bench.root)
    for path in ("a/w.bin", "b/w.bin", "b/.x"):
        bench.make(path)
    async with bench.running():
        os.rename(bench.outside / "a", bench.root / "a")
        assert await bench.refused("a/w.bin") == "it cannot be read: no"
        os.rename(bench.outside / "b", bench.root / "b")
        assert (await bench.next()).key == "b"


# --- the watch fails --------------------------------------------------------------------------------------------------


async def test_lost_events_have_everything_scanned(bench: Bench) -> None:
    class Deaf(InotifyWatch):
        def start(self, heard: Callable[..., None]) -> None:
            self.heard = heard
            super().start(lambda event: heard(event) if isinstance(event, Overflowed) else None)

    deaf = Deaf(bench.root)
    bench.watch = deaf
    async with bench.running():
        os.rename(bench.make("a.npy"), bench.root / "a.npy")
        await bench.nothing()
        deaf.heard(Overflowed())
        assert (await bench.next()).key == "a.npy"


async def test_the_kernels_own_overflow_event_is_noticed(bench: Bench) -> None:
    """What the kernel sends when its queue is full, put into watchdog's reader: the watch tells, and goes on."""
    heard: list[object] = []
    bench.watch.start(heard.append)
    observer = bench.watch._observer
    assert observer is not None
    overflow = watch_edge.InotifyEvent(-1, watch_edge.Mask(0x4000), 0, b"")  # type: ignore[arg-type]
    observer._descriptor.handle_event(overflow)
    assert heard == [Overflowed()]
    (bench.root / "late.npy").write_bytes(b"w")
    await bench.until(lambda: len(heard) > 1)
    assert bench.watch.alive()
    bench.watch.stop()
    assert not bench.watch.alive()


async def test_a_queue_that_the_kernel_really_overflows_loses_no_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watchdog's reader is held up until the kernel has dropped events, that of the model among them."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"the kernel queues {limit} events here")
    go_on = threading.Event()
    go_on.set()
    real = watch_edge.InotifyFD.read_events

    def held_up(self: object, **more: object) -> object:
        go_on.wait()
        return real(self, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(watch_edge.InotifyFD, "read_events", held_up)
    async with bench.running():
        go_on.clear()
        for number in range(limit // 2 + 100):
            (bench.root / f".{number % 2}").mkdir()
            (bench.root / f".{number % 2}").rmdir()
        os.rename(bench.make("a.npy"), bench.root / "a.npy")
        go_on.set()
        assert (await bench.next()).key == "a.npy"
        os.rename(bench.make("b.npy"), bench.root / "b.npy")
        assert (await bench.next()).key == "b.npy"


async def test_a_directory_renamed_in_is_one_event_whatever_is_in_it(bench: Bench) -> None:
    """Watchdog adds an event for each file in it: taken for changes, they would end the rename's privilege."""
    heard: list[object] = []
    for number in range(20):
        bench.make(f"m/{number}.bin")
    bench.watch.start(heard.append)
    os.rename(bench.outside / "m", bench.root / "m")
    await bench.until(lambda: len(heard) == 1)
    os.rename(bench.root / "m", bench.root / "n")
    await bench.until(lambda: len(heard) == 2)
    (bench.root / "n/0.bin").unlink()
    await bench.until(lambda: len(heard) > 2)
    bench.watch.stop()
    assert heard == [Renamed("", "m"), Renamed("m", "n"), Removed("n/0.bin")]


async def test_a_fast_writer_does_not_flood_the_watch(bench: Bench) -> None:
    heard: list[object] = []
    bench.watch.start(heard.append)
    with (bench.root / "a.bin").open("wb", buffering=0) as one, (bench.root / "b.bin").open("wb", buffering=0) as two:
        for _ in range(2_000):
            one.write(b"1")
            two.write(b"2")
    await bench.until(lambda: Closed("a.bin") in heard and Closed("b.bin") in heard)
    bench.watch.stop()
    assert 2 <= sum(isinstance(event, Written) for event in heard) <= 100


async def test_slow_rescans_find_what_no_event_told(bench: Bench) -> None:
    class Silent(InotifyWatch):
        def start(self, heard: object) -> None:
            super().start(lambda event: None)

    bench.watch, bench.rescan_s = Silent(bench.root), 0.5
    async with bench.running():
        (bench.root / "a.npy").write_bytes(b"w")
        source = await bench.next()
        assert (source.key, source.arrived) == ("a.npy", "event")  # the watch had begun when it came
        (bench.root / "a.npy").write_bytes(b"w2")
        assert (await bench.next()).files[0].size_bytes == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
async def test_without_a_watch_it_is_scanned_often_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(watching, "UNWATCHED_SCAN_S", 0.3)

    def denied(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(watch_edge._Descriptor, "_create_inotify_fd", denied)
    async with bench.running() as watcher:
        assert "sysctl" in watcher.refusals()["."]
        os.rename(bench.make("a.npy"), bench.root / "a.npy")
        assert (await bench.next()).key == "a.npy"


async def test_a_subdirectory_that_gets_no_watch_turns_scanning_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "UNWATCHED_SCAN_S", 0.3)
    real = watch_edge.InotifyFD.add_callback

    def scarce(self: object, path: bytes, *rest: object) -> object:
        if path.endswith(b"/m"):
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        return real(self, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(watch_edge.InotifyFD, "add_callback", scarce)
    async with bench.running():
        (bench.root / "m").mkdir()
        (bench.root / "m/w.bin").write_bytes(b"1")
        assert (await bench.next()).key == "m"
        assert "max_user_watches" in await bench.refused(".")
        (bench.root / "m/w.bin").write_bytes(b"22")
        assert (await bench.next()).files[0].size_bytes == 2


async def test_a_disk_that_does_not_answer_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "UNWATCHED_SCAN_S", 0.3)

    class Failing(DirectoryScanner):
        fails = 0

        def scan(self, entries: object) -> object:  # type: ignore[override]
            if self.fails:
                self.fails -= 1
                raise DiskFailed(path="models", operation="scan", errno_name="EIO")
            return super().scan(entries)  # type: ignore[arg-type]

    scanner = Failing(bench.root)
    bench.scanner = scanner
    async with bench.running() as watcher:
        scanner.fails = 2
        os.rename(bench.make("a.npy"), bench.root / "a.npy")
        assert "EIO" in await bench.refused(".")
        assert (await bench.next()).key == "a.npy"
        await bench.until(lambda: watcher.refusals() == {})


# --- the directory itself ---------------------------------------------------------------------------------------------


async def test_a_directory_that_is_not_there_yet_is_waited_for(bench: Bench) -> None:
    bench.root.rmdir()
    async with bench.running() as watcher:
        assert watcher.refusals()["."] == "the models directory is not there"
        bench.root.mkdir()
        await bench.until(bench.watch.alive)
        os.rename(bench.make("a.npy"), bench.root / "a.npy")
        assert (await bench.next()).key == "a.npy"
        assert watcher.refusals() == {}


@pytest.mark.parametrize("how", ["deleted", "moved away"])
async def test_a_directory_that_goes_and_comes_back(bench: Bench, how: str) -> None:
    os.rename(bench.make("a.npy"), bench.root / "a.npy")
    async with bench.running() as watcher:
        assert (await bench.next()).key == "a.npy"
        if how == "deleted":
            shutil.rmtree(bench.root)
        else:
            os.rename(bench.root, bench.outside / "aside")
        assert await bench.refused(".") == "the models directory is not there"
        assert not bench.watch.alive()  # a directory that was moved away is not ours any more
        await bench.nothing()
        if how == "deleted":
            bench.root.mkdir()
        else:
            os.rename(bench.outside / "aside", bench.root)
        await bench.until(lambda: watcher.refusals() == {})
        await bench.nothing()  # the same files again are nothing new
        os.rename(bench.make("b.npy"), bench.root / "b.npy")
        assert (await bench.next()).key == "b.npy"


async def test_a_directory_replaced_by_a_rename_is_the_one_that_is_watched(bench: Bench) -> None:
    os.rename(bench.make("a.npy"), bench.root / "a.npy")
    async with bench.running():
        assert (await bench.next()).key == "a.npy"
        other = bench.outside / "other"
        other.mkdir()
        (other / "b.npy").write_bytes(b"b")
        os.rename(bench.root, bench.outside / "aside")
        os.rename(other, bench.root)
        assert (await bench.next()).key == "b.npy"
        os.rename(bench.make("c.npy"), bench.root / "c.npy")
        begun_s = time.monotonic()
        assert (await bench.next()).key == "c.npy"
        assert time.monotonic() - begun_s < SETTLE_S
        os.rename(bench.make("d.npy"), bench.outside / "aside/d.npy")
        await bench.nothing()


async def test_a_root_that_is_a_link_is_followed_and_its_change_noticed(bench: Bench) -> None:
    bench.root.rmdir()
    for name in ("one", "two"):
        (bench.outside / name).mkdir()
    bench.root.symlink_to(bench.outside / "one")
    async with bench.running():
        os.rename(bench.make("a.npy"), bench.outside / "one/a.npy")
        assert (await bench.next()).key == "a.npy"
        (bench.outside / "two/b.npy").write_bytes(b"b")
        (bench.outside / "new").symlink_to(bench.outside / "two")
        os.rename(bench.outside / "new", bench.root)
        assert (await bench.next()).key == "b.npy"


async def test_an_emptied_directory_is_nothing(bench: Bench) -> None:
    os.rename(bench.make("a.npy"), bench.root / "a.npy")
    async with bench.running() as watcher:
        await bench.next()
        (bench.root / "a.npy").unlink()
        watcher.request_rescan()
        await bench.nothing()
        assert watcher.refusals() == {}
        os.rename(bench.make("a.npy"), bench.root / "a.npy")
        assert (await bench.next()).key == "a.npy"


async def test_what_vanished_before_it_was_taken_is_not_handed_out(bench: Bench) -> None:
    async with bench.running():
        os.rename(bench.make("a.npy"), bench.root / "a.npy")
        await asyncio.sleep(SETTLE_S)
        (bench.root / "a.npy").unlink()
        await asyncio.sleep(SETTLE_S)
        await bench.nothing()


@pytest.mark.skipif(os.getuid() != 0, reason="mounts, so it needs root")
async def test_a_file_system_that_is_unmounted_and_mounted_again(bench: Bench) -> None:
    if not run("mount", "-t", "tmpfs", "-o", "size=1m", "none", bench.root):
        pytest.skip("no file system can be mounted here")
    try:
        async with bench.running() as watcher:
            (bench.root / "a.npy").write_bytes(b"a")
            assert (await bench.next()).key == "a.npy"
            assert run("umount", "-l", bench.root)
            await bench.nothing()
            os.rename(bench.make("b.npy"), bench.root / "b.npy")
            assert (await bench.next()).key == "b.npy"
            assert watcher.refusals() == {}
    finally:
        run("umount", "-l", bench.root)


# --- leases -----------------------------------------------------------------------------------------------------------


def test_a_lease_tells_of_writers_and_lets_them_in_at_once(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"w")
    reader = os.open(path, os.O_RDONLY)
    try:
        assert open_for_writing(reader) is False
        with path.open("ab"):
            assert open_for_writing(reader) is True
        assert open_for_writing(reader) is False
    finally:
        os.close(reader)


def test_a_writer_who_finished_between_the_scan_and_the_question_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"half")
    scanner = DirectoryScanner(tmp_path)
    (entry,) = scanner.scan(None).top
    assert scanner.writers([entry]) == Writers()
    with (tmp_path / "w.bin").open("ab") as file:
        assert scanner.writers([entry]) == Writers(held=("w.bin",))
        file.write(b"rest")
    assert scanner.writers([entry]) == Writers(changed=("w.bin",))
    (tmp_path / "w.bin").unlink()
    assert scanner.writers([entry]) == Writers(changed=("w.bin",))


def test_writers_that_break_the_lease_neither_wait_nor_kill_the_process(tmp_path: Path) -> None:
    """A process that asks all the time, and one that opens for writing all the time, for half a second."""
    path = tmp_path / "w.bin"
    path.write_bytes(b"w")
    code = (
        "import os,sys,time\n"
        "from modelsync.edges.models.scan import open_for_writing\n"
        "fd=os.open(sys.argv[1],os.O_RDONLY)\n"
        "print('ready',flush=True)\n"
        "until=time.monotonic()+0.8\n"
        "while time.monotonic()<until: open_for_writing(fd)\n"
        "print('alive',flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True, env=environment
    ) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "ready\n"
        slowest_s, begun_s = 0.0, time.monotonic()
        while time.monotonic() - begun_s < 0.5:
            one_s = time.monotonic()
            os.close(os.open(path, os.O_WRONLY))
            slowest_s = max(slowest_s, time.monotonic() - one_s)
        assert asking.stdout.readline() == "alive\n"
    assert asking.returncode == 0
    assert slowest_s < 0.3
