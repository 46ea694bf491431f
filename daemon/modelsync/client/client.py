"""The client: which loads are under way, who waits for them, and what happens when ``current`` is switched.

It orders; what is decided stands in ``eviction``, ``backoff`` and ``loaders``, what is counted in ``counting``. One
lock guards all of it and is never taken by a request that finds its model in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

from modelsync.client import backoff, forking, switching
from modelsync.client.counting import BUCKET_S, ModelCounts, series
from modelsync.client.entry import Entry, predicting
from modelsync.client.handle import Handle
from modelsync.client.loaders.contract import Loader, Progress
from modelsync.client.loading import Loaded, Loading, Trusted, Verify, WarmUp
from modelsync.client.memory import Memory
from modelsync.client.offers import Offer, Offers
from modelsync.client.timing import Timer
from modelsync.client.watching import Watching
from modelsync.core.errors import ClientClosed, ModelFileRefused, ModelsyncError

log = logging.getLogger("modelsync.client")
"""The standard library's: structlog, unconfigured, would print into the application's output."""

_ATTEMPTS = 5
"""At a version that vanished while it was loaded: each finds a newer one, so more than two are hardly ever needed."""
_REARM_S = 0.05
"""How often timing is resumed for models with more than 500 requests a second."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A model answers with another version than before."""

    name: str
    before: int
    version: int
    digest: str


class _Listeners(list[Progress]):
    """Those who follow a load. A model in shards keeps them, so they must not lead back to it."""

    def tell(self, done_bytes: int, all_bytes: int) -> None:
        for each in self:
            each(done_bytes, all_bytes)


@dataclass(eq=False, slots=True)
class _Flight:
    """One load that is under way, and all who wait for it."""

    future: Future[Entry] = field(default_factory=Future)
    listeners: _Listeners = field(default_factory=_Listeners)


