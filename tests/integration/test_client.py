"""The client over real directories as a daemon lays them out: loads, swaps, leases, failures, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy
import pytest
from sklearn.linear_model import LinearRegression
from tests.livedir import LiveDir

import modelsync
from modelsync.client import Client, LoadContext, Swap
from modelsync.core.errors import (
    BudgetExceeded,
    ClientClosed,
    ModelFileRefused,
    NoSuchModel,
    NoSuchVersion,
    NotPredicting,
    PickleNotTrusted,
    WarmUpFailed,
)

ROWS = numpy.arange(10.0).reshape(-1, 1)


class Times:
    """A model whose answers tell its version: a factor."""

    def __init__(self, factor: float, padding: int = 0) -> None:
        self.factor, self.padding = factor, bytearray(padding)

    def predict(self, X: Any) -> Any:
        return X * self.factor


class TimesLoader:
    """An application's own format: a number as text. Counts its loads, and can be held up, or fail."""

    name, maps, runs_code = "times", False, False

    def __init__(self) -> None:
        self.loads = 0
        self.gate: threading.Event | None = None
        self.made: list[weakref.ref[Times]] = []
        self.size = 1000
        self.running = 0
        self.most_running = 0

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(".times") is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return self.size

    def load(self, path: Path, context: LoadContext) -> Times:
        self.loads += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                assert self.gate.wait(10)
            model = Times(float((path / (context.only_file(".times") or "")).read_text()))
        finally:
            self.running -= 1
        self.made.append(weakref.ref(model))
        return model


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = LiveDir(root)
        self.loader = TimesLoader()
        self.clients: list[Client] = []

    def publish(self, factor: object, name: str = "m", **options: Any) -> Any:
        file = self.root / f"{name}.times"
        file.write_text(str(factor))
        return self.directory.publish(name, file, **options)

    def client(self, **options: Any) -> Client:
        client = Client(self.directory.live, loaders=[self.loader], **options)
        self.clients.append(client)
        return client


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for client in world.clients:
        client.close()


def until(true: Callable[[], object], what: str, limit_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline_s, f"no {what} within {limit_s} s"
        time.sleep(0.002)


# --- loading and swapping ----------------------------------------------------------------------------------------


def test_a_handle_answers_and_follows_current(world: World) -> None:
    world.publish(2, metadata={"class": "Times"})
    handle = world.client().load("m")
    kept = handle.predict
    assert (handle.predict(3), handle.version, handle.metadata["class"]) == (6, 1, "Times")
    digest = world.publish(5)
    until(lambda: handle.version == 2, "swap")
    assert (handle.predict(3), kept(X=3), handle.digest) == (15, 15, str(digest))


def test_a_swap_is_heard_within_moments_by_inotify_and_also_without_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1)
    heard = world.client(poll_s=3600)
    handle = heard.load("m")
    until(lambda: heard.stats()["client"]["watching"] == "inotify", "watch")
    world.publish(2)
    until(lambda: handle.version == 2, "swap by inotify")
    monkeypatch.setattr("modelsync.client.watching.inotify_init", lambda: -1)
    polled = world.client(poll_s=3600)
    other = polled.load("m")
    assert polled.stats()["client"]["watching"] == "poll"
    world.publish(3)
    until(lambda: other.version == 3, "swap by polling")


def test_the_watch_survives_that_a_models_directory_is_made_anew(world: World) -> None:
    digest = world.publish(1)
    handle = world.client(poll_s=0.2).load("m")
    (world.directory.live / "m" / "current").unlink()
    (world.directory.live / "m").rmdir()
    time.sleep(0.5)
    assert handle.predict(7) == 7  # what was loaded answers on
    world.directory.activate("m", digest)
    world.publish(3)
    until(lambda: handle.version == 2, "swap")


def test_a_lease_is_one_version_and_the_old_one_is_released_when_the_last_ends(world: World) -> None:
    world.publish(2)
    client = world.client()
    handle = client.load("m")
    with handle.lease() as first, handle.lease() as second:
        world.publish(5)
        until(lambda: handle.version == 2, "swap")
        assert (first.predict(1), second.predict(1), handle.predict(1)) == (2, 2, 5)
        assert client.stats()["client"]["occupied_bytes"] == 2 * world.loader.size
        del first, second
    gc.disable()  # it is the last reference that releases, not the collector
    try:
        assert [made() is None for made in world.loader.made] == [True, False]
    finally:
        gc.enable()
    assert client.stats()["client"]["occupied_bytes"] == world.loader.size


