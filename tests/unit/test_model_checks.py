"""What a file must be to bear its name: each format whole, cut short, and lying; and nothing of a pickle is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from modelsync.edges.gates.checks.formats import Unfit, check_tree
from modelsync.edges.gates.checks.loading import check_load

RAN = "ran"


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + bytes([len(data)]) + data


WHOLE_SAFETENSORS = safetensors({"a": tensor(0, 8, [2]), "b": tensor(8, 12, [1, 1]), "__metadata__": {}}, bytes(12))
ONNX = b"\x08\x07" + field(2, b"pytorch") + field(7, b"graph")
GGUF = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + bytes(10)


def arrays(path: Path) -> None:
    joblib.dump(
        {
            "plain": np.arange(100_000),
            "objects": np.array(["x", {1: 2}], dtype=object),
            "text": np.array(["abc"]),
            "days": np.array(["2020"], dtype="M8[D]"),
            "record": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
            "fortran": np.asfortranarray(np.ones((3, 4))),
        },
        path,
    )


def forest(path: Path, **how: Any) -> None:
    rows = np.random.default_rng(1).random((50, 3))
    joblib.dump(RandomForestClassifier(3, random_state=1).fit(rows, rows[:, 0] > 0.5), path, **how)


def pickled(protocol: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(pickle.dumps({"a": [1.5, "x", b"y" * 5000], "b": {3}}, protocol)) and None


WHOLE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "safetensors": ("m.safetensors", lambda path: path.write_bytes(WHOLE_SAFETENSORS)),
    "npy": ("m.npy", lambda path: np.save(path, np.ones((3, 5)))),
    "npz": ("m.npz", lambda path: np.savez_compressed(path, a=np.ones(1000), b=np.arange(3))),
    "onnx": ("m.onnx", lambda path: path.write_bytes(ONNX)),
    "json": ("m.json", lambda path: path.write_text('{"a": 1}')),
    "joblib arrays": ("m.joblib", arrays),
    "joblib": ("m.joblib", forest),
    **{
        f"joblib {how}": ("m.joblib", lambda path, how=how: forest(path, compress=(how, 3)))
        for how in ("zlib", "gzip", "bz2", "xz", "lzma")
    },
    **{f"pickle {number}": ("m.pkl", pickled(number)) for number in (0, 2, 4, 5)},
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_passes_and_cut_short_does_not(name: str, tmp_path: Path) -> None:
    file, write = WHOLE[name]
    path = tmp_path / file
    write(path)
    assert check_tree(tmp_path) == 1
    data = path.read_bytes()
    for length in (len(data) - 1, len(data) // 2, 5):
        path.write_bytes(data[:length])
        with pytest.raises(Unfit, match=r"^m\."):
            check_tree(tmp_path)


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("m.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "claims"),
        ("m.safetensors", safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)), "begins at 4"),
        ("m.safetensors", safetensors({"a": tensor(0, 8, [3])}, bytes(8)), "its shape and type need 12"),
        ("m.safetensors", safetensors({"a": tensor(0, 8, [2], "F31")}, bytes(8)), "not understood"),
        ("m.safetensors", safetensors({"a": tensor(0, 8, [2])}, bytes(9)), "need 8 bytes"),
        ("m.safetensors", safetensors({"a": tensor(0, 0, [-1])}, b""), "not understood"),
        ("m.safetensors", struct.pack("<Q", 14) + b'{"a":1,"a":2}\n', "twice"),
        ("m.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')", "not understood"),
        ("m.npy", b"no array", "no .npy"),
        ("m.onnx", b"\x00\x01", "protobuf"),
        ("m.onnx", b"\x0a\xff\xff\xff\xff\x7f", "beyond its end"),
        ("m.onnx", field(2, b"x"), "no graph"),
        ("m.gguf", struct.pack("<4sIQQ", b"GGUF", 9, 1, 1), "version 1 to 3"),
        ("m.gguf", struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1), "claims"),
        ("m.json", b"[" * 100_000, "damaged"),
        ("m.pkl", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50), "cut short"),
        ("m.pkl", b"", "cut short"),
        ("m.joblib", b"not a pickle", "damaged"),
    ],
)
def test_a_file_that_lies(file: str, data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(data)
    with pytest.raises(Unfit, match=reason):
        check_tree(tmp_path)


def test_an_archive_with_a_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, a=np.ones(1000))
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(Unfit, match="damaged"):
        check_tree(tmp_path)


def test_a_member_that_claims_more_than_it_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,)}"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(Unfit, match="needs 799999999992 bytes"):
        check_tree(tmp_path)


@pytest.mark.parametrize("file", ["m.pkl", "m.joblib"])
def test_nothing_of_a_pickle_is_run(file: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / file).write_bytes(pickle.dumps(Evil(tmp_path / RAN)))
    assert check_tree(tree) == 1 and not (tmp_path / RAN).exists()


def test_what_has_no_known_format_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"anything")
    assert check_tree(tmp_path) == 0


def test_samples_and_what_is_expected(tmp_path: Path) -> None:
    forest(tmp_path / "m.joblib")
    rows = np.array([[0.1, 0.5, 0.5], [0.9, 0.5, 0.5]])
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "right.json").write_text("[false, true]")
    (tmp_path / "wrong.json").write_text("[true, true]")
    (tmp_path / "long.json").write_text("[true]")
    check_load(tmp_path, "", "", 0)
    check_load(tmp_path, "rows.npy", "right.json", 0)
    for expected, reason in (("wrong.json", "answer 0"), ("long.json", "shape"), ("none.json", "cannot be read")):
        with pytest.raises(Unfit, match=reason):
            check_load(tmp_path, "rows.npy", expected, 0)
