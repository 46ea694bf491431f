"""What a configuration is: one frozen record per section, with every default.

Each component receives its own section and never the tree. Units stand last in a key's name. This file must not
know how the values were written down; ``parse`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from modelsync.core.compression.frames import Compression
from modelsync.core.gates import Check, Health, ModelGates
from modelsync.core.hooks import Hook
from modelsync.core.ids import FleetName, ModelName, NodeId
from modelsync.core.rollout.record import EACH, Gate, Plan
from modelsync.core.signing import PublicKey
from modelsync.core.storage.modes import Mode


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host name or IP address, and a port from 1 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FleetSection:
    """Which fleet this node belongs to, and where its Redis is."""

    name: FleetName
    redis: str
    """``redis://``, ``rediss://``, ``unix://``, ``sentinel://h1,h2/master``, or ``embedded``."""
    poll_s: float = 5.0
    """The catalog is read this often even if every announcement is lost."""


@dataclass(frozen=True, slots=True)
class NodeSection:
    """This host: its name, its addresses, its directories and its part in elections."""

    id: NodeId
    listen: Address
    advertise: str
    """The URL under which other nodes reach this one, without a slash at the end."""
    state_dir: Path = Path("/var/lib/modelsync/state")
    live_dir: Path = Path("/var/lib/modelsync/live")
    view_dir: Path = Path("/var/lib/modelsync/views")
    """The layouts that inference servers watch, for models with ``views``."""
    role: Literal["auto", "replica"] = "auto"
    """``replica``: never a candidate and never watches a models directory."""
    priority: int = 100
    """Among candidates that hold the same versions, the higher one becomes primary."""
    serve_url: str = ""
    """Where other hosts reach the inference server beside this daemon; empty: there is none."""
    nofailover: bool = False
    """Not to be promoted for now, for instance while the host is being serviced."""
    rack: str = ""
    zone: str = ""
    """Where the host stands: bytes are taken from its own rack first, then from its own zone."""
    labels: tuple[str, ...] = ()
    """Words that name a group of hosts, such as ``canary``, for the waves of a rollout."""


@dataclass(frozen=True, slots=True)
class ModelsSection:
    """The models directory, and how much history is kept."""

    watch: Path | None = None
    settle_s: float = 2.0
    """A copy that was not renamed into place is complete after nothing changed for this long."""
    keep: int = 5
    """Versions retained per model, beside the active, the previous and pinned ones."""
    keep_days: float = 0.0
    """Of these, none that was published so many days before the newest; 0: whatever their age."""
    scrub_days: float = 7.0
    """Days between two readings of everything that is held; 0: never."""
    scrub_bytes_per_s: int = 16 << 20
    """How fast it is read then."""
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    """Shell patterns over names of models; ``exclude`` wins."""


@dataclass(frozen=True, slots=True)
class LeaseSection:
    """The right to be primary. ``ttl_s`` is at least four times ``heartbeat_s``."""

    ttl_s: float = 3.0
    heartbeat_s: float = 0.25


@dataclass(frozen=True, slots=True)
class TransferSection:
    """How much of the network this node takes."""

    rate_limit_bytes_per_s: int = 0
    """0: no limit."""
    concurrency: int = 4
    compression: Compression = "auto"
    """Of chunks between hosts; ``auto``: where it makes a transfer shorter."""


@dataclass(frozen=True, slots=True)
class StorageSection:
    """Which hosts hold which models, and where else the bytes lie."""

    mode: Mode = "replicated"
    copies: int = 2
    """``partitioned``: on how many hosts each model lies."""
    url: str = ""
    """``shared``: the object store, ``s3://``, ``gs://``, ``az://`` or ``file:///``; empty: none."""
    credentials_file: Path | None = None
    """``name=value`` lines for the object store, read again when it refuses."""
    cache_bytes: int = 0
    """What a host may keep of models that it need not hold; 0: no limit but the disk."""
    ahead: tuple[str, ...] = ("*",)
    """``shared``: patterns over names of models that this host has ready before anybody asks."""
    grace_s: float = 3600.0
    """``shared``: between condemning what no version needs in the object store and removing it."""
    replace_after_s: float = 600.0
    """``partitioned``: a host that was silent for this long is replaced as owner."""
    split_bytes: int = 0
    """``partitioned``: a model above this size lies in parts of about this size, file by file; 0: none does."""
    leaving: bool = False
    """``partitioned``: this host gives what it owns to others, and serves it until they have it."""
    moves: int = 4
    """``partitioned``: copies that are made at once, for evenness; lost copies are replaced beside them."""