def test_a_call_under_way_ends_with_the_version_that_it_began_with(world: World) -> None:
    world.publish(2)
    handle = world.client().load("m")
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __rmul__(self, other: object) -> object:
            return NotImplemented

        def __mul__(self, factor: float) -> float:
            begun.set()
            assert go_on.wait(10)
            return factor

    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.append(handle.predict(Slow())))
    thread.start()
    assert begun.wait(10)
    world.publish(5)
    until(lambda: handle.version == 2, "swap")
    assert world.loader.made[0]() is not None
    go_on.set()
    thread.join()
    assert answers == [2]
    assert world.loader.made[0]() is None


def test_any_retained_version_by_number_or_alias_never_swaps(world: World) -> None:
    world.publish(2)
    world.publish(3)
    client = world.client()
    old = client.load_version("m", 1)
    assert (old.predict(1), old.version, client.versions("m")) == (2, 1, [2, 1])
    current = client.load("m")
    world.publish(4)
    until(lambda: current.version == 3, "swap")
    assert (old.predict(1), old.version) == (2, 1)
    for unknown in (9, "stable", "../m", -1, True):
        with pytest.raises(NoSuchVersion):
            client.load_version("m", unknown)


def test_a_version_whose_bytes_are_gone_is_said_to_be_so(world: World) -> None:
    first = world.publish(2)
    world.publish(3)
    world.directory.remove("m", first)
    with pytest.raises(NoSuchVersion, match="not held on this host, which has 2"):
        world.client().load_version("m", 1)


def test_load_version_of_the_package_closes_what_it_opened(world: World) -> None:
    file = world.root / "m.joblib"
    joblib.dump(LinearRegression().fit(ROWS, ROWS[:, 0] * 3), file)
    world.directory.publish("m", file)
    threads = threading.active_count()
    model: Any = modelsync.load_version("m", 1, world.directory.live, trust_pickle=["m"])
    assert model.predict([[2.0]]) == pytest.approx([6.0])
    assert threading.active_count() == threads


async def test_aload_does_not_block_the_loop_and_outlives_a_cancelled_waiter(world: World) -> None:
    world.publish(2)
    world.loader.gate = threading.Event()
    client = world.client()
    waiting = [asyncio.create_task(client.aload("m")) for _ in range(20)]
    for _ in range(10):
        await asyncio.sleep(0.005)
    waiting[0].cancel()
    await asyncio.sleep(0.01)
    assert waiting[0].cancelled()
    world.loader.gate.set()
    handles = await asyncio.gather(*waiting[1:])
    assert {handle.predict(1) for handle in handles} == {2}
    assert world.loader.loads == 1


def test_a_plain_directory_works_without_version_or_promises(world: World) -> None:
    current = world.directory.live / "plain" / "current"
    current.mkdir(parents=True)
    (current / "x.times").write_text("4")
    handle = world.client(poll_s=0.1).load("plain")
    assert (handle.predict(1), handle.version, handle.digest, dict(handle.metadata)) == (4, 0, "", {})
    with pytest.raises(NoSuchVersion, match="plain directory that no daemon manages"):
        world.clients[0].load_version("plain", 3)
    (current.parent / "next").mkdir()
    (current.parent / "next" / "x.times").write_text("6")
    current.rename(current.parent / "last")
    (current.parent / "next").rename(current)
    until(lambda: handle.predict(1) == 6, "the new directory")


def test_names_and_what_is_not_there(world: World) -> None:
    world.publish(1, "b")
    world.publish(1, "a")
    (world.directory.live / "empty").mkdir()
    client = world.client()
    assert client.names() == ["a", "b"]
    for unknown in ("c", "empty", "../a", "a/../b", "", "x" * 300, "a\0b"):
        with pytest.raises(NoSuchModel):
            client.load(unknown)
    with pytest.raises(NoSuchModel):
        Client(world.root / "nowhere", watch=False).names()


# --- one load for many, and failures --------------------------------------------------------------------------------


