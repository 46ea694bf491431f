"""The protocol's datatypes and NumPy's, side by side. Pure.

Source: Open Inference Protocol, "Tensor Data Types"; BF16 as in the binary tensor extension: the upper half of FP32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Datatype:
    """One of the protocol's types. ``wire`` is how its elements lie in a binary tensor, little endian."""

    name: str
    wire: np.dtype[Any] | None
    """None: BYTES, whose elements have lengths of their own."""
    json_types: frozenset[type]
    """What Python types an element may have in a JSON tensor. NoneType is null: not a number, in floats."""

    @property
    def itemsize_bytes(self) -> int:
        return 0 if self.wire is None else self.wire.itemsize


_WHOLE: frozenset[type] = frozenset({int})
_REAL: frozenset[type] = frozenset({int, float, type(None)})

BYTES = Datatype("BYTES", None, frozenset({str}))
BF16 = Datatype("BF16", np.dtype("<u2"), _REAL)

DATATYPES: dict[str, Datatype] = {
    each.name: each
    for each in (
        Datatype("BOOL", np.dtype("?"), frozenset({bool})),
        *(Datatype(f"UINT{8 * size}", np.dtype(f"<u{size}"), _WHOLE) for size in (1, 2, 4, 8)),
        *(Datatype(f"INT{8 * size}", np.dtype(f"<i{size}"), _WHOLE) for size in (1, 2, 4, 8)),
        *(Datatype(f"FP{8 * size}", np.dtype(f"<f{size}"), _REAL) for size in (2, 4, 8)),
        BF16,
        BYTES,
    )
}

_BY_DTYPE = {each.wire: name for name, each in DATATYPES.items() if each.wire is not None and each is not BF16}


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """The protocol's name for an array's element type; None where it has none (complex numbers, dates, records)."""
    if dtype.kind in "OSU":
        return BYTES.name
    return _BY_DTYPE.get(dtype.newbyteorder("<"))


def widened_bf16(halves: Array) -> Array:
    """FP32 values of BF16 ones, which NumPy does not have."""
    return (halves.astype("<u4") << 16).view("<f4")
