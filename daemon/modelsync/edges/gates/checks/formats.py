"""Whether a file is what its name says, by its structure alone: nothing of it is run, nothing large is read.

Sources: the safetensors format's README, NEP 1 (npy), APPNOTE 6.3 by zipfile (npz), onnx.proto, the GGUF specification.
"""

from __future__ import annotations

import ast
import json
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

HEADER_BYTES = 100 << 20
"""Of a safetensors header or a JSON document; safetensors' own limit."""
BLOCK_BYTES = 1 << 20
_SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class Unfit(Exception):
    """The file is not what its name says."""


def check_tree(tree: Path) -> int:
    """Look at every file of a version whose format is known. Returns how many. Raises Unfit: which file, and why."""
    looked_at = 0
    for path in sorted(tree.rglob("*")):
        check = _CHECKS.get(path.suffix.lower())
        if check is not None and path.is_file():
            looked_at += 1
            try:
                with path.open("rb") as file:
                    check(file, path.stat().st_size)
            except Unfit as error:
                raise Unfit(f"{path.relative_to(tree)}: {error}") from error
            except (EOFError, struct.error) as error:
                raise Unfit(f"{path.relative_to(tree)}: it ends too early") from error
    return looked_at


def read_exactly(file: IO[bytes], size_bytes: int) -> bytes:
    """That many bytes. Raises EOFError."""
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise EOFError
    return data


# --- safetensors ------------------------------------------------------------------------------------------------------


def safetensors(file: IO[bytes], size_bytes: int) -> None:
    """A header of at most 100 MiB whose tensors lie side by side, and end where the file ends."""
    (header_bytes,) = struct.unpack("<Q", read_exactly(file, 8))
    if header_bytes > min(HEADER_BYTES, size_bytes - 8):
        raise Unfit(f"its header claims {header_bytes} bytes, the file has {size_bytes}")
    header = _json_object(read_exactly(file, header_bytes))
    spans = []
    for name, entry in header.items():
        if name != "__metadata__":
            spans.append(_tensor_span(name, entry))
    end = 0
    for begin, after, name in sorted(spans):
        if begin != end:
            raise Unfit(f"tensor {name[:80]!r} begins at {begin}, the one before ends at {end}")
        end = after
    if end != size_bytes - 8 - header_bytes:
        raise Unfit(f"its tensors need {end} bytes, the file has {size_bytes - 8 - header_bytes}")


def _tensor_span(name: str, entry: Any) -> tuple[int, int, str]:
    try:
        begin, end = entry["data_offsets"]
        bits = _SAFETENSORS_BITS[entry["dtype"]] * math.prod(entry["shape"])
        if not all(isinstance(size, int) and 0 <= size < 1 << 53 for size in (begin, end, *entry["shape"])):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise Unfit(f"the entry of tensor {name[:80]!r} is not understood") from error
    if (end - begin) * 8 != bits:
        raise Unfit(f"tensor {name[:80]!r} has {end - begin} bytes, its shape and type need {bits // 8}")
    return begin, end, name


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"its JSON is damaged: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise Unfit("its JSON is no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Unfit("its JSON names something twice")
    return made


# --- NumPy ------------------------------------------------------------------------------------------------------------


def npy(file: IO[bytes], size_bytes: int) -> None:
    """A header whose shape and type need exactly the bytes that follow; arrays of objects are pickles, and unknown."""
    if read_exactly(file, 6) != b"\x93NUMPY":
        raise Unfit("it is no .npy file")
    major = read_exactly(file, 2)[0]
    width, form = (2, "<H") if major == 1 else (4, "<I")
    (header_bytes,) = struct.unpack(form, read_exactly(file, width))
    if header_bytes > min(size_bytes, 1 << 20):
        raise Unfit(f"its header claims {header_bytes} bytes")
    itemsize, shape = _npy_header(read_exactly(file, header_bytes))
    if itemsize is not None:
        needed, has = itemsize * math.prod(shape), size_bytes - 8 - width - header_bytes
        if needed != has:
            raise Unfit(f"its array needs {needed} bytes, the file has {has}")