class Client:
    """Models of one live directory, in the memory of this process.

    Args:
        live_dir: the daemon's ``node.live_dir``.
        budget_bytes: how much the models in memory may take together; None: no limit.
        trust_pickle: models whose publisher may run code in this process (joblib and pickle do, on loading), or "all".
        loaders: the application's own formats; asked before those that are known.
        workers: loads at the same time.
        memory: when there is no room for two versions of a model that is swapped: "overlap" keeps the old one answering
            and exceeds the budget by one model meanwhile; "replace" lets the old one go first, and its callers wait.
        warm_up: called with each loaded model before it answers anybody; an exception refuses the version.
        verify: "sizes" trusts the daemon, which verified every byte; "digests" reads every byte again at each load.
        watch: whether to follow switches of ``current``; without it each model stays as it was loaded.
        poll_s: how often the links are looked at beside the kernel's events.

    Methods that load raise NoSuchModel, NoSuchVersion, PickleNotTrusted, LoaderUnavailable, ModelFileRefused,
    WarmUpFailed, BudgetExceeded and ClientClosed (modelsync.core.errors). A failure is remembered, and repeated to
    whoever asks, until another version is active or a pause of 0.5 s to 60 s is over.
    """

    def __init__(
        self,
        live_dir: str | os.PathLike[str],
        *,
        budget_bytes: int | None = None,
        trust_pickle: Trusted = (),
        loaders: Sequence[Loader] = (),
        workers: int = 4,
        memory: Literal["overlap", "replace"] = "overlap",
        warm_up: WarmUp | None = None,
        verify: Verify = "sizes",
        watch: bool = True,
        poll_s: float = 5.0,
    ) -> None:
        if isinstance(trust_pickle, str) and trust_pickle != "all":
            raise TypeError('trust_pickle is a collection of model names, or "all"')
        self._offers = Offers(live_dir)
        self._loading = Loading(tuple(loaders), _frozen(trust_pickle), warm_up, verify)
        self._replaces = memory == "replace"
        self._workers, self._poll_s = workers, poll_s
        self._lock = threading.Condition(threading.RLock())
        self._memory = Memory(budget_bytes, self._lock)
        self._handles: dict[tuple[str, int | None], Handle] = {}
        self._flights: dict[Handle, _Flight] = {}
        self._counts: dict[str, ModelCounts] = {}
        self._callbacks: list[Callable[[Swap], object]] = []
        self._closed = False
        self._bucket_t_s = _bucket_start()
        self._watches = watch
        self._watches_in_children = False
        self._watching: Watching | None = None
        self._inside = threading.local()
        self._executor = self._new_executor()
        forking.register(self)
        if watch:
            self._start_watching()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what an application calls ----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The models that the live directory offers. Raises NoSuchModel when it is not there."""
        return self._offers.names()

    def versions(self, name: str) -> list[int]:
        """The versions of a model that this host holds, newest first. Raises NoSuchModel, NoSuchVersion."""
        return self._offers.retained(name)

    def load(self, name: str, *, progress: Progress | None = None) -> Handle:
        """A model's active version, followed from now on. Blocks until it is in memory.

        Args:
            progress: called with bytes done and bytes in all, from the thread that loads.
        """
        return self._loaded(self._handle(name, None), progress)

    async def aload(self, name: str, *, progress: Progress | None = None) -> Handle:
        """``load`` without blocking the event loop. Cancelling it lets the load go on for others."""
        handle = self._handle(name, None)
        if not handle.resident:
            await asyncio.wrap_future(_follower(self._begin(handle, progress).future))
        return handle

    def load_version(self, name: str, version: int | str, *, progress: Progress | None = None) -> Handle:
        """A retained version, or the one that an alias means now; the handle never swaps. Blocks."""
        with self._lock:
            known = self._handles.get((name, version)) if type(version) is int else None
        # What does not exist must leave nothing behind: the number may be a stranger's. An alias moves.
        handle = known or self._handle(name, self._offers.version(name, version).version)
        return self._loaded(handle, progress)

    def prefetch(self, name: str) -> None:
        """Begin to load a model and return; a failure is told to whoever asks for it next."""
        handle = self._handle(name, None)
        if not handle.resident:
            self._begin(handle, None)

    def pin(self, name: str) -> None:
        """Keep a model in memory, loading it if need be (not waited for); all its versions that are loaded, too."""
        with self._lock:
            self._memory.pinned.add(name)
        self.prefetch(name)

    def unpin(self, name: str) -> None:
        """Let a model be evicted again."""
        with self._lock:
            self._memory.pinned.discard(name)
        self._memory.settle()

    def unload(self, name: str, version: int | None = None) -> None:
        """Let a model (and a pin of it) go from memory now; calls and leases that have begun keep theirs.

        A handle of it stays valid: its next request loads again. With ``version``, only what ``load_version`` of that
        version loaded.
        """
        with self._lock:
            keys = [key for key in self._handles if key[0] == name and version in (None, key[1])]
            for key in keys:
                self._memory.drop(self._handles[key])
                if key[1] is not None:
                    del self._handles[key]
            if version is None:
                self._memory.pinned.discard(name)

    def on_swap(self, callback: Callable[[Swap], object]) -> Callable[[], None]:
        """Call something after each swap, from a loading thread. What it raises is logged. Returns how to end that."""
        with self._lock:
            self._callbacks.append(callback)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return end

    def stats(self) -> dict[str, Any]:
        """Counts by model and version, the state of each model, and of the whole; JSON throughout."""
        with self._lock:
            return {
                "models": {name: _versions_json(counts) for name, counts in self._counts.items()},
                "state": {name: self._state_json(name, counts) for name, counts in self._counts.items()},
                "client": {
                    "budget_bytes": self._memory.budget_bytes,
                    "occupied_bytes": self._memory.occupied_bytes(),
                    "resident": sum(1 for _ in self._memory.residents()),
                    "loading": len(self._flights),
                    "evictions": self._memory.evictions,
                    "pinned": sorted(self._memory.pinned),
                    "watching": self._watching.mode if self._watching is not None else "off",
                },
            }

    def timeseries(self, name: str, step_s: int = BUCKET_S) -> list[dict[str, Any]]:
        """What happened to a model over the last day, in steps of a multiple of 10 s; empty steps are left out.

        Raises: ValueError: another step.
        """
        if step_s < BUCKET_S or step_s % BUCKET_S:
            raise ValueError(f"step_s is a multiple of {BUCKET_S}")
        with self._lock:
            counts = self._counts.get(name)
            return series(counts.buckets(self._bucket_t_s), step_s) if counts is not None else []

    def close(self) -> None:
        """Let everything go. Calls under way end as they would; later ones raise ClientClosed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        forking.forget(self)
        if self._watching is not None:
            self._watching.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for flight in self._flights.values():
                if not flight.future.done():
                    flight.future.set_exception(ClientClosed())
            self._flights.clear()
            for handle in self._handles.values():
                self._memory.drop(handle)

    # --- forks (`forking` calls these) ------------------------------------------------------------------------------

    def watch_in_children(self) -> None:
        """Follow switches of ``current`` in processes that are forked from this one, though not in this one."""
        self._watches_in_children = True

    def hold_for_fork(self) -> None:
        """Let nothing be half done while the process forks."""
        self._lock.acquire()

    def resume_after_fork(self) -> None:
        self._lock.release()

    def restart_in_child(self) -> None:
        """Start anew what a fork does not copy: locks, threads, the watch. Loads that were under way begin again."""
        self._lock = self._memory.lock = threading.Condition(threading.RLock())
        self._memory.restart_in_child()
        self._flights.clear()
        self._executor = self._new_executor()
        self._watches = self._watches or self._watches_in_children
        if self._watching is not None:
            self._watching.abandon()
        if self._watches:
            self._start_watching()

    # --- loads ------------------------------------------------------------------------------------------------------

    def _handle(self, name: str, wanted: int | None) -> Handle:
        with self._lock:
            self._require_open()
            key = (name, wanted)
            handle = self._handles.get(key)
            if handle is None:
                self._offers.require(name)
                handle = self._handles[key] = Handle(self, name, wanted)
                self._counts.setdefault(name, ModelCounts(name))
        if self._watching is not None and wanted is None:
            self._watching.add(name)
        return handle

    def _require_open(self) -> None:
        if self._closed:
            raise ClientClosed()

    def _loaded(self, handle: Handle, progress: Progress | None) -> Handle:
        if not handle.resident:
            self._begin(handle, progress).future.result()
        return handle

    def _missed(self, handle: Handle) -> Entry:
        """The entry of a model that was not in memory when it was asked for. Counts the request."""
        with self._lock:
            if handle.resident:
                return self._counted(handle._entry, misses=0)
            flight = self._begin(handle, None)
        entry = flight.future.result()
        with self._lock:
            return self._counted(entry, misses=1)

    @staticmethod
    def _counted(entry: Entry, *, misses: int) -> Entry:
        if entry.counts is not None:
            entry.counts.ended_requests += 1
            entry.counts.misses += misses
        return entry

    def _begin(self, handle: Handle, progress: Progress | None) -> _Flight:
        """Begin a load, or join the one that is under way."""
        with self._lock:
            self._require_open()
            flight = self._flights.get(handle)
            if flight is not None:
                self._counts[handle.name].coalesced += 1
            else:
                flight = self._flights[handle] = _Flight()
                if not self._is_inside():
                    self._executor.submit(self._fly, handle, flight)
            if progress is not None:
                flight.listeners.append(progress)
        if self._is_inside() and not flight.future.done():
            self._fly(handle, flight)  # a callback or loader of ours asks: waiting for another worker could be for ever
        return flight

    def _is_inside(self) -> bool:
        return getattr(self._inside, "worker", False)

    def _fly(self, handle: Handle, flight: _Flight) -> None:
        was_inside, self._inside.worker = self._is_inside(), True
        try:
            entry, swap = self._load(handle, flight)
        except BaseException as error:
            self._land(handle, flight)
            flight.future.set_exception(error)
        else:
            self._land(handle, flight)
            flight.future.set_result(entry)
            if swap is not None:
                self._call_back(swap)
        finally:
            self._look(handle)  # it may have been switched again meanwhile
            self._inside.worker = was_inside

    def _land(self, handle: Handle, flight: _Flight) -> None:
        with self._lock:
            if self._flights.get(handle) is flight:
                del self._flights[handle]
        self._memory.settle()

    def _load(self, handle: Handle, flight: _Flight) -> tuple[Entry, Swap | None]:
        """Load what the handle should be now. Raises ModelsyncError, which is remembered."""
        identity = self._offers.identity(handle.name) if handle.wanted is None else str(handle.wanted)
        failure = handle._failure
        if failure is not None and not backoff.may_try(failure, identity, time.monotonic()):
            raise replace(failure.error)
        try:
            with switching.eager():
                done = self._load_once_there(handle, flight)
        except ModelsyncError as error:
            handle._failure = backoff.failed(failure, identity, error, time.monotonic())
            self._counts[handle.name].failures += 1
            log.warning("version.not_loaded model=%s, the one before is served on: %s", handle.name, error)
            raise
        handle._failure, handle._identity = None, identity
        return done

    def _load_once_there(self, handle: Handle, flight: _Flight) -> tuple[Entry, Swap | None]:
        for _ in range(_ATTEMPTS):
            try:
                started_s = time.perf_counter()
                offer = self._find(handle)
                return self._load_offer(handle, flight, offer, time.perf_counter() - started_s)
            except FileNotFoundError as error:
                vanished = error
        reason = f"its files were removed {_ATTEMPTS} times while it was loaded"
        raise ModelFileRefused(path=str(vanished.filename), loader="a version", reason=reason) from vanished

    def _find(self, handle: Handle) -> Offer:
        if handle.wanted is None:
            return self._offers.current(handle.name)
        return self._offers.version(handle.name, handle.wanted)

    def _load_offer(self, handle: Handle, flight: _Flight, offer: Offer, found_s: float) -> tuple[Entry, Swap | None]:
        same = _same(handle._entry, offer)
        if same is not None:
            return same, None
        reserved: list[int] = []

        def reserve(needed_bytes: int) -> None:
            self._memory.reserve(handle, needed_bytes, replace=self._replaces)
            reserved.append(needed_bytes)

        try:
            loaded = self._loading.run(offer, found_s, flight.listeners.tell, reserve)
            return self._put(handle, loaded)
        finally:
            self._memory.unreserve(sum(reserved))

    def _put(self, handle: Handle, loaded: Loaded) -> tuple[Entry, Swap | None]:
        """Let a loaded version answer."""
        offer, before = loaded.offer, handle._offer
        with self._lock:
            counts = self._counts[handle.name].of(offer.version)
            counts.digest = offer.digest
            entry = Entry(offer, loaded.model, predicting(handle.name, loaded.model), counts, loaded.size_bytes)
            entry.timer = Timer(entry, handle._path)
            swap = None
            if before is not None and (before.version, before.digest) != (offer.version, offer.digest):
                swap = Swap(handle.name, before.version, offer.version, offer.digest)
                self._counts[handle.name].swaps += 1
                self._counts[handle.name].of(before.version).swapped_out += 1
            self._memory.put(handle, entry)
            handle._offer = offer
            counts.loaded(loaded.times, loaded.loader.name, loaded.loader.maps, loaded.size_bytes)
        return entry, swap

    def _call_back(self, swap: Swap) -> None:
        for callback in list(self._callbacks):
            try:
                callback(swap)
            except Exception:
                log.exception("callback.failed model=%s version=%d", swap.name, swap.version)

    # --- swaps and time ---------------------------------------------------------------------------------------------

    def _changed(self, name: str) -> None:
        handle = self._handles.get((name, None))
        if handle is not None:
            self._look(handle)

    def _look(self, handle: Handle) -> None:
        """Begin to load what ``current`` means, if that is not what is in memory and anybody needs it there."""
        if handle.wanted is not None or not self._watches or self._closed:
            return
        resident = handle.resident  # read once: it may be unloaded from one line to the next
        if not (resident or handle.name in self._memory.pinned) or handle in self._flights:
            return  # its next request, or the end of the load, looks again
        identity = self._offers.identity(handle.name)
        if not identity or (identity == handle._identity and resident):
            return
        if backoff.may_try(handle._failure, identity, time.monotonic()):
            with contextlib.suppress(ClientClosed, RuntimeError):  # closed meanwhile
                self._start_swap(handle)

    def _start_swap(self, handle: Handle) -> None:
        with self._lock:
            self._require_open()
            if handle not in self._flights:
                flight = self._flights[handle] = _Flight()
                self._executor.submit(self._fly, handle, flight)

    def _tick(self) -> float:
        """Close the bucket when its time is over and resume timing; returns when to be called again, in seconds."""
        now_s = time.time()
        if now_s >= self._bucket_t_s + BUCKET_S:
            with self._lock:
                for counts in self._counts.values():
                    counts.close_bucket(self._bucket_t_s)
                self._bucket_t_s = _bucket_start()
        paused = [timer for timer in self._memory.timers() if timer.paused]
        for timer in paused:
            timer.arm()
        until_bucket_s = self._bucket_t_s + BUCKET_S - now_s
        return min(until_bucket_s, _REARM_S) if paused else until_bucket_s

    def _start_watching(self) -> None:
        watching = self._watching = Watching(self._offers.live_dir, self._changed, self._tick, self._poll_s)
        for name, wanted in self._handles:
            if wanted is None:
                watching.add(name)
        watching.start()

    def _new_executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, thread_name_prefix="modelsync-load")

    def _state_json(self, name: str, counts: ModelCounts) -> dict[str, Any]:
        handle = self._handles.get((name, None))
        offer = handle._offer if handle is not None else None
        failure = handle._failure if handle is not None else None
        return {
            "version": offer.version if offer is not None else None,
            "resident": handle is not None and handle.resident,
            "coalesced": counts.coalesced,
            "failures": counts.failures,
            "swaps": counts.swaps,
            "error": str(failure.error) if failure is not None else None,
        }


def _same(entry: Entry, offer: Offer) -> Entry | None:
    """The entry, if it is of that very version."""
    # A function of its own, so that no variable holds the old version while the new one is loaded.
    return entry if entry.offer is not None and offer.digest and entry.offer.digest == offer.digest else None


def _frozen(trusted: Trusted) -> Collection[str] | Literal["all"]:
    return "all" if trusted == "all" else frozenset(trusted)


def _bucket_start() -> int:
    return int(time.time()) // BUCKET_S * BUCKET_S


def _versions_json(counts: ModelCounts) -> dict[str, Any]:
    return {str(number): each.to_json() for number, each in sorted(counts.versions.items())}


def _follower(future: Future[Entry]) -> Future[None]:
    """A future that ends with another one; cancelling it does not cancel that."""
    follower: Future[None] = Future()

    def follow(ended: Future[Entry]) -> None:
        if not follower.set_running_or_notify_cancel():
            return
        error = ended.exception()
        if error is not None:
            follower.set_exception(error)
        else:
            follower.set_result(None)

    future.add_done_callback(follow)
    return follower
