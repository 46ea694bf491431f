"""A power cut after every call that touches the disk (FAULTS, rows 2 and 3). A sample of `tools/faults power --full`.

``forced``: another process makes the kernel commit its journal before the cut, so that names given too early show.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fault import sweeps
from tests.fault.power import Cuts
from tests.fault.tracing import Driver
from tests.fault.worlds import WORLDS

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("can_mount")]


@pytest.mark.parametrize(
    ("world", "forced", "stride", "least"),
    [
        ("publish", True, 2, 35),
        ("publish", False, 6, 12),
        ("pull", True, 2, 20),
        ("pull", False, 6, 8),
        ("collect", True, 8, 4),
        ("files", True, 1, 14),
        ("publish-many", True, 32, 12),
        ("first", True, 32, 8),
    ],
)
def test_cut_after_any_call(driver: Driver, directory: Path, world: str, forced: bool, stride: int, least: int) -> None:
    points = list(Cuts(driver, WORLDS[world], directory, forced).points(sweeps.sample(stride)))
    assert "\n".join(str(point) for point in points if point.faults) == ""
    assert len(points) >= least