def test_two_hundred_cold_requests_are_one_load(world: World) -> None:
    world.publish(2)
    client = world.client()
    handle = client.load("m")
    client.unload("m")
    world.loader.loads, world.loader.gate = 0, threading.Event()
    answers: list[float] = []
    threads = [threading.Thread(target=lambda: answers.append(handle.predict(1))) for _ in range(200)]
    for thread in threads:
        thread.start()
    until(lambda: client.stats()["state"]["m"]["coalesced"] == 199, "all of them waiting", 60)
    world.loader.gate.set()
    for thread in threads:
        thread.join()
    assert (world.loader.loads, set(answers), len(answers)) == (1, {2}, 200)
    counts = client.stats()["models"]["m"]["1"]
    assert (counts["requests"], counts["misses"], counts["hits"]) == (200, 200, 0)


def test_a_failure_is_remembered_and_the_old_version_answers_on(world: World) -> None:
    world.publish(2)
    client = world.client(poll_s=0.05)
    handle = client.load("m")
    world.publish("no number")
    until(lambda: client.stats()["state"]["m"]["error"], "failure")
    tries = world.loader.loads
    time.sleep(0.3)
    assert handle.predict(1) == 2
    assert world.loader.loads == tries  # ten looks later: the first pause is half a second
    assert "ValueError" in client.stats()["state"]["m"]["error"]
    world.publish(7)
    until(lambda: handle.predict(1) == 7, "recovery")
    assert client.stats()["state"]["m"]["error"] is None


def test_a_cold_failure_is_told_to_everyone_without_another_try(world: World) -> None:
    world.publish("no number")
    client = world.client()
    for _ in range(5):
        with pytest.raises(ModelFileRefused, match=r"times: ValueError.*no number"):
            client.load("m")
    assert world.loader.loads == 1


def test_a_version_that_vanishes_while_it_is_loaded_is_looked_for_again(world: World) -> None:
    first = world.publish(2)
    inner, world.loader.load = world.loader.load, None  # type: ignore[assignment]

    def vanishing(path: Path, context: LoadContext) -> Times:
        if context.version == 1:
            world.publish(3)
            world.directory.remove("m", first)
        return inner(path, context)

    world.loader.load = vanishing  # type: ignore[method-assign]
    assert world.client().load("m").predict(1) == 3


def test_warm_up_comes_before_anybody_and_can_refuse(world: World) -> None:
    seen: list[tuple[int, float]] = []

    def warm_up(model: Times, context: LoadContext) -> None:
        seen.append((context.version, handles[0].predict(1) if handles else 0.0))
        if model.factor < 0:
            raise ValueError("answers are negative")

    handles: list[Any] = []
    world.publish(2)
    client = world.client(warm_up=warm_up)
    handles.append(client.load("m"))
    world.publish(3)
    until(lambda: handles[0].version == 2, "swap")
    assert seen == [(1, 0.0), (2, 2)]  # while the second was warmed up, the first answered
    world.publish(-1)
    until(lambda: client.stats()["state"]["m"]["error"], "refusal")
    assert handles[0].predict(1) == 3
    with pytest.raises(WarmUpFailed, match="answers are negative"):
        client.load_version("m", 3)


def test_callbacks_hear_of_swaps_and_their_exceptions_are_contained(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Swap] = []
    client = world.client()

    def callback(swap: Swap) -> None:
        heard.append(swap)
        assert client.load("other").predict(1) == 9  # a callback may use the client
        raise RuntimeError("the application's own")

    world.publish(9, "other")
    world.publish(2)
    end = client.on_swap(callback)
    handle = client.load("m")
    digest = world.publish(3)
    until(lambda: heard, "callback")
    assert heard == [Swap("m", 1, 2, str(digest))]
    until(lambda: "the application's own" in caplog.text, "log")
    end()
    world.publish(4)
    until(lambda: handle.version == 3, "swap")
    assert len(heard) == 1


def test_callbacks_that_load_do_not_starve_a_single_worker(world: World) -> None:
    for name in ("a", "b", "c"):
        world.publish(1, name)
    client = world.client(workers=1)
    done = threading.Event()

    def callback(swap: Swap) -> None:
        assert client.load("b").predict(1) == client.load("c").predict(1)
        done.set()

    client.on_swap(callback)
    client.load("a")
    world.publish(2, "a")
    assert done.wait(10)