@dataclass(frozen=True, slots=True)
class SecuritySection:
    """Files that hold secrets, whose contents are never kept here; and whose versions are run."""

    token_file: Path | None = None
    redis_password_file: Path | None = None
    redis_tls_ca_file: Path | None = None
    signing_key_file: Path | None = None
    """This host's private key, in PEM: what it publishes as primary is signed with it."""
    trusted_keys: tuple[PublicKey, ...] = ()
    """Only versions that one of these has signed are run here; none: all versions are."""


@dataclass(frozen=True, slots=True)
class ModelSection:
    """What differs for one model. None: as in ``[models]``."""

    keep: int | None = None
    mode: Mode | None = None
    copies: int | None = None
    strategy: str = EACH
    straggler_s: float = 120.0
    soak_s: float = 300.0
    canaries: tuple[str, ...] = ()
    waves_percent: tuple[int, ...] = (10, 50)
    gate: Gate | None = None
    keep_days: float | None = None
    validate: Check = field(default_factory=Check)
    health: Health = field(default_factory=Health)
    hooks: tuple[Hook, ...] = ()
    views: tuple[str, ...] = ()
    batch_rows: int | None = None
    batch_delay_s: float | None = None
    """How the inference server runs requests together; None: as in ``[serve]``."""

    @property
    def rollout(self) -> Plan:
        """How a new version reaches the hosts; the primary's file counts."""
        return Plan(
            strategy=self.strategy,
            straggler_s=self.straggler_s,
            soak_s=self.soak_s,
            canaries=self.canaries,
            waves_percent=self.waves_percent,
            gate=self.gate,
        )

    @property
    def gates(self) -> ModelGates:
        """What stands around this model's swap."""
        return ModelGates(self.validate, self.health, self.hooks, self.views)


@dataclass(frozen=True, slots=True)
class ServeSection:
    """The inference server, a process of its own. Sizes in bytes, times in seconds."""

    listen: Address = Address("127.0.0.1", 8462)
    budget_bytes: int = 0
    """For the models in memory; 0: no limit."""
    trust_pickle: frozenset[str] | Literal["all"] = frozenset()
    """Models whose publishers may run code in the server."""
    preload: tuple[str, ...] = ()
    """Patterns over names of models that are loaded before the server is ready."""
    workers: int = 1
    """Processes on the one port; what follows, and the budget, is each one's own."""
    threads: int = 4
    queue: int = 512
    max_body_bytes: int = 64 << 20
    drain_s: float = 20.0
    batch_rows: int = 0
    """0: requests are not run together."""
    batch_delay_s: float = 0.002


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, checked."""

    fleet: FleetSection
    node: NodeSection
    models: ModelsSection = ModelsSection()
    lease: LeaseSection = LeaseSection()
    transfer: TransferSection = TransferSection()
    storage: StorageSection = StorageSection()
    security: SecuritySection = SecuritySection()
    pins: Mapping[ModelName, int | str] = field(default_factory=lambda: MappingProxyType({}))
    """This host's own pins: a version, or an alias that is resolved when it is used."""
    model: Mapping[ModelName, ModelSection] = field(default_factory=lambda: MappingProxyType({}))
    serve: ServeSection = ServeSection()

    def keep(self, name: ModelName) -> int:
        """How many versions of this model to retain."""
        own = self.model[name].keep if name in self.model else None
        return self.models.keep if own is None else own

    def rollout(self, name: ModelName) -> Plan:
        """How a new version of this model reaches the hosts."""
        return self.model[name].rollout if name in self.model else Plan()

    def mode(self, name: ModelName) -> tuple[Mode, int]:
        """How this model is kept, and in how many copies where that counts."""
        own = self.model.get(name, ModelSection())
        mode, copies = own.mode or self.storage.mode, own.copies or self.storage.copies
        return mode, copies if mode == "partitioned" else 0

    def keep_days(self, name: ModelName) -> float:
        """How much older than the newest a version of this model may be; 0: any age."""
        own = self.model[name].keep_days if name in self.model else None
        return self.models.keep_days if own is None else own

    def gates(self, name: ModelName) -> ModelGates:
        """What stands around this model's swap on this host."""
        return self.model[name].gates if name in self.model else ModelGates()
