"""Two daemons on one state directory (FAULTS, row 9): the second says so and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.disk import snapshot
from tests.fault import driver as work
from tests.fault.tracing import REPOSITORY
from tests.fault.worlds import WORLDS

from modelsync.core.errors import StateInUse

HOLDER = """
import sys
from pathlib import Path
from tests.fault import driver
driver.opened(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_the_second_says_so_and_writes_nothing(tmp_path: Path) -> None:
    chosen = WORLDS["publish"]
    chosen.prepare(tmp_path)
    path = ":".join([str(REPOSITORY / "daemon"), str(REPOSITORY), *(entry for entry in sys.path if entry)])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"open\n"
    before = snapshot(tmp_path)
    with pytest.raises(StateInUse) as caught:
        work.opened(tmp_path)
    assert caught.value.details() == {"path": str(tmp_path / "state"), "holder": f"pid {holder.pid}"}
    assert caught.value.exit_code == 75
    assert work.outcome("publish", tmp_path, "").startswith("StateInUse: Another modelsync daemon runs on this state")
    assert snapshot(tmp_path) == before
    holder.kill()
    holder.wait()
    assert chosen.unfinished(tmp_path, "") == []