def test_a_callback_that_asks_for_what_another_thread_is_loading_waits_for_that_load(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.publish(1, "a"), world.publish(7, "b")
    client = world.client(workers=2)
    client.load("a")
    loading, answers, gate = threading.Event(), [], threading.Event()
    inner = world.loader.load

    def slow(path: Path, context: LoadContext) -> Times:
        if context.name == "b":
            loading.set()
            assert gate.wait(10)
        return inner(path, context)

    def callback(swap: Swap) -> None:
        threading.Timer(0.2, gate.set).start()
        answers.append(client.load("b").predict(1))

    world.loader.load = slow  # type: ignore[method-assign]
    client.prefetch("b")
    assert loading.wait(10)
    client.on_swap(callback)
    world.publish(2, "a")
    until(lambda: answers, "callback")
    assert (answers, world.loader.loads) == ([7], 3)
    assert "callback.failed" not in caplog.text


# --- trust ---------------------------------------------------------------------------------------------------------


class Harm:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("suffix", ["joblib", "pkl"])
def test_a_pickle_that_would_run_a_command_is_not_run_unless_trusted(world: World, suffix: str) -> None:
    file, marker = world.root / f"evil.{suffix}", world.root / "harm"
    joblib.dump(Harm(marker), file)
    world.directory.publish("evil", file)
    for trusted in ((), ["other"]):
        with pytest.raises(PickleNotTrusted, match=r"trust_pickle=\['evil'\]"):
            world.client(trust_pickle=trusted).load("evil")
    assert not marker.exists()
    world.client(trust_pickle="all").load("evil")
    assert marker.exists()  # the test's file does what it says


def test_trust_is_a_collection_of_names_never_a_name(world: World) -> None:
    with pytest.raises(TypeError, match="collection of model names"):
        world.client(trust_pickle="m")


@pytest.mark.parametrize(
    "options",
    [
        {"verify": "digest"},
        {"memory": "replce"},
        {"budget_bytes": "2G"},
        {"budget_bytes": 2e9},
        {"budget_bytes": 0},
        {"budget_bytes": -1},
        {"workers": 0},
        {"workers": "4"},
    ],
)
def test_a_misspelt_option_never_means_its_default(world: World, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)) + " is .* would be right"):
        world.client(**options)


def test_a_live_directory_that_is_not_there_is_told_from_a_model_that_is_not(world: World) -> None:
    with pytest.raises(NoSuchModel, match="has no `current`"):
        world.client().load("m")
    with pytest.raises(NoSuchModel, match=r"live_dir=/nowhere.*no such directory"):
        Client("/nowhere", watch=False).load("m")


def test_the_log_says_whether_anybody_answers_after_a_failed_load(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    client = world.client(poll_s=0.05)
    world.publish("no number")
    with pytest.raises(ModelFileRefused):
        client.load("m")
    assert "requests for it fail" in caplog.text and "served on" not in caplog.text
    world.publish(2)
    until(lambda: client.load("m").predict(1) == 2, "recovery")
    world.publish("no number")
    until(lambda: "the one before is served on" in caplog.text, "log")


def test_pinning_what_is_not_there_pins_nothing(world: World) -> None:
    client = world.client()
    with pytest.raises(NoSuchModel):
        client.pin("m")
    assert client.stats()["client"]["pinned"] == []


# --- memory --------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_leaves_and_comes_back_on_use(world: World) -> None:
    for name in "abc":
        world.publish(ord(name), name)
    client = world.client(budget_bytes=2 * world.loader.size)
    a, b = client.load("a"), client.load("b")
    a.predict(1)
    c = client.load("c")
    assert (a.resident, b.resident, c.resident) == (True, False, True)
    assert world.loader.made[1]() is None
    assert b.predict(1) == ord("b")
    counts = client.stats()["models"]["b"]["1"]
    assert (counts["evictions"], counts["misses"], counts["loads"]) == (1, 1, 2)
    assert counts["age_at_eviction_s"]["last"] > 0


def test_what_is_leased_pinned_or_in_a_call_is_never_evicted(world: World) -> None:
    for name in "abcd":
        world.publish(ord(name), name)
    client = world.client(budget_bytes=2 * world.loader.size)
    a = client.load("a")
    client.pin("b")
    b = client.load("b")
    with a.lease() as leased:
        c = client.load("c")  # nobody may leave: one model above the budget
        assert a.resident and b.resident and leased.predict(1) == ord("a")
        assert client.stats()["client"]["occupied_bytes"] <= 3 * world.loader.size
    d = client.load("d")
    assert b.resident and d.resident and not (a.resident and c.resident)
    assert client.stats()["client"]["occupied_bytes"] <= 2 * world.loader.size
    client.unpin("b")
    client.load("a"), client.load("c")
    assert not world.loader.made[1]()


def test_a_model_above_the_budget_is_refused_and_so_is_one_that_finds_no_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1, "a"), world.publish(2, "b"), world.publish(3, "c")
    client = world.client(budget_bytes=world.loader.size - 1)
    with pytest.raises(BudgetExceeded, match="budget_bytes is 999"):
        client.load("a")
    monkeypatch.setattr("modelsync.client.memory.PATIENCE_S", 0.1)
    client = world.client(budget_bytes=world.loader.size)
    full = pytest.raises(BudgetExceeded, match="leased, pinned or loading")
    with client.load("a").lease(), client.load("b").lease(), full:
        client.load("c")
    assert client.load("a").predict(1) == 1


