"""The configuration file: one TOML document, checked as a whole, handed on as frozen sections."""

from modelsync.config.parse import build, load, parse
from modelsync.config.reload import Differences, differences, in_force
from modelsync.config.schema import (
    Address,
    Config,
    FleetSection,
    LeaseSection,
    ModelSection,
    ModelsSection,
    NodeSection,
    SecuritySection,
    ServeSection,
    StorageSection,
    TransferSection,
)
from modelsync.config.secret_files import read_secret

__all__ = [
    "Address",
    "Config",
    "Differences",
    "FleetSection",
    "LeaseSection",
    "ModelSection",
    "ModelsSection",
    "NodeSection",
    "SecuritySection",
    "ServeSection",
    "StorageSection",
    "TransferSection",
    "build",
    "differences",
    "in_force",
    "load",
    "parse",
    "read_secret",
]
