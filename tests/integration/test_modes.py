"""The storage modes on real daemons: a shared store on a mounted path, and models that lie on some hosts only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Fleet, until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def shared(store: Path, more: str = "") -> str:
    return f'[storage]\nmode = "shared"\nurl = "file://{store}"\n{more}'


def test_a_shared_model_lies_in_the_store_before_it_is_announced_and_comes_from_there(
    fleet: Fleet, tmp_path: Path
) -> None:
    store = tmp_path / "bucket"
    primary = fleet.add("one", shared(store))
    data = os.urandom(5_000_000)
    primary.put("fraud.bin", data)
    until(lambda: primary.active("fraud") == 1, "the primary to run it")
    assert sorted(path.relative_to(store).parts[0] for path in store.rglob("*") if path.is_file()) == [
        "manifests", "objects", "versions",
    ]  # fmt: skip
    primary.stop()  # nobody is left who holds it
    second = fleet.add("two", shared(store))
    until(lambda: second.active("fraud") == 1, "the store's bytes to be active")
    tree = second.tree("fraud")
    assert tree is not None and (tree / "fraud.bin").read_bytes() == data
