"""What left memory counts until the system has it back: beside a budget, what the C library keeps is memory as well."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from modelsync.client import memory as memory_module
from modelsync.client.counting import VersionCounts
from modelsync.client.emptying import LEAST_BYTES, empty_bytes, empty_last
from modelsync.client.entry import Entry
from modelsync.client.giving_back import Heaps
from modelsync.client.handle import Handle
from modelsync.client.memory import Memory
from modelsync.client.taking_apart import LARGE_BYTES, Remains

MODEL_BYTES = 8 << 20
LIMIT_S = 30


class Trims:
    """A C library whose every trim waits until it may end."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self.begun.release()
        assert self.may_end.acquire(timeout=LIMIT_S)


def started(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_who_asks_while_memory_is_returned_waits_for_a_return_that_began_later_and_all_share_it() -> None:
    trims = Trims()
    heaps = Heaps(trims)
    first = started(heaps.give_back)
    assert trims.begun.acquire(timeout=LIMIT_S)
    later = [started(heaps.give_back) for _ in range(5)]  # what they freed, the first may have passed already
    while heaps._asked < 6:
        threading.Event().wait(0.001)
    trims.may_end.release()
    assert trims.begun.acquire(timeout=LIMIT_S), "nobody looked again for those who came later"
    first.join(LIMIT_S)
    assert all(thread.is_alive() for thread in later)
    trims.may_end.release()
    for thread in later:
        thread.join(LIMIT_S)
    assert trims.count == 2


def test_where_the_c_library_has_no_such_heaps_nothing_is_done() -> None:
    Heaps(None).give_back()


class World:
    """A memory for two models, and handles of a client that is not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trims = Trims()
        monkeypatch.setattr(memory_module, "heaps", Heaps(self.trims))
        self.memory = Memory(2 * MODEL_BYTES, threading.Condition(threading.RLock()))

    def handle(self, name: str) -> Handle:
        client: Any = SimpleNamespace(_following=SimpleNamespace(waits=False))
        return Handle(client, name, None)

    def load(self, handle: Handle, size_bytes: int = MODEL_BYTES) -> None:
        self.memory.reserve(handle, size_bytes, replace=False)
        self.memory.put(handle, Entry(None, object(), len, VersionCounts(1), size_bytes))
        self.memory.unreserve(size_bytes)


def test_two_who_load_at_once_exceed_the_budget_by_one_model_and_not_by_what_is_not_returned_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    for name in "ab":
        world.load(world.handle(name))
    third, fourth = world.handle("c"), world.handle("d")
    one = started(lambda: world.load(third))
    assert world.trims.begun.acquire(timeout=LIMIT_S), "what was evicted is not returned"
    assert not third.resident, "it came in before the memory of the one that left was returned"
    two = started(lambda: world.load(fourth))
    while world.memory.evictions < 2:
        threading.Event().wait(0.001)
    assert world.memory.occupied_bytes() == 4 * MODEL_BYTES - MODEL_BYTES, "two that left, one that comes"
    assert world.memory._reserved_bytes == MODEL_BYTES, "the second came in on memory that is not the system's yet"
    for _ in range(2):
        world.trims.may_end.release()
    for thread in (one, two):
        thread.join(LIMIT_S)
    assert third.resident and fourth.resident and world.memory.occupied_bytes() == 2 * MODEL_BYTES


def test_what_left_without_eviction_is_returned_too_and_little_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    for _ in range(9):
        world.trims.may_end.release()
    switched, unloaded, small = (world.handle(name) for name in ("switched", "unloaded", "small"))
    world.load(switched)
    world.load(switched)  # another version of it
    world.memory.settle()
    assert world.trims.count == 1
    world.load(unloaded)
    world.memory.drop(unloaded)
    world.memory.clear()
    assert world.trims.count == 2
    world.load(small, 1000)
    world.memory.drop(small)
    assert not world.memory.clear() and world.trims.count == 2
    assert world.memory.occupied_bytes() == MODEL_BYTES


_UNLOADED = """
import os, sys, time
import numpy
from pathlib import Path
from modelsync.client import Client

class Private:
    name, maps, runs_code = "private", False, False
    def matches(self, path, context): return True
    def size_bytes(self, path, context): return sum(context.files.values())
    def load(self, path, context): return numpy.load(path / "m.npy")

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

with Client(sys.argv[1], loaders=[Private()], workers=1) as client:
    def unloaded(*names):
        for name in names:
            client.load(name)
        loaded = resident()
        client.unload(names[0])
        deadline_s = time.monotonic() + 5  # the thread that loaded may be just about to let go of it
        while loaded - resident() < 10 << 20 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return loaded - resident()

    unloaded("first")  # from now on arrays of this size come from a heap
    if sys.argv[2] == "within a heap":
        print(unloaded("first", "second"))
    else:
        print(unloaded("first"))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="a C library without such heaps")
