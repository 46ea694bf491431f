"""joblib's own unpickler, standing back after each object that it builds.

joblib offers no such place, but its unpickler is the one that Python has in Python, with a table of opcodes that is
meant to be extended; joblib does so itself. Where a joblib has no such unpickler, its files load at one go.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from modelsync.client.loaders.contract import LoadContext

_AFTER = (
    pickle.BUILD,
    pickle.REDUCE,
    pickle.MEMOIZE,
    pickle.BINPUT,
    pickle.LONG_BINPUT,
    pickle.APPENDS,
    pickle.SETITEMS,
)
"""What makes an object, or fills one: no opcode takes longer than these, and few objects are made without."""


def load_mapped(joblib: Any, file: Path, context: LoadContext) -> object:
    """Load what ``joblib.dump`` wrote uncompressed, its arrays mapped read-only."""
    made = _class()
    if made is None:
        return cast(object, joblib.load(str(file), mmap_mode="r"))
    with context.open(file) as opened:
        try:
            unpickler = made(str(file), opened, ensure_native_byte_order=False, mmap_mode="r")
        except TypeError:  # before joblib 1.5
            unpickler = made(str(file), opened, mmap_mode="r")
        unpickler.stand_back = context.stand_back
        return cast(object, unpickler.load())


@functools.cache
def _class() -> Any | None:
    try:
        from joblib.numpy_pickle import NumpyUnpickler  # noqa: PLC0415  joblib is an extra
    except ImportError:
        return None
    dispatch = {**NumpyUnpickler.dispatch}
    for opcode in _AFTER:
        dispatch[opcode[0]] = _standing_back(dispatch[opcode[0]])
    return type("Unpickler", (NumpyUnpickler,), {"dispatch": dispatch})


def _standing_back(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def then(unpickler: Any) -> None:
        load(unpickler)
        unpickler.stand_back()

    return then
