"""Every format that the client loads, with the real libraries; and hostile files of each."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy
import pytest
import safetensors.numpy
import skops.io
import xgboost
from onnx import TensorProto, helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from tests.livedir import LiveDir
from tests.onnx_file import linear

from modelsync.client import Client, Handle
from modelsync.core.errors import ModelFileRefused, ModelsyncError, PickleNotTrusted

RANDOM = numpy.random.default_rng(7)
ROWS = RANDOM.normal(size=(200, 4))
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(int)


@pytest.fixture
def directory(tmp_path: Path) -> LiveDir:
    return LiveDir(tmp_path)


@pytest.fixture
def load(directory: LiveDir) -> Iterator[Callable[..., Handle]]:
    clients = []

    def load(path: Path, metadata: dict[str, Any] | None = None, **options: Any) -> Handle:
        directory.publish("m", path, metadata=metadata)
        clients.append(Client(directory.live, trust_pickle="all", watch=False, **options))
        return clients[-1].load("m")

    yield load
    for client in clients:
        client.close()


def loader_of(handle: Handle) -> Any:
    return handle._client.stats()["models"]["m"][str(handle.version)]


def is_mapped(array: Any) -> bool:
    base = array
    while getattr(base, "base", None) is not None and not isinstance(base, numpy.memmap):
        base = base.base
    return isinstance(base, numpy.memmap)


# --- what loads ----------------------------------------------------------------------------------------------------


def test_joblib_maps_its_arrays_unless_it_is_compressed(tmp_path: Path, load: Callable[..., Handle]) -> None:
    arrays = {"w": RANDOM.normal(size=(1000, 10))}
    joblib.dump(arrays, tmp_path / "m.joblib")
    with load(tmp_path / "m.joblib").lease() as loaded:
        assert is_mapped(loaded["w"]) and (loaded["w"] == arrays["w"]).all()
    joblib.dump(arrays, tmp_path / "m.joblib", compress=3)
    handle = load(tmp_path / "m.joblib")
    with handle.lease() as loaded:
        assert not is_mapped(loaded["w"]) and (loaded["w"] == arrays["w"]).all()
    assert loader_of(handle)["last_load"]["read_s"] > 0


@pytest.mark.parametrize("suffix", ["joblib", "pkl", "skops"])
def test_estimators(tmp_path: Path, load: Callable[..., Handle], suffix: str) -> None:
    forest = RandomForestClassifier(5, random_state=1).fit(ROWS, LABELS)
    file = tmp_path / f"m.{suffix}"
    skops.io.dump(forest, file) if suffix == "skops" else joblib.dump(forest, file)
    handle = load(file)
    assert (handle.predict(ROWS) == forest.predict(ROWS)).all()
    with handle.lease() as model:
        assert (model.predict_proba(ROWS) == forest.predict_proba(ROWS)).all()


def test_npy_is_mapped_and_npz_is_read(tmp_path: Path, load: Callable[..., Handle]) -> None:
    numpy.save(tmp_path / "m.npy", ROWS)
    with load(tmp_path / "m.npy").lease() as array:
        assert is_mapped(array) and (array == ROWS).all()
    numpy.savez_compressed(tmp_path / "m.npz", a=ROWS, b=LABELS)
    with load(tmp_path / "m.npz").lease() as arrays:
        assert sorted(arrays) == ["a", "b"] and (arrays["a"] == ROWS).all() and (arrays["b"] == LABELS).all()


def test_safetensors_are_views_of_the_mapped_file(tmp_path: Path, load: Callable[..., Handle]) -> None:
    kinds = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
    arrays = {f"t{kind}": (RANDOM.normal(size=(3, 5)) * 9).astype(kind) for kind in kinds}
    arrays["empty"], arrays["scalar"] = numpy.zeros((0, 4), "f4"), numpy.array(2.5, "f4")
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "np"})
    handle = load(tmp_path / "m.safetensors")
    with handle.lease() as tensors:
        assert sorted(tensors) == sorted(arrays) and tensors.metadata == {"format": "np"}
        for name, array in arrays.items():
            assert tensors[name].dtype == array.dtype and tensors[name].shape == array.shape
            assert (tensors[name] == array).all() and not tensors[name].flags.writeable
        assert is_mapped(tensors["tf4"])
        with pytest.raises(KeyError):
            tensors["none"]
    assert loader_of(handle)["maps"]


def sharded(root: Path, shards: int = 3) -> dict[str, Any]:
    (root / "big").mkdir()
    arrays = {f"layer{number}": numpy.full((50, 7), number, "f4") for number in range(2 * shards)}
    index = {name: f"model-{position % shards}.safetensors" for position, name in enumerate(arrays)}
    for shard in set(index.values()):
        part = {name: array for name, array in arrays.items() if index[name] == shard}
        safetensors.numpy.save_file(part, root / "big" / shard)
    (root / "big" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return arrays


def test_shards_load_lazily_in_any_order_with_progress(
    tmp_path: Path, directory: LiveDir, load: Callable[..., Handle]
) -> None:
    arrays = sharded(tmp_path)
    handle = load(tmp_path / "big")
    with handle.lease() as model:
        assert len(model) == 6 and model.loaded == ()
        assert (model["layer4"] == arrays["layer4"]).all()
        assert model.loaded == ("model-1.safetensors",)
        told: list[tuple[int, int]] = []
        model.load(["model-2.safetensors", "model-0.safetensors"], lambda *values: told.append(values))
        assert model.loaded == ("model-1.safetensors", "model-2.safetensors", "model-0.safetensors")
        assert told[0][0] < told[1][0] == told[1][1]
        assert all((model[name] == array).all() for name, array in arrays.items())
        with pytest.raises(KeyError):
            model["none"]


def test_shards_that_were_not_loaded_outlive_the_version(
    tmp_path: Path, directory: LiveDir, load: Callable[..., Handle]
) -> None:
    arrays = sharded(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    handle = load(tmp_path / "big")
    [digest] = os.listdir(directory.state / "store" / "m")
    (directory.state / "store" / "m" / digest).rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    with handle.lease() as model:
        assert all((model[name] == array).all() for name, array in arrays.items())
    handle._client.unload("m")
    del model
    assert len(os.listdir("/proc/self/fd")) <= before


def test_several_arrays_files_are_one_mapping(tmp_path: Path, load: Callable[..., Handle]) -> None:
    (tmp_path / "many" / "deep").mkdir(parents=True)
    numpy.save(tmp_path / "many" / "a.npy", ROWS)
    numpy.save(tmp_path / "many" / "deep" / "b.npy", LABELS)
    numpy.savez(tmp_path / "many" / "c.npz", x=ROWS + 1, y=ROWS + 2)
    with load(tmp_path / "many").lease() as model:
        assert sorted(model) == ["a", "deep/b", "x", "y"]
        assert is_mapped(model["a"]) and (model["deep/b"] == LABELS).all() and (model["y"] == ROWS + 2).all()
        assert len(model.loaded) == 3


def test_onnx(tmp_path: Path, load: Callable[..., Handle]) -> None:
    (tmp_path / "m.onnx").write_bytes(linear([1.0, 2.0, 3.0]))
    handle = load(tmp_path / "m.onnx")
    X = numpy.array([[1, 1, 1], [0, 0, 2]], "f4")
    assert handle.predict(X).tolist() == [[6.0], [6.0]]
    assert handle.predict({"x": X})["y"].tolist() == [[6.0], [6.0]]


@pytest.mark.parametrize(("suffix", "metadata"), [("lgb", None), ("txt", {"framework": "lightgbm"})])
def test_lightgbm(tmp_path: Path, load: Callable[..., Handle], suffix: str, metadata: dict[str, Any] | None) -> None:
    options = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    booster = lightgbm.train(options, lightgbm.Dataset(ROWS, LABELS), 5)
    booster.save_model(tmp_path / f"m.{suffix}")
    assert load(tmp_path / f"m.{suffix}", metadata).predict(ROWS) == pytest.approx(booster.predict(ROWS))


@pytest.mark.parametrize(("suffix", "metadata"), [("ubj", None), ("json", {"framework": "XGBoost"})])
def test_xgboost(tmp_path: Path, load: Callable[..., Handle], suffix: str, metadata: dict[str, Any] | None) -> None:
    options = {"objective": "binary:logistic", "nthread": 1}
    booster = xgboost.train(options, xgboost.DMatrix(ROWS, LABELS), 5)
    booster.save_model(tmp_path / f"m.{suffix}")
    assert load(tmp_path / f"m.{suffix}", metadata).predict(ROWS) == pytest.approx(booster.inplace_predict(ROWS))


def test_anything_else_is_a_directory(tmp_path: Path, load: Callable[..., Handle]) -> None:
    (tmp_path / "some" / "in").mkdir(parents=True)
    (tmp_path / "some" / "in" / "vocabulary.txt").write_text("a b c")
    with load(tmp_path / "some").lease() as model:
        assert dict(model.files) == {"in/vocabulary.txt": 5}
        assert model.open("in/vocabulary.txt").read() == b"a b c"
        assert Path(model).is_dir()
        with pytest.raises(KeyError):
            model.open("../../escape")


# --- what is refused -----------------------------------------------------------------------------------------------


def npy(shape: str, descr: str = "'<f8'", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust((len(header) + 10 + 63) // 64 * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def damaged(data: bytes) -> bytes:
    return data[:400] + bytes([data[400] ^ 0xFF]) + data[401:]


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def real(make: Callable[[Path], object]) -> bytes:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"modelsync-{os.getpid()}"
    try:
        make(path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _booster(path: Path) -> None:
    options = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    lightgbm.train(options, lightgbm.Dataset(ROWS, LABELS), 3).save_model(path)


def _trees(path: Path) -> None:
    named = path.with_suffix(".ubj")
    xgboost.train({"nthread": 1}, xgboost.DMatrix(ROWS, LABELS), 3).save_model(named)
    named.rename(path)


def _logistic() -> Any:
    return LogisticRegression().fit(ROWS, LABELS)


HUGE = "(1000000000000,)"
TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "joblib truncated": ("joblib", lambda: real(lambda path: joblib.dump(ROWS, path))[:-500]),
    "joblib of noise": ("joblib", lambda: b"\x80\x04" + RANDOM.bytes(5000)),
    "joblib empty file": ("joblib", lambda: b"\n"),
    "joblib compressed and truncated": ("joblib", lambda: real(lambda path: joblib.dump(ROWS, path, compress=3))[:-99]),
    "pickle truncated": ("pkl", lambda: real(lambda path: joblib.dump(_logistic(), path))[:-40]),
    "npy truncated": ("npy", lambda: npy("(1000,)", data=bytes(7000))),
    "npy that claims 8 TB": ("npy", lambda: npy(HUGE)),
    "npy with a negative shape": ("npy", lambda: npy("(-5,)", data=bytes(80))),
    "npy with code as header": ("npy", lambda: npy("__import__('os').system('touch harm')")),
    "npy with pickled objects": ("npy", lambda: npy("(1,)", "'|O'", data=b"cos\nsystem\n(S'touch harm'\ntR.")),
    "npy of text": ("npy", lambda: b"not an array at all"),
    "npz truncated": ("npz", lambda: npz(a=npy("(10,)", data=bytes(80)))[:-60]),
    "npz member that claims 8 TB": ("npz", lambda: npz(a=npy(HUGE, data=bytes(80)))),
    "npz bomb": ("npz", lambda: npz(a=npy("(25000000,)", data=bytes(200_000_000)))),
    "npz with pickled objects": ("npz", lambda: npz(a=npy("(1,)", "'|O'", data=b"cos\nsystem\n(S'touch harm'\ntR."))),
    "npz with a damaged member": ("npz", lambda: damaged(npz(a=npy("(100,)", data=RANDOM.bytes(800))))),
    "npz that is no archive": ("npz", lambda: RANDOM.bytes(1000)),
    "safetensors truncated": ("safetensors", lambda: tensors({"t": TENSOR}, bytes(8))),
    "safetensors with a header beyond the file": ("safetensors", lambda: tensors({"t": TENSOR}, bytes(16), 1 << 20)),
    "safetensors with an endless header": ("safetensors", lambda: tensors(b"{}", bytes(16), (1 << 64) - 1)),
    "safetensors with offsets beyond the file": (
        "safetensors",
        lambda: tensors({"t": {**TENSOR, "data_offsets": [0, 1 << 40]}}, bytes(16)),
    ),
    "safetensors that overlap": ("safetensors", lambda: tensors({"t": TENSOR, "u": TENSOR}, bytes(16))),
    "safetensors whose shape lies": ("safetensors", lambda: tensors({"t": {**TENSOR, "shape": [1 << 40]}}, bytes(16))),
    "safetensors with a deep header": ("safetensors", lambda: tensors(b"[" * 100_000, bytes(16))),
    "onnx truncated": ("onnx", lambda: linear([1.0, 2.0])[:-30]),
    "onnx of noise": ("onnx", lambda: RANDOM.bytes(3000)),
    "onnx that is empty": ("onnx", lambda: b"\n"),
    "lightgbm truncated": ("lgb", lambda: real(_booster)[:-3000]),
    "lightgbm of text": ("lgb", lambda: b"tree\nnum_class=1\nend of trees\n"),
    "xgboost truncated": ("ubj", lambda: real(_trees)[:-500]),
    "xgboost of noise": ("ubj", lambda: b"{" + RANDOM.bytes(2000)),
    "xgboost in its old binary format": ("ubj", lambda: b"binf" + bytes(500)),
    "skops truncated": ("skops", lambda: real(lambda path: skops.io.dump(_logistic(), path))[:-100]),
    "skops of noise": ("skops", lambda: RANDOM.bytes(2000)),
    "skops of a loader that does not exist": (
        "skops",
        lambda: _skops({"__class__": "x", "__module__": "y", "__loader__": "NoNode", "__id__": 1}),
    ),
    "skops with a deep schema": ("skops", lambda: skops_text(b"[" * 100_000)),
}


def _skops(schema: dict[str, Any]) -> bytes:
    content = {"__class__": "system", "module_path": "os", "function": "system", "content": "os.system"}
    return skops_text(json.dumps({**schema, "content": content, "protocol": 2, "_skops_version": "0.11"}).encode())


def skops_text(schema: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("schema.json", schema)
    return out.getvalue()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name_and_reason_within_bounded_memory(
    case: str, tmp_path: Path, load: Callable[..., Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, make = HOSTILE[case]
    (tmp_path / f"m.{suffix}").write_bytes(make())
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileRefused) as refused:
        load(tmp_path / f"m.{suffix}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert refused.value.reason and "m" in refused.value.path
    assert not (tmp_path / "harm").exists()


def test_an_onnx_constant_of_gigabytes_is_not_worked_out_at_loading(
    tmp_path: Path, load: Callable[..., Handle]
) -> None:
    size = helper.make_tensor("size", TensorProto.INT64, [1], [500_000_000])
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph(nodes, "bomb", [x], [y], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load(tmp_path / "m.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_skops_builds_no_type_that_it_does_not_know_unless_trusted(tmp_path: Path, directory: LiveDir) -> None:
    content = {"__class__": "system", "__module__": "posix", "__loader__": "FunctionNode", "__id__": 1}
    schema = {**content, "content": content, "protocol": 2, "_skops_version": "0.11"}
    (tmp_path / "m.skops").write_bytes(skops_text(json.dumps(schema).encode()))
    directory.publish("m", tmp_path / "m.skops")
    with Client(directory.live, watch=False) as client, pytest.raises(PickleNotTrusted, match=r"posix\.system"):
        client.load("m")


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"t": "../../../../etc/passwd"}},
        {"weight_map": {"t": "absent.safetensors"}},
        {"weight_map": ["t"]},
        {"weight_map": {"t": 5}},
        {},
        [],
        "deep",
    ],
    ids=str,
)
def test_a_hostile_index_of_shards_is_refused(tmp_path: Path, load: Callable[..., Handle], index: Any) -> None:
    sharded(tmp_path)
    text = "[" * 100_000 if index == "deep" else json.dumps(index)
    (tmp_path / "big" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelFileRefused):
        load(tmp_path / "big")


def test_an_index_that_names_a_tensor_where_it_is_not(tmp_path: Path, load: Callable[..., Handle]) -> None:
    sharded(tmp_path)
    file = tmp_path / "big" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["ghost"] = "model-0.safetensors"
    file.write_text(json.dumps(index))
    with load(tmp_path / "big").lease() as model, pytest.raises(ModelFileRefused, match="ghost"):
        model["ghost"]


def test_damage_after_the_daemon_verified_is_found_where_it_is_looked_for(tmp_path: Path, directory: LiveDir) -> None:
    numpy.save(tmp_path / "m.npy", ROWS)
    digest = directory.publish("m", tmp_path / "m.npy")
    file = directory.state / "store" / "m" / digest.hex / "m.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with Client(directory.live, watch=False, verify="digests") as careful, Client(directory.live, watch=False) as quick:
        assert quick.load("m").version == 1
        with pytest.raises(ModelFileRefused, match="not those of the manifest"):
            careful.load("m")
    file.write_bytes(data[:-8])
    with Client(directory.live, watch=False) as quick, pytest.raises(ModelFileRefused, match="the manifest says"):
        quick.load("m")


def test_a_forged_manifest_is_refused(tmp_path: Path, directory: LiveDir) -> None:
    numpy.save(tmp_path / "m.npy", ROWS)
    digest = directory.publish("m", tmp_path / "m.npy")
    file = directory.state / "manifests" / digest.hex
    true = file.read_bytes()
    for forged in (true.replace(b'"version":1', b'"version":2'), true[:-10], b"", b"[" * 100_000):
        file.write_bytes(forged)
        with Client(directory.live, watch=False) as client, pytest.raises(ModelFileRefused, match="manifest"):
            client.load("m")
    file.unlink()
    with Client(directory.live, watch=False) as client, pytest.raises(ModelsyncError):
        client.load("m")


def test_importing_the_client_imports_no_model_library() -> None:
    program = (
        "import modelsync, sys; modelsync.Client;"
        "print([name for name in ('numpy', 'sklearn', 'joblib', 'onnxruntime', 'redis', 'aiohttp')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
