"""SIGKILL at every call that touches the disk, in every kind of work (FAULTS, row 1).

After each, `current` resolves to a complete old or new version, every byte; nothing lies under a wrong name; the work
done again ends with the new version and leaves no temporary. A sample of `tools/faults kill --full`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fault import sweeps
from tests.fault.sweeps import Sweep
from tests.fault.tracing import Driver
from tests.fault.worlds import WORLDS

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(
    ("world", "stride", "least"),
    [
        ("publish", 2, 35),
        ("pull", 2, 20),
        ("collect", 2, 15),
        ("files", 1, 14),
        ("publish-many", 24, 15),
        ("pull-many-chunks", 8, 6),
        ("first", 16, 15),
    ],
)
def test_killed_at_any_call(driver: Driver, directory: Path, world: str, stride: int, least: int) -> None:
    points = list(sweeps.kill(Sweep(driver, WORLDS[world], directory), sweeps.sample(stride)))
    assert "\n".join(str(point) for point in points if point.faults) == ""
    assert len(points) >= least
