"""What an application imports: models that swap beneath it without a failed request.

Nothing here imports NumPy or any model library until a model needs it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Literal

from modelsync.client.client import Client as Client
from modelsync.client.forking import preload as preload
from modelsync.client.handle import Handle as Handle
from modelsync.client.loaders.contract import LoadContext as LoadContext
from modelsync.client.loaders.contract import Loader as Loader
from modelsync.client.swaps import Swap as Swap


def load_version(
    name: str,
    version: int | str,
    live_dir: str | os.PathLike[str] = "/var/lib/modelsync/live",
    *,
    trust_pickle: Collection[str] | Literal["all"] = (),
) -> object:
    """Load one retained version of a model, or the one that an alias names, and nothing else.

    Args:
        live_dir: the daemon's ``node.live_dir``.
        trust_pickle: models whose publisher may run code in this process; see ``Client``.

    Raises: NoSuchModel, NoSuchVersion, PickleNotTrusted, LoaderUnavailable, ModelFileRefused.
    """
    with Client(live_dir, trust_pickle=trust_pickle, watch=False) as client:
        return client.load_version(name, version).model
