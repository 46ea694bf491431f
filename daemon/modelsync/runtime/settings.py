"""Who a node is, and what a reload of its configuration may change while everything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modelsync.core.gates import ModelGates
from modelsync.core.ids import FleetName, ModelName, NodeId
from modelsync.core.signing import PublicKey
from modelsync.core.swarm.neighbours import UNLABELLED, Labels
from modelsync.runtime.keeping import StorageSettings


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is, and where others reach it."""

    fleet: FleetName
    node: NodeId
    url: str
    labels: Labels = UNLABELLED


@dataclass
class LiveSettings:
    """What a reload may change while everything runs."""

    poll_s: float
    pins: Mapping[ModelName, int | str]
    keep: Callable[[ModelName], int]
    keep_days: Callable[[ModelName], float]
    gates: Callable[[ModelName], ModelGates]
    storage: StorageSettings
    serve_url: str
    concurrency: int
    priority: int
    nofailover: bool
    labels: Sequence[str] = ()
    trusted: Sequence[PublicKey] = ()
    config_error: str | None = None
