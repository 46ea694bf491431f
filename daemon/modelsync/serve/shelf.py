"""The models of this server: what LIVE offers, what is in memory, what was unloaded by order.

A request leases the version that it is answered by. What is in memory is leased at once, on the event loop; what is not
is loaded by the client in a thread of its own, once for all who wait.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
import weakref
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from modelsync.client import Client, Handle
from modelsync.client.handle import Lease
from modelsync.client.offers import Offers
from modelsync.core.errors import ModelsyncError, NoSuchModel, NoSuchVersion
from modelsync.serve.adapters import Adapter, adapter_for
from modelsync.serve.collecting import Collecting
from modelsync.serve.faults import ModelUnavailable, UnknownModel

_T = TypeVar("_T")

_DIRECTORIES = re.compile(r"(?<![\w:/.])/(?:[^\s/:'\"]+/)+")
"""Of absolute paths, which libraries write into their errors; the file's own name stays."""
MAX_VERSION_HANDLES = 256
"""Of versions asked for by number; each is a few hundred bytes, its weights are the client's to evict."""


@dataclass(slots=True)
class Leased:
    """A version in use: ``with`` it, and it is given back at the end."""

    lease: Lease
    model: Any
    version: int
    digest: str
    adapter: Adapter
    missed: bool = False
    """Whether it had to be loaded for this request."""

    def __enter__(self) -> Leased:
        return self

    def __exit__(self, *unused: object) -> None:
        self.lease.__exit__(None, None, None)


@dataclass(slots=True)
class _Adapted:
    """The adapter of one version. ``model`` tells plain directories apart, whose version is always 0."""

    version: int
    digest: str
    adapter: Adapter
    model: weakref.ref[Any] | None

    def fits(self, version: int, digest: str, model: Any) -> bool:
        if self.version != version or self.digest != digest:
            return False
        return bool(digest) or (self.model is not None and self.model() is model)


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of the repository's index."""

    name: str
    version: str
    state: str
    reason: str = ""

    def document(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version, "state": self.state, "reason": self.reason}