@pytest.mark.parametrize("where", ["within a heap", "at its end"])
def test_an_array_that_was_unloaded_is_the_systems_again(tmp_path: Path, where: str) -> None:
    for name in ("first", "second"):
        current = tmp_path / name / "current"
        current.mkdir(parents=True)
        numpy.save(current / "m.npy", numpy.ones(12 << 17))
    words = [sys.executable, "-c", _UNLOADED, tmp_path, where]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 10 << 20


def _grid(**options: Any) -> Any:
    return numpy.ones((1000, 1000), **options)


def test_an_array_that_only_its_list_holds_is_emptied_and_whole_pages_of_it() -> None:
    shaped = [lambda: _grid(order="F"), lambda: numpy.ones(1_000_000).reshape(1000, 1000)]
    for make in (_grid, *shaped, lambda: numpy.ones(LEAST_BYTES, "u1")):
        held = [make()]
        assert empty_last(held)
        left = numpy.count_nonzero(held[0].ravel("K").view("u1"))
        assert left < 2 * mmap.PAGESIZE, "all but the pages that it shares with its neighbours"


@pytest.mark.parametrize(
    "seen_by",
    [
        lambda array: array,
        lambda array: array[5:],
        memoryview,
        weakref.ref,
        lambda array: {"another": array},
    ],
)
@pytest.mark.parametrize("make", [_grid, lambda: numpy.ones(1_000_000).reshape(1000, 1000)])
def test_an_array_that_anybody_can_still_see_is_left_as_it_is(seen_by: Any, make: Any) -> None:
    held = [make()]
    seen = seen_by(held[0])
    assert not empty_last(held)
    assert (held[0] == 1).all()
    del seen
    assert empty_last(held)


@pytest.mark.parametrize(
    "made",
    [
        lambda: numpy.ones(LEAST_BYTES - 1, "u1"),
        lambda: numpy.frombuffer(bytes(LEAST_BYTES), "u1"),
        lambda: numpy.full(LEAST_BYTES, "x", object),
        lambda: bytearray(LEAST_BYTES),
        lambda: None,
    ],
)
def test_what_is_not_an_array_in_memory_of_its_own_is_left_as_it_is(made: Any) -> None:
    assert not empty_last([made()])


def test_the_owner_of_what_an_array_shows_may_have_other_arrays_that_show_it() -> None:
    owner = numpy.ones(1_000_000)
    shown, other = [owner.reshape(1000, 1000)], owner[:10]
    assert not empty_last(shown)
    del owner
    assert not empty_last(shown)
    del other
    assert empty_last(shown)


def test_bytes_that_are_done_with_are_emptied() -> None:
    data = bytearray(b"x") * LEAST_BYTES
    empty_bytes(data)
    assert data.count(b"x") < 2 * mmap.PAGESIZE
    few = bytearray(b"x") * 1000
    empty_bytes(few)
    assert few.count(b"x") == 1000


def test_a_mapped_array_is_left_as_it_is(tmp_path: Path) -> None:
    mapped = [numpy.memmap(tmp_path / "m", mode="w+", dtype="u1", shape=(LEAST_BYTES,))]
    assert not empty_last(mapped)


def test_a_model_that_its_user_kept_keeps_its_arrays() -> None:
    class Model:
        def __init__(self) -> None:
            self.weights = {"a": _grid()}

    kept = Model()
    entry = Entry(None, kept, len, None, LARGE_BYTES)
    remains = Remains(entry)
    del entry
    remains.free(lambda: None)
    assert (kept.weights["a"] == 1).all()
