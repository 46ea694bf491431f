"""A primary whose disk is full (FAULTS 4, 27): it says so, gives the lease away when asked, and nothing is lost."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fault.power import EXT4, mounted
from tests.fault.test_disk_errors import _fill
from tests.integration.daemons import Fleet, until
from tests.integration.terms import QUICK_LEASE, Ledger, in_step, primary_of

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("how", ["switchover", "stop"])
@pytest.mark.usefixtures("can_mount")
def test_a_primary_with_a_full_disk_hands_over(directory: Path, how: str) -> None:
    large = replace(EXT4, image_bytes=256 << 20)  # above what an upload leaves free for everything else
    with mounted(directory / "disk.img", new=True, kind=large) as disk:
        fleet, ledger = Fleet(directory / "fleet"), Ledger()
        try:
            (directory / "fleet").mkdir(exist_ok=True)
            (directory / "fleet" / "alpha").symlink_to(disk / "alpha")
            (disk / "alpha").mkdir()
            alpha = fleet.add("alpha", QUICK_LEASE)
            others = [fleet.add(name, QUICK_LEASE) for name in ("beta", "gamma")]
            until(lambda: in_step(fleet.daemons), "a fleet in step")
            ledger.await_accepted([alpha], "m", b"1")
            for daemon in fleet.daemons:
                until(lambda d=daemon: d.active("m") == 1, f"version 1 on {daemon.name}")
            epoch = alpha.status()["epoch"]
            _fill(disk / "hog", 0)
            assert ledger.publish(alpha, "m", os.urandom(1 << 20))[0] == 507, "it says whose fault it is"
            if how == "switchover":
                fleet.run("switchover", "beta", check=False)
            else:
                assert alpha.stop() == 0
            new = primary_of(others, above=epoch)
            assert ledger.await_accepted([new], "m", b"2")["version"] == 2
            for daemon in others:
                until(lambda d=daemon: d.active("m") == 2, f"version 2 on {daemon.name}")
            (disk / "hog").unlink()
            if how == "stop":
                alpha.start()
            until(lambda: alpha.alive() and alpha.active("m") == 2, "version 2 on alpha once there is room", 60)
            ledger.check(fleet.redis, fleet.daemons)
        finally:
            fleet.close()