def _npy_header(data: bytes) -> tuple[int | None, tuple[int, ...]]:
    try:
        header = ast.literal_eval(data.decode("latin-1").strip())
        descr, shape = header["descr"], header["shape"]
        if not all(isinstance(size, int) and 0 <= size < 1 << 53 for size in shape):
            raise ValueError
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise Unfit("its header is not understood") from error
    return itemsize_of(descr) if isinstance(descr, str) else None, tuple(shape)


def itemsize_of(descr: str) -> int | None:
    """Bytes an item of a NumPy type string; None for objects and what is not understood."""
    kind, digits = descr.lstrip("<>|=")[:1], descr.lstrip("<>|=")[1:].partition("[")[0]
    if kind == "?" or not digits.isdigit():
        return 1 if kind == "?" else None
    size = int(digits)
    return None if kind == "O" else 4 * size if kind == "U" else size


_BAD_ARCHIVE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, OSError,
    OverflowError,
)  # fmt: skip


def npz(file: IO[bytes], size_bytes: int) -> None:
    """A zip archive whose members are sound, read a block at a time: an archive that swells costs time, not memory."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as inside:
                    if member.filename.endswith(".npy"):
                        npy(inside, member.file_size)
                    while inside.read(BLOCK_BYTES):  # to the end, where the checksum is compared
                        pass
    except _BAD_ARCHIVE as error:
        raise Unfit(f"the archive is damaged: {str(error)[:160]}") from error


# --- others -----------------------------------------------------------------------------------------------------------


def onnx(file: IO[bytes], size_bytes: int) -> None:
    """A protobuf message whose fields end where the file ends, with an IR version (1) and a graph (7)."""
    fields = set()
    while file.tell() < size_bytes:
        key = _varint(file)
        fields.add(key >> 3)
        length = _field_length(file, key)
        if file.tell() + length > size_bytes:
            raise Unfit(f"a field of {length} bytes goes beyond its end")
        file.seek(length, os.SEEK_CUR)
    if not {1, 7} <= fields:
        raise Unfit("it has no graph, or no IR version")


def _field_length(file: IO[bytes], key: int) -> int:
    """How many bytes of a field still lie ahead; a number is read at once."""
    if key >> 3 == 0 or key & 7 not in (0, 1, 2, 5):
        raise Unfit(f"it is no protobuf message: byte {file.tell()}")
    if key & 7 == 0:
        _varint(file)
        return 0
    return {1: 8, 5: 4}.get(key & 7) or _varint(file)


def _varint(file: IO[bytes]) -> int:
    value = 0
    for at in range(10):
        byte = read_exactly(file, 1)[0]
        value |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return value
    raise Unfit("it is no protobuf message: a number without an end")


def gguf(file: IO[bytes], size_bytes: int) -> None:
    """Its magic number, a version that exists, and no more tensors and keys than bytes."""
    magic, version, tensors, keys = struct.unpack("<4sIQQ", read_exactly(file, 24))
    if magic != b"GGUF" or not 1 <= version <= 3:
        raise Unfit("it is no GGUF file of version 1 to 3")
    if tensors + keys > size_bytes:
        raise Unfit(f"it claims {tensors} tensors and {keys} keys")


def document(file: IO[bytes], size_bytes: int) -> None:
    """JSON, UTF-8, whole."""
    if size_bytes > HEADER_BYTES:
        raise Unfit(f"{size_bytes} bytes of JSON; at most {HEADER_BYTES} are read")
    try:
        json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise Unfit(f"its JSON is damaged: {str(error)[:120]}") from error


def _pickle(file: IO[bytes], size_bytes: int) -> None:
    from modelsync.edges.gates.checks.pickles import scan  # noqa: PLC0415  it needs this file's words

    scan(file, size_bytes)


_CHECKS: dict[str, Callable[[IO[bytes], int], None]] = {
    ".safetensors": safetensors,
    ".npy": npy,
    ".npz": npz,
    ".onnx": onnx,
    ".gguf": gguf,
    ".json": document,
    ".joblib": _pickle,
    ".pkl": _pickle,
    ".pickle": _pickle,
}
