"""The client over models that its host does not hold: fetched through a daemon, shard by shard, and followed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.integration.daemons import Daemon, Fleet, until
from tests.integration.test_parts import fleet_of, objects, partitioned, publish, settled

from modelsync.client import Client
from modelsync.core.errors import NoSuchModel, PeerUnavailable

ROWS = 60_000


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def shards(root: Path, seed: int) -> dict[str, bytes]:
    """Eight arrays of 480 kB, each filled with a number of its own."""
    files = {}
    for number in range(8):
        np.save(root / "shard.npy", np.full(ROWS, 100.0 * seed + number))
        files[f"layer-{number}.npy"] = (root / "shard.npy").read_bytes()
    return files


def test_shards_of_a_model_in_parts_are_fetched_when_they_are_asked_for(fleet: Fleet, tmp_path: Path) -> None:
    nodes = fleet_of(fleet, 3, partitioned(1, 1_500_000, "cache_bytes = 1\n"))
    publish(nodes[0], "big", shards(tmp_path, 1))
    settled(nodes[0], "big", 3)
    asked = nodes[2]
    before = objects(asked)
    with Client(asked.live, daemon_url=asked.url, poll_s=0.2) as client:
        assert client.names() == ["big"]
        handle = client.load("big")
        assert objects(asked) == before, "nothing is fetched before it is asked for"
        with handle.lease() as model:
            assert sorted(model) == [f"layer-{number}" for number in range(8)]
            for number in (5, 1):
                np.testing.assert_array_equal(model[f"layer-{number}"], np.full(ROWS, 100.0 + number))
            assert objects(asked) - before <= 2 * 481_000, "and then only what was asked for"
            assert model.loaded == ("layer-5.npy", "layer-1.npy")
        assert asked.tree("big") is None
        publish(nodes[0], "big", shards(tmp_path, 2))
        until(lambda: handle.version == 2, "the next version to be followed")
        with handle.lease() as model:
            assert model["layer-7"][0] == 207.0
        assert client.load_version("big", 1).version == 1
        with pytest.raises(NoSuchModel):
            client.load("nobody")


def test_models_in_one_piece_are_fetched_too_and_a_daemon_that_is_away_is_said(fleet: Fleet, tmp_path: Path) -> None:
    nodes = fleet_of(fleet, 3, partitioned(1, 0))
    np.save(tmp_path / "plain.npy", np.arange(ROWS))
    for number in range(4):
        nodes[0].put(f"model-{number}.npy", (tmp_path / "plain.npy").read_bytes())
    names = [f"model-{number}" for number in range(4)]
    until(lambda: all(_owner(nodes[0], name) for name in names), "all to be placed")
    nowhere = Client(tmp_path / "no-live-directory", daemon_url=nodes[1].url, watch=False)
    assert nowhere.names() == names
    for name in names:
        with nowhere.load(name).lease() as model:
            np.testing.assert_array_equal(model, np.arange(ROWS))
    nowhere.close()
    with Client(nodes[1].live, daemon_url="http://127.0.0.1:1", watch=False) as alone, pytest.raises(PeerUnavailable):
        alone.load("nobody")


def _owner(daemon: Daemon, name: str) -> str:
    line = daemon.status().get("placement", {}).get(name, {})
    return "" if line.get("trouble") else "".join(line.get("owners", ()))
