"""One driver for a run of the fault tests; they skip, with the reason, where faults cannot be injected."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fault import power, tracing, worlds

from modelsync.edges.disk import store as store_file


@pytest.fixture(autouse=True)
def small_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``driver.use_small_disks``, for one test."""
    monkeypatch.setattr(store_file, "RESERVE_BYTES", 0)


@pytest.fixture(scope="session")
def driver() -> Iterator[tracing.Driver]:
    reason = tracing.why_not()
    if reason is not None:
        pytest.skip(reason)
    with tracing.Driver() as running:
        yield running


@pytest.fixture(scope="session")
def can_mount() -> None:
    reason = power.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where roots and images lie: in memory if possible."""
    path = worlds.scratch()
    yield path
    shutil.rmtree(path, ignore_errors=True)