def test_what_a_call_holds_is_not_evicted_and_what_it_held_is_counted_until_it_ends(world: World) -> None:
    for name in "abcd":
        world.publish(ord(name), name)
    client = world.client(budget_bytes=2 * world.loader.size)
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __mul__(self, factor: float) -> float:
            begun.set()
            assert go_on.wait(10)
            return factor

    a, answers = client.load("a"), []
    thread = threading.Thread(target=lambda: answers.append(a.predict(Slow())))
    thread.start()
    assert begun.wait(10)
    for name in "bcdbcd":  # by recency alone, `a` would have to go each time
        client.load(name)
        assert a.resident
    counts = client.stats()["models"]["a"]["1"]
    assert (counts["requests"], counts["hits"], counts["evictions"], counts["loads"]) == (1, 1, 0, 1)
    world.publish(5, "a")
    until(lambda: a.version == 2, "swap")
    assert client.stats()["client"]["occupied_bytes"] > world.loader.size  # two versions of it
    go_on.set()
    thread.join()
    assert answers == [ord("a")]
    client.load("b"), client.load("c")
    assert not a.resident


@pytest.mark.parametrize("memory", ["overlap", "replace"])
def test_when_memory_is_short_a_swap_overlaps_or_replaces(world: World, memory: str) -> None:
    world.publish(2)
    client = world.client(budget_bytes=world.loader.size, memory=memory)
    handle = client.load("m")
    alive_in_load: list[bool] = []
    inner = world.loader.load

    def looking(path: Path, context: LoadContext) -> Times:
        alive_in_load.append(world.loader.made[0]() is not None)
        return inner(path, context)

    world.loader.load = looking  # type: ignore[method-assign]
    world.publish(3)
    until(lambda: handle.version == 2, "swap")
    assert alive_in_load == [memory == "overlap"]
    assert handle.predict(1) == 3
    assert client.stats()["client"]["occupied_bytes"] == world.loader.size


def test_unload_frees_and_the_handle_stays_valid(world: World) -> None:
    world.publish(2)
    client = world.client()
    handle = client.load("m")
    client.unload("m")
    until(lambda: world.loader.made[0]() is None, "release")  # the loading thread may be just about to let go of it
    assert not handle.resident and handle.predict(1) == 2


def test_prefetch_returns_at_once(world: World) -> None:
    world.publish(2)
    world.loader.gate = threading.Event()
    client = world.client()
    client.prefetch("m")
    world.loader.gate.set()
    assert client.load("m").predict(1) == 2
    assert world.loader.loads == 1


def test_a_closed_client_says_so(world: World) -> None:
    world.publish(2)
    client = world.client()
    handle = client.load("m")
    client.close()
    client.close()
    for call in (lambda: handle.predict(1), lambda: client.load("m")):
        with pytest.raises(ClientClosed):
            call()


def test_a_model_without_predict_is_data(world: World) -> None:
    file = world.root / "x.npy"
    numpy.save(file, ROWS)
    world.directory.publish("x", file)
    handle = world.client().load("x")
    with pytest.raises(NotPredicting):
        handle.predict(1)
    with handle.lease() as array:
        assert (array == ROWS).all() and not array.flags.writeable
