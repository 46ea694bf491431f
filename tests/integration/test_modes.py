"""The storage modes on real daemons: a shared store on a mounted path, and models that lie on some hosts only."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.s3_server import KEYS, expired, s3_server

from modelsync.client import Client


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def shared(store: Path, more: str = "") -> str:
    store.mkdir(exist_ok=True)
    return f'[storage]\nmode = "shared"\nurl = "file://{store}"\n{more}'


def partitioned(copies: int, replace_after_s: int = 11) -> str:
    return f'[storage]\nmode = "partitioned"\ncopies = {copies}\nreplace_after_s = {replace_after_s}\n'


def placed(daemon: Daemon, name: str) -> dict[str, Any]:
    line: dict[str, Any] = daemon.status().get("placement", {}).get(name, {})
    return line


def owners(daemon: Daemon, name: str) -> set[str]:
    return set(placed(daemon, name).get("owners", ()))


def download(daemon: Daemon, name: str, path: str, headers: dict[str, str] | None = None, version: int = 1) -> bytes:
    url = f"{daemon.url}/v1/models/{name}/versions/{version}/files/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=20) as answer:
        data: bytes = answer.read()
        return data


def asked_owners(daemon: Daemon) -> set[str]:
    with urllib.request.urlopen(f"{daemon.url}/v1/placement/fraud", timeout=5) as answer:
        return {one["id"] for one in json.load(answer)["owners"]}


def post(daemon: Daemon, path: str, value: object = None) -> None:
    body = json.dumps(value).encode() if value is not None else None
    request = urllib.request.Request(f"{daemon.url}{path}", body, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def pinned(daemon: Daemon, name: str) -> int | None:
    found: list[int | None] = [each["pinned"] for each in daemon.status()["models"] if each["name"] == name]
    return found[0] if found else None


def content(daemon: Daemon, name: str) -> bytes:
    tree = daemon.tree(name)
    return (tree / f"{name}.bin").read_bytes() if tree is not None else b""


def all_run(nodes: list[Daemon], data: bytes) -> None:
    for node in nodes:
        until(lambda node=node: content(node, "fraud") == data, f"{node.name} to run it")  # type: ignore[misc]


# --- shared ----------------------------------------------------------------------------------------------------------


def test_a_shared_model_lies_in_the_store_before_it_is_announced_and_comes_from_there(
    fleet: Fleet, tmp_path: Path
) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    data = os.urandom(20_000_000)
    primary.put("fraud.bin", data)
    beside = tmp_path / "beside"
    beside.mkdir()
    for number in range(100):
        (beside / f"part-{number}").write_bytes(os.urandom(3000))
    parts = {path.name: path.read_bytes() for path in beside.iterdir()}
    beside.rename(primary.models / "forest")
    until(lambda: primary.active("fraud") == 1 and primary.active("forest") == 1, "the primary to run them")
    kinds = {path.relative_to(store).parts[0] for path in store.rglob("*") if path.is_file()}
    assert kinds == {"manifests", "objects", "versions"}
    primary.stop()  # nobody is left who holds them
    second = fleet.add("two", shared(store))
    until(lambda: second.active("fraud") == 1 and second.active("forest") == 1, "the store's bytes to be active")
    assert content(second, "fraud") == data
    tree = second.tree("forest")
    assert tree is not None and {path.name: path.read_bytes() for path in tree.iterdir()} == parts


def test_with_the_store_away_what_is_cached_goes_on_and_nothing_is_announced(fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    primary.put("fraud.bin", b"1" * 2_000_000)
    until(lambda: primary.active("fraud") == 1, "the primary to run it")
    shutil.move(store, tmp_path / "away")
    store.write_text("not a directory: every request fails")
    primary.put("fraud.bin", b"2" * 2_000_000)
    until(lambda: "ObjectStore" in primary.log.read_text() or "object store" in primary.log.read_text(), "the trouble")
    assert content(primary, "fraud") == b"1" * 2_000_000
    assert primary.active("fraud") == 1, "nothing is announced that the store does not hold"
    store.unlink()
    shutil.move(tmp_path / "away", store)
    until(lambda: primary.active("fraud") == 2, "the version to be published once the store is back", 60)


def test_wrong_bytes_in_the_store_are_refused_and_blamed(fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    primary.put("fraud.bin", os.urandom(3_000_000))
    until(lambda: primary.active("fraud") == 1, "the primary to run it")
    primary.stop()
    (held,) = [path for path in (store / "objects").rglob("*") if path.is_file()]
    whole = held.read_bytes()
    held.chmod(0o644)
    held.write_bytes(whole[:1_500_000] + b"x" + whole[1_500_001:])
    second = fleet.add("two", shared(store))
    until(lambda: ("object store" in second.log.read_text() and "DigestMismatch" in second.log.read_text())
          or "do not match" in second.log.read_text(), "the wrong chunk to be refused")  # fmt: skip
    assert second.active("fraud") is None
    held.write_bytes(whole)
    until(lambda: second.active("fraud") == 1, "the right bytes to be taken", 60)


def test_versions_that_are_kept_no_longer_leave_the_store_and_a_lost_one_is_put_back(
    fleet: Fleet, tmp_path: Path
) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store, "grace_s = 2\n[model.fraud]\nkeep = 1\n"))
    for number in (1, 2, 3):
        primary.put("fraud.bin", str(number).encode() * 2_000_000)
        until(lambda n=number: primary.active("fraud") == n, f"version {number} to be active")  # type: ignore[misc]
    found = json.loads(fleet.run("gc", "--dry-run", "--json").stdout)["object_store"]
    assert found["versions"] == {"fraud": [1, 2]} or found["condemned"] + found["waiting"] + found["deleted"] > 0
    until(lambda: {path.name for path in (store / "versions" / "fraud").iterdir()} == {"3"}, "the others to go")
    until(lambda: len([path for path in (store / "objects").rglob("*") if path.is_file()]) == 1, "their objects to go")
    assert "object store: would remove 0 objects" in fleet.run("gc", "--dry-run").stdout
    (store / "versions" / "fraud" / "3").unlink()
    until((store / "versions" / "fraud" / "3").exists, "it to be put back")


def test_another_fleet_s_number_is_not_taken(fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "bucket"
    claim = store / "versions" / "fraud" / "1"
    claim.parent.mkdir(parents=True)
    claim.write_bytes(b'{"digest":"b3:' + b"0" * 64 + b'","fleet":"other","id":"9-1"}')
    primary = fleet.add("one", shared(store))
    primary.put("fraud.bin", b"1" * 1000)
    until(lambda: "fleet other" in primary.log.read_text(), "the conflict to be told")
    assert primary.active("fraud") is None


def test_a_model_that_is_not_used_here_is_loaded_when_asked_and_let_go_again(fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    second = fleet.add("two", shared(store, "ahead = []\n"))
    primary.put("fraud.bin", b"1" * 3_000_000)
    until(lambda: primary.active("fraud") == 1, "the primary to run it")
    until(lambda: "elsewhere" in json.dumps(second.status()["nodes"]), "the other host to know that it need not")
    assert second.tree("fraud") is None
    assert download(second, "fraud", "fraud.bin") == b"1" * 3_000_000
    post(second, "/v1/models/fraud/load")
    until(lambda: second.active("fraud") == 1, "it to be loaded")
    post(second, "/v1/models/fraud/unload")
    until(lambda: second.tree("fraud") is None, "it to be let go")


def test_daemons_on_s3_whose_credentials_end_and_are_renewed(fleet: Fleet, tmp_path: Path) -> None:
    pytest.importorskip("moto.server")
    keys = tmp_path / "keys"
    with s3_server() as url:
        good = f"{KEYS}aws_endpoint={url}\n"
        keys.write_text(good)
        keys.chmod(0o600)
        sections = f'[storage]\nmode = "shared"\nurl = "s3://models/prod"\ncredentials_file = "{keys}"\n'
        primary = fleet.add("one", sections)
        primary.put("fraud.bin", b"1" * 3_000_000)
        until(lambda: primary.active("fraud") == 1, "the primary to run it")
        with expired(url):
            primary.put("fraud.bin", b"2" * 3_000_000)
            until(lambda: "refused" in primary.log.read_text(), "the refusal to be told")
            assert content(primary, "fraud") == b"1" * 3_000_000
            assert "unspeakable" not in primary.log.read_text()
        until(lambda: primary.active("fraud") == 2, "publishing to go on by itself", 60)


# --- partitioned -----------------------------------------------------------------------------------------------------


def three(fleet: Fleet, sections: str) -> list[Daemon]:
    made = [fleet.add(name, sections) for name in ("one", "two", "three")]
    until(lambda: len(made[0].status()["nodes"]) == 3, "all three to report")
    return made


def test_a_model_lies_on_its_owners_is_read_through_elsewhere_and_outlives_one_of_them(fleet: Fleet) -> None:
    nodes = three(fleet, partitioned(2, replace_after_s=1))
    data = os.urandom(5_500_000)
    nodes[0].put("fraud.bin", data)
    until(lambda: len(owners(nodes[0], "fraud")) == 2, "it to be placed")
    chosen = owners(nodes[0], "fraud")
    all_run([node for node in nodes if node.name in chosen], data)
    (other,) = [node for node in nodes if node.name not in chosen]
    until(lambda: other.tree("fraud") is None, "the third to have none of it in use")
    assert download(other, "fraud", "fraud.bin") == data
    assert download(other, "fraud", "fraud.bin", {"Range": "bytes=1048570-1048580"}) == data[1048570:1048581]
    with pytest.raises(urllib.error.HTTPError):
        download(other, "fraud", "no-such-file")
    until(lambda: asked_owners(other) == chosen, "the route to name both")
    dead = next(node for node in nodes if node.name in chosen)
    living = [node for node in nodes if node is not dead]
    dead.kill()
    for node in living:
        assert download(node, "fraud", "fraud.bin") == data
    until(lambda: dead.name not in owners(living[0], "fraud"), "the dead owner to be replaced", 45)
    all_run(living, data)


def test_a_new_version_is_read_through_whole_where_an_old_one_is_cached(fleet: Fleet) -> None:
    """Most of it is copied from the old version: it leaves once the whole file has proved it."""
    nodes = three(fleet, partitioned(copies=1))
    data = os.urandom(20_000_000)
    nodes[0].put("fraud.bin", data)
    until(lambda: len(owners(nodes[0], "fraud")) == 1, "an owner")
    other = next(node for node in nodes[1:] if node.name not in owners(nodes[0], "fraud"))
    assert download(other, "fraud", "fraud.bin") == data
    data = data[:5_000_000] + b"changed" + data[5_000_007:]
    nodes[0].put("fraud.bin", data)
    until(lambda: other.head("fraud") == 2, "version 2 to be known")
    assert download(other, "fraud", "fraud.bin", version=2) == data


def test_the_mode_changes_on_a_live_fleet_and_nothing_is_unavailable_on_the_way(fleet: Fleet) -> None:
    plain = '[storage]\nmode = "replicated"\n'
    nodes = three(fleet, plain)
    data = os.urandom(1_500_000)
    nodes[0].put("fraud.bin", data)
    all_run(nodes, data)
    for node in nodes:
        node.config.write_text(node.base + partitioned(1))
    until(lambda: len(owners(nodes[0], "fraud")) == 1, "it to have one owner")
    (owner,) = owners(nodes[0], "fraud")
    others = [node for node in nodes if node.name != owner]
    until(lambda: all(node.tree("fraud") is None for node in others), "the others to let go")
    for node in nodes:
        assert download(node, "fraud", "fraud.bin") == data
    for node in nodes:
        node.config.write_text(node.base + plain)
    all_run(nodes, data)


@pytest.mark.parametrize("mode", ["shared", "partitioned"])
def test_a_publish_by_command_does_not_wait_for_who_need_not_hold_it(fleet: Fleet, tmp_path: Path, mode: str) -> None:
    sections = shared(tmp_path / "bucket", "ahead = []\n") if mode == "shared" else partitioned(1)
    three(fleet, sections)
    for number in range(4):  # one copy: some of them lie on the primary alone
        (tmp_path / "m.bin").write_bytes(os.urandom(10_000))
        done = json.loads(
            fleet.run("publish", f"m-{number}", str(tmp_path / "m.bin"), "--timeout", "15", "--json").stdout
        )
        assert (done["version"], done["copies"] >= (mode == "partitioned")) == (1, True)


def test_all_owners_lost_is_said_and_ends_when_one_returns(fleet: Fleet) -> None:
    nodes = three(fleet, partitioned(1))
    names = [f"model-{number}" for number in range(6)]
    for name in names:
        nodes[0].put(f"{name}.bin", name.encode() * 1000)
    until(lambda: all(len(owners(nodes[0], name)) == 1 for name in names), "all to be placed")
    lies = {name: next(iter(owners(nodes[0], name))) for name in names}
    name = next(name for name in names if lies[name] != "one")
    owner = next(node for node in nodes if node.name == lies[name])
    until(lambda: content(owner, name) == name.encode() * 1000, "its owner to run it")
    until(lambda: nodes[0].tree(name) is None, "the primary to let go")
    owner.kill()
    nodes[0].kill()  # it still holds what it published
    fleet.redis.delete(fleet.key(f"node:{owner.name}"), fleet.key("node:one"))  # as after a while without reports
    (last,) = [node for node in nodes if node not in (owner, nodes[0])]
    until(lambda: "no living node holds" in placed(last, name).get("trouble", ""), "the state to be said", 40)
    owner.start()
    until(lambda: download_or_none(last, name) == name.encode() * 1000, "it to be served again", 40)


def download_or_none(daemon: Daemon, name: str) -> bytes | None:
    try:
        return download(daemon, name, f"{name}.bin")
    except OSError:
        return None


# --- modes of one fleet ----------------------------------------------------------------------------------------------


def test_models_of_one_fleet_differ_in_mode_and_one_moves_into_the_store_and_back_under_readers(
    fleet: Fleet, tmp_path: Path
) -> None:
    store = tmp_path / "bucket"
    store.mkdir()
    plain = f'[storage]\nurl = "file://{store}"\nahead = ["nothing"]\ncache_bytes = 1\n'
    moved = plain + '[model.fraud]\nmode = "shared"\n'
    nodes = [fleet.add(name, plain) for name in ("one", "two")]
    until(lambda: len(nodes[0].status()["nodes"]) == 2, "both to report")
    data = os.urandom(30_000_000)
    nodes[0].put("fraud.bin", data)
    nodes[0].put("other.bin", b"2" * 1000)
    all_run(nodes, data)
    faults: list[str] = []
    over = threading.Event()

    def read(node: Daemon) -> None:
        while not over.is_set():
            try:
                if download(node, "fraud", "fraud.bin") != data:
                    faults.append(f"{node.name}: other bytes")
            except OSError as error:
                faults.append(f"{node.name}: {error}")

    readers = [threading.Thread(target=read, args=(node,)) for node in nodes]
    for reader in readers:
        reader.start()
    try:
        for node in nodes:
            node.config.write_text(node.base + moved)
        until(lambda: nodes[1].tree("fraud") is None, "the other host to let go")
        for _ in range(3):
            post(nodes[1], "/v1/gc")  # and its cache is cleaned up while it is read from
        modes = {name: placed(nodes[0], name).get("mode") for name in ("fraud", "other")}
        assert modes["fraud"] == "shared" and modes["other"] in (None, "replicated")
        assert content(nodes[1], "other") == b"2" * 1000
        for node in nodes:
            node.config.write_text(node.base + plain)
        all_run(nodes, data)
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert faults == []


def test_a_bounded_cache_gives_up_what_was_used_longest_ago_and_never_what_is_active(
    fleet: Fleet, tmp_path: Path
) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    second = fleet.add("two", shared(store, 'ahead = ["first"]\ncache_bytes = 5_000_000\n'))
    for name in ("first", "second", "third", "fourth"):
        primary.put(f"{name}.bin", name.encode() * 400_000)
        until(lambda n=name: primary.active(n) == 1, f"{name} to be published")  # type: ignore[misc]
    until(lambda: second.active("first") == 1, "its own model")
    for name in ("second", "third", "fourth"):
        assert download(second, name, f"{name}.bin") == name.encode() * 400_000
        time.sleep(0.05)
    post(second, "/v1/gc")
    sizes = {path.stat().st_size for path in (second.state / "objects").rglob("*") if path.is_file()}
    assert sizes == {5 * 400_000, 5 * 400_000, 6 * 400_000}, "first is active, fourth was used last, and third fits"


def test_a_bounded_cache_counts_use_and_not_arrival(fleet: Fleet, tmp_path: Path) -> None:
    """What is downloaded again and again from the cache, and what was active until just now, was used last."""
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    second = fleet.add("two", shared(store, "ahead = []\ncache_bytes = 2_600_000\n"))
    sizes = {"loaded": 1_100_000, "again": 1_200_000, "once": 1_300_000}
    for name, size in sizes.items():
        primary.put(f"{name}.bin", b"m" * size)
        until(lambda n=name: primary.active(n) == 1, f"{name} to be published")  # type: ignore[misc]

    def cached() -> set[int]:
        post(second, "/v1/gc")
        return {path.stat().st_size for path in (second.state / "objects").rglob("*") if path.is_file()}

    post(second, "/v1/models/loaded/load")
    until(lambda: second.active("loaded") == 1, "it to be loaded")
    for name in ("again", "once", "again"):
        assert len(download(second, name, f"{name}.bin")) == sizes[name]
        time.sleep(0.05)
    post(second, "/v1/models/loaded/unload")
    until(lambda: second.tree("loaded") is None, "it to be let go")
    until(lambda: cached() == {sizes["loaded"], sizes["again"]}, "the one that came last and was used once to go")


def test_a_bounded_cache_never_gives_up_what_is_pinned(fleet: Fleet, tmp_path: Path) -> None:
    """By the fleet's pin, or this host's own: though it does not run here, and was used longest ago."""
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    second = fleet.add("two", shared(store, "ahead = []\ncache_bytes = 2_400_000\n[pins]\nown = 1\n"))
    sizes = {"own": 1_100_000, "fleetwide": 1_200_000, "older": 1_300_000, "newer": 1_400_000}
    for name, size in sizes.items():
        primary.put(f"{name}.bin", b"m" * size)
        until(lambda n=name: primary.active(n) == 1, f"{name} to be published")  # type: ignore[misc]
    post(primary, "/v1/models/fleetwide/pin", {"version": 1})
    until(lambda: pinned(second, "fleetwide") == 1, "the other host to hear of the pin")
    for name, size in sizes.items():
        assert len(download(second, name, f"{name}.bin")) == size
        time.sleep(0.05)

    def kept() -> set[int]:
        post(second, "/v1/gc")
        return {path.stat().st_size for path in (second.state / "objects").rglob("*") if path.is_file()}

    until(lambda: sizes["older"] not in kept(), "what has no room to go")
    assert kept() == {sizes["own"], sizes["fleetwide"], sizes["newer"]}


def test_what_an_application_has_leased_answers_though_its_host_lets_it_go(fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    second = fleet.add("two", shared(store, "ahead = []\ncache_bytes = 1\n"))
    rows = numpy.arange(300_000, dtype="f8")
    numpy.save(tmp_path / "rows.npy", rows)
    primary.put("rows.npy", (tmp_path / "rows.npy").read_bytes())
    until(lambda: primary.active("rows") == 1, "the primary to run it")
    post(second, "/v1/models/rows/load")
    until(lambda: second.active("rows") == 1, "it to be loaded")
    client = Client(second.live, watch=False)
    with client.load("rows").lease() as array:
        post(second, "/v1/models/rows/unload")
        until(lambda: second.tree("rows") is None, "it to be let go")
        post(second, "/v1/gc")
        assert not [path for path in (second.state / "objects").rglob("*") if path.is_file()]
        assert (array == rows).all()
    client.close()


def test_with_the_store_away_status_says_what_cannot_be_had(fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    primary.put("fraud.bin", b"1" * 2_000_000)
    until(lambda: primary.active("fraud") == 1, "the primary to run it")
    second = fleet.add("two", shared(store))
    until(lambda: second.active("fraud") == 1, "the other to run it")
    third = fleet.add("three", shared(store, 'ahead = ["nothing"]\n'))
    shutil.move(store, tmp_path / "away")
    store.write_text("not a directory: every request fails")
    primary.put("fraud.bin", b"2" * 2_000_000)
    until(lambda: "what is cached goes on" in fleet.run("status").stdout, "the trouble to be said")
    assert content(second, "fraud") == b"1" * 2_000_000 == download(third, "fraud", "fraud.bin")
    store.unlink()
    shutil.move(tmp_path / "away", store)
    until(lambda: second.active("fraud") == 2, "publishing to go on", 60)
    until(lambda: "what is cached goes on" not in fleet.run("status").stdout, "the trouble to be over")
