"""Where the log goes when it cannot be written: nowhere, and the daemon goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from modelsync import logs
logs.set_up()
for number in range(2000):
    structlog.get_logger().warning("disk.filled", number=number, odd="\\ud800")
print("went on")
"""


@pytest.mark.parametrize("target", ["/dev/full", "/dev/null"])
def test_a_log_that_cannot_be_written_stops_nothing(target: str) -> None:
    with open(target, "w") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (0, "went on\n")
