"""One fleet for all tests of this directory; each test finds it whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fleet import lab


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Fleet]:
    scratch: Path = tmp_path_factory.mktemp("wheels")
    try:
        with lab.fleet(scratch) as fleet:
            yield fleet
    except lab.CannotMakeHosts as why:
        pytest.skip(str(why))


@pytest.fixture
def fleet(installed: lab.Fleet) -> lab.Fleet:
    installed.mend()
    return installed
