"""The client: models of one live directory in this process, found by name, shared by all who ask.

It puts the parts together and is what an application calls. What is decided stands in ``eviction``, ``backoff`` and
``loaders``; who waits for which load in ``flights``; what a load does in ``renewal``; what follows a switch of
``current`` in ``following``; what is counted in ``ledger``. One lock guards all of it, and is never taken by a request
that finds its model in memory.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from numbers import Integral
from types import TracebackType
from typing import Any, Literal

from modelsync.client import forking
from modelsync.client.buckets import BUCKET_S
from modelsync.client.entry import Entry
from modelsync.client.flights import Flights
from modelsync.client.following import Following
from modelsync.client.handle import Handle
from modelsync.client.ledger import Ledger
from modelsync.client.loaders.contract import Loader, Progress
from modelsync.client.loading import Loading, Trusted, Verify, WarmUp
from modelsync.client.memory import Memory
from modelsync.client.offers import Offers
from modelsync.client.remote import Reaching
from modelsync.client.renewal import Renewal
from modelsync.client.swaps import Listeners, Swap


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
        daemon_url: a daemon, mostly this host's (``http://127.0.0.1:8461``): models that are not on this host are
            fetched through it, shards when they are asked for. None: there are none but those of ``live_dir``.

    An option of another kind or value raises TypeError or ValueError at once.
    Methods that load raise NoSuchModel, NoSuchVersion, PickleNotTrusted, LoaderUnavailable, ModelFileRefused,
    WarmUpFailed, BudgetExceeded and ClientClosed (modelsync.core.errors); with ``daemon_url`` also
    RemoteFault and IntegrityFault. A failure is remembered, and repeated to
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
        daemon_url: str | None = None,
    ) -> None:
        _require_sound(budget_bytes, trust_pickle, workers, memory, verify)
        self._offers = Offers(live_dir) if daemon_url is None else Reaching(live_dir, daemon_url, poll_s)
        self._lock = threading.Condition(threading.RLock())
        self._memory = Memory(budget_bytes, self._lock)
        self._ledger = Ledger(self._lock, time.time())
        self._handles: dict[tuple[str, int | None], Handle] = {}
        self._listeners = Listeners()
        loading = Loading(tuple(loaders), _frozen(trust_pickle), warm_up, verify)
        renewal = Renewal(self._lock, self._offers, loading, self._memory, self._ledger, memory == "replace")
        self._flights = Flights(self._lock, workers, self._ledger, renewal.run, self._landed)
        self._following = Following(
            self._lock, self._offers, self._handles, self._memory, self._flights, renewal, self._ledger, poll_s
        )
        forking.register(self)
        if watch:
            self._following.start()

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
            await asyncio.wrap_future(self._flights.begin(handle, progress).follower())
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
            self._flights.begin(handle, asked=False)

    def pin(self, name: str) -> None:
        """Keep a model in memory, loading it if need be (not waited for); all its versions that are loaded, too."""
        handle = self._handle(name, None)  # raises where there is none: nothing is pinned then
        with self._lock:
            self._memory.pinned.add(name)
        if not handle.resident:
            self._flights.begin(handle, asked=False)

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
        self._memory.clear()

    def on_swap(self, callback: Callable[[Swap], object]) -> Callable[[], None]:
        """Call something after each swap, from a loading thread. What it raises is logged. Returns how to end that."""
        return self._listeners.add(callback)

    def stats(self) -> dict[str, Any]:
        """Counts by model and version, the state of each model, and of the whole; JSON throughout."""
        with self._lock:
            return {
                "models": self._ledger.to_json(),
                "state": {name: self._state_json(name) for name in self._ledger.names()},
                "client": {
                    "budget_bytes": self._memory.budget_bytes,
                    "occupied_bytes": self._memory.occupied_bytes(),
                    "resident": sum(1 for _ in self._memory.residents()),
                    "loading": len(self._flights),
                    "evictions": self._memory.evictions,
                    "pinned": sorted(self._memory.pinned),
                    "watching": self._following.mode,
                },
            }

    def timeseries(self, name: str, step_s: int = BUCKET_S) -> list[dict[str, Any]]:
        """What happened to a model over the last day, in steps of a multiple of 10 s; empty steps are left out.

        Raises: ValueError: another step.
        """
        return self._ledger.series(name, step_s)

    def close(self) -> None:
        """Let everything go. Calls under way end as they would; later ones raise ClientClosed."""
        with self._lock:
            if self._flights.closed:
                return
            self._flights.closed = True
        forking.forget(self)
        self._following.close()
        self._flights.close()
        with self._lock:
            for handle in self._handles.values():
                self._memory.drop(handle)
        self._memory.clear()

    # --- forks (`forking` calls these) ------------------------------------------------------------------------------

    def watch_when_asked(self) -> None:
        """Follow switches of ``current`` in processes forked from this one; in this one from its first request on."""
        self._following.wait()

    def hold_for_fork(self) -> None:
        """Let nothing be half done while the process forks."""
        self._lock.acquire()

    def resume_after_fork(self) -> None:
        """In the parent and in the child, whose one thread is the one that holds the lock."""
        self._lock.release()

    def restart_in_child(self) -> None:
        """Start anew what a fork does not copy: threads, the watch. Loads that were under way begin again."""
        self._memory.restart_in_child()
        self._flights.restart_in_child()
        self._following.restart_in_child()

    # --- loads ------------------------------------------------------------------------------------------------------

    def _handle(self, name: str, wanted: int | None) -> Handle:
        with self._lock:
            self._flights.require_open()
            handle = self._handles.get((name, wanted))
            if handle is None:
                self._offers.require(name)
                self._ledger.of(name)
                handle = self._handles[name, wanted] = Handle(self, name, wanted)
        self._following.add(handle)
        return handle

    def _loaded(self, handle: Handle, progress: Progress | None) -> Handle:
        if not handle.resident:
            self._flights.begin(handle, progress).future.result()
        return handle

    def _missed(self, handle: Handle) -> Entry:
        """The entry of a model that was not in memory when it was asked for. Counts the request."""
        self._following.asked()
        with self._lock:
            if handle.resident:
                return self._counted(handle._entry, misses=0)
            flight = self._flights.begin(handle)
        entry = flight.future.result()
        with self._lock:
            return self._counted(entry, misses=1)

    @staticmethod
    def _counted(entry: Entry, *, misses: int) -> Entry:
        if entry.counts is not None:
            entry.counts.ended_requests += 1
            entry.counts.misses += misses
        return entry

    def _landed(self, handle: Handle, swap: Swap | None) -> None:
        self._memory.settle()
        if swap is not None:
            self._listeners.tell(swap)
        self._following.look(handle)  # it may have been switched again meanwhile

    def _state_json(self, name: str) -> dict[str, Any]:
        counts, handle = self._ledger.of(name), self._handles.get((name, None))
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


def _require_sound(budget_bytes: object, trusted: object, workers: object, memory: object, verify: object) -> None:
    """A misspelt option must not mean its default: ``verify="digest"`` would verify nothing."""
    if isinstance(trusted, str) and trusted != "all":
        raise TypeError('trust_pickle is a collection of model names, or "all"')
    if budget_bytes is not None and not (isinstance(budget_bytes, Integral) and int(budget_bytes) > 0):
        raise ValueError(f"budget_bytes is {budget_bytes!r}; a number of bytes above 0, or None, would be right")
    if not (isinstance(workers, Integral) and int(workers) > 0):
        raise ValueError(f"workers is {workers!r}; a number above 0 would be right")
    for name, value, known in (
        ("memory", memory, ("overlap", "replace")),
        ("verify", verify, ("sizes", "digests")),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; {' or '.join(map(repr, known))} would be right")


def _frozen(trusted: Trusted) -> Collection[str] | Literal["all"]:
    return "all" if trusted == "all" else frozenset(trusted)