@dataclass(slots=True)
class Shelf:
    """Finds, loads and leases.

    Args:
        client: holds the models; closed by whoever made it.
        offers: the same live directory, for what need not be loaded to be known.
    """

    client: Client
    offers: Offers
    _handles: dict[tuple[str, int | None], Handle] = field(default_factory=dict)
    _adapted: dict[tuple[str, int | None], _Adapted] = field(default_factory=dict)
    _withdrawn: set[str] = field(default_factory=set)
    _failed: dict[str, str] = field(default_factory=dict)
    """Why the last load of a model failed."""
    _collecting: Collecting = field(default_factory=Collecting)

    async def lease(self, name: str, version: int | None) -> Leased:
        """Lease a version; loads it if it is not in memory.

        Raises:
            UnknownModel: this host does not offer it. ModelUnavailable: it does, and it cannot be used.
        """
        if name in self._withdrawn:
            raise UnknownModel(reason=f"model {name!r} was unloaded; a load by the repository API brings it back")
        key = (name, version)
        handle = self._handles.get(key)
        missed = handle is None or not handle.resident
        if handle is None:
            handle = await self._loaded(key)
        while True:
            lease = handle.lease()
            if handle.resident:
                model = lease.__enter__()
            else:
                await self._load(key)
                # In a thread, since it may have been evicted again before it could be leased.
                model = await self._translated(name, asyncio.to_thread(lease.__enter__))
            try:
                leased = self._leased(key, handle, lease, model)
            except BaseException:
                lease.__exit__(None, None, None)
                raise
            if leased is not None:
                leased.missed = missed
                return leased
            lease.__exit__(None, None, None)

    def _leased(self, key: tuple[str, int | None], handle: Handle, lease: Lease, model: Any) -> Leased | None:
        """None if the model is switched at this very moment, so that the handle tells of another version."""
        version, digest = lease.version, handle.digest
        if handle.version != version:
            return None
        adapted = self._adapted.get(key)
        if adapted is None or not adapted.fits(version, digest, model):
            adapter = adapter_for(key[0], model, handle.metadata)
            adapted = self._adapted[key] = _Adapted(version, digest, adapter, _reference(model))
        return Leased(lease, model, version, digest, adapted.adapter)

    async def _loaded(self, key: tuple[str, int | None]) -> Handle:
        handle = await self._load(key)
        self._collecting.settled()
        if len(self._handles) >= MAX_VERSION_HANDLES:
            for other in [other for other in self._handles if other[1] is not None]:
                del self._handles[other]
                self._adapted.pop(other, None)
        return self._handles.setdefault(key, handle)

    async def _load(self, key: tuple[str, int | None]) -> Handle:
        name, version = key
        if version is None:
            return await self._translated(name, self.client.aload(name))
        return await self._translated(name, asyncio.to_thread(self.client.load_version, name, version))

    async def _translated(self, name: str, loading: Awaitable[_T]) -> _T:
        """The outcome of a load, its errors as the protocol has them."""
        try:
            loaded = await loading
        except (NoSuchModel, NoSuchVersion) as error:
            raise _unknown(name, error) from error
        except (ModelsyncError, OSError, MemoryError) as error:
            self._failed[name] = _told(error)
            raise ModelUnavailable(model=name, reason=_told(error)) from error
        self._failed.pop(name, None)
        return loaded

    # --- the repository ---------------------------------------------------------------------------------------------

    async def names(self) -> list[str]:
        """Models that LIVE offers, sorted."""
        try:
            return await asyncio.to_thread(self.offers.names)
        except ModelsyncError:
            return []  # the live directory is not there yet: the daemon makes it

    async def versions(self, name: str) -> list[int]:
        """Versions held on this host, newest first. Raises UnknownModel."""
        try:
            return await asyncio.to_thread(self.offers.retained, name)
        except (NoSuchModel, NoSuchVersion) as error:
            raise _unknown(name, error) from error
        except (ModelsyncError, OSError) as error:
            raise ModelUnavailable(model=name, reason=_told(error)) from error

    async def index(self) -> list[Listing]:
        """Every model: in memory or not, and why not."""
        return [self._listing(name) for name in await self.names()]

    def _listing(self, name: str) -> Listing:
        handle = self._handles.get((name, None))
        version = str(handle.version) if handle is not None else ""
        if name in self._withdrawn:
            return Listing(name, version, "UNAVAILABLE", "unloaded")
        if handle is not None and handle.resident:
            return Listing(name, version, "READY")
        if name in self._failed:
            return Listing(name, version, "UNAVAILABLE", self._failed[name])
        return Listing(name, version, "UNAVAILABLE", "not in memory; loaded when it is asked for")

    async def ready(self, name: str, version: int | None) -> None:
        """Returns if a request would be answered, perhaps after a load. Raises UnknownModel, ModelUnavailable."""
        held = await self.versions(name)
        if version is not None and version not in held:
            raise UnknownModel(reason=f"model {name!r} has no version {version} on this host, which holds {held}")
        if name in self._withdrawn:
            raise ModelUnavailable(model=name, reason="unloaded")
        if name in self._failed:
            await self._load((name, version))  # a newer version may be good; the client paces these tries

    async def load(self, name: str) -> None:
        """Load a model, and offer it again if it was unloaded. Raises UnknownModel, ModelUnavailable."""
        handle = await self._loaded((name, None))
        self._withdrawn.discard(name)
        if not handle.resident:
            await self._load((name, None))

    async def unload(self, name: str) -> None:
        """Free a model's memory and offer it no longer. Raises UnknownModel."""
        await self.versions(name)
        self._withdrawn.add(name)
        for key in [key for key in self._handles if key[0] == name]:
            del self._handles[key]
            self._adapted.pop(key, None)
        await asyncio.to_thread(self.client.unload, name)

    async def preload(self, patterns: tuple[str, ...]) -> dict[str, str]:
        """Load the models that a pattern names. Returns what failed, and why."""
        failed: dict[str, str] = {}
        for name in await self.names():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                try:
                    await self.load(name)
                except ModelsyncError as error:
                    failed[name] = str(error)
        return failed


def _unknown(name: str, error: NoSuchModel | NoSuchVersion) -> UnknownModel:
    return UnknownModel(reason=f"model {name!r} is not offered here: {error.reason}")


def _told(error: BaseException) -> str:
    """Why, for whoever asks over HTTP: not where this host keeps its files."""
    if not isinstance(error, ModelsyncError):
        return _DIRECTORIES.sub("", f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}")
    parts = (error.sentence(), str(error.details().get("reason", "")))
    return _DIRECTORIES.sub("", " ".join(part for part in parts if part))


def _reference(model: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(model)
    except TypeError:
        return None
