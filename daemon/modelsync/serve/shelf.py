"""The models of this server: what LIVE offers, what is in memory, what was unloaded by order.

A request leases the version that it is answered by. What is in memory is leased at once, on the event loop; what is not
is loaded by the client in a thread of its own, once for all who wait.
"""

from __future__ import annotations

import asyncio
import fnmatch
import weakref
from dataclasses import dataclass, field
from typing import Any

from modelsync.client import Client, Handle
from modelsync.client.handle import Lease
from modelsync.client.offers import Offers
from modelsync.core.errors import ModelsyncError, NoSuchModel, NoSuchVersion
from modelsync.serve.adapters import Adapter, adapter_for
from modelsync.serve.faults import ModelUnavailable, UnknownModel

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

    def fits(self, lease: Lease, model: Any) -> bool:
        if self.version != lease.version or self.digest != lease.digest:
            return False
        return bool(self.digest) or (self.model is not None and self.model() is model)


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

    async def lease(self, name: str, version: int | None) -> Leased:
        """Lease a version; loads it if it is not in memory.

        Raises:
            UnknownModel: this host does not offer it. ModelUnavailable: it does, and it cannot be used.
        """
        if name in self._withdrawn:
            raise UnknownModel(reason=f"model {name!r} was unloaded; POST /v2/repository/models/{name}/load brings it back")
        key = (name, version)
        handle = self._handles.get(key)
        if handle is None:
            handle = await self._loaded(key)
        lease = handle.lease()
        if handle.resident:
            model = lease.__enter__()
        else:
            await self._load(key)
            # In a thread, since it may have been evicted again before it could be leased.
            model = await self._translated(name, asyncio.to_thread(lease.__enter__))
        try:
            return self._leased(key, lease, model)
        except BaseException:
            lease.__exit__(None, None, None)
            raise

    def _leased(self, key: tuple[str, int | None], lease: Lease, model: Any) -> Leased:
        adapted = self._adapted.get(key)
        if adapted is None or not adapted.fits(lease, model):
            adapter = adapter_for(key[0], model, lease.metadata)
            adapted = self._adapted[key] = _Adapted(lease.version, lease.digest, adapter, _reference(model))
        return Leased(lease, model, adapted.version, adapted.digest, adapted.adapter)

    async def _loaded(self, key: tuple[str, int | None]) -> Handle:
        handle = await self._load(key)
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

    async def _translated(self, name: str, loading: Any) -> Any:
        try:
            loaded = await loading
        except (NoSuchModel, NoSuchVersion) as error:
            raise UnknownModel(reason=str(error)) from error
        except (ModelsyncError, OSError, MemoryError) as error:
            self._failed[name] = str(error)
            raise ModelUnavailable(model=name, reason=str(error)) from error
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
            raise UnknownModel(reason=str(error)) from error
        except (ModelsyncError, OSError) as error:
            raise ModelUnavailable(model=name, reason=str(error)) from error

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
            raise ModelUnavailable(model=name, reason=self._failed[name])

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


def _reference(model: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(model)
    except TypeError:
        return None
