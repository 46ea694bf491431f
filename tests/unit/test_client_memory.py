"""What left memory counts until the system has it back: beside a budget, what the C library keeps is memory as well."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelsync.client import memory as memory_module
from modelsync.client.counting import VersionCounts
from modelsync.client.entry import Entry
from modelsync.client.giving_back import Heaps
from modelsync.client.handle import Handle
from modelsync.client.memory import Memory

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
    client.load("first"), client.unload("first")  # from now on arrays of this size come from a heap
    time.sleep(0.1)
    client.load("first"), client.load("second")
    loaded = resident()
    client.unload("first")
    deadline_s = time.monotonic() + 5  # the thread that loaded may be just about to let go of it
    while loaded - resident() < 10 << 20 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    print(loaded - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="a C library without such heaps")
def test_an_array_that_was_unloaded_is_the_systems_again(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    for name in ("first", "second"):
        current = tmp_path / name / "current"
        current.mkdir(parents=True)
        numpy.save(current / "m.npy", numpy.ones(12 << 17))
    found = subprocess.run([sys.executable, "-c", _UNLOADED, tmp_path], capture_output=True, text=True, check=True)
    assert int(found.stdout) > 10 << 20
