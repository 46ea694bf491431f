"""The load test's own command, small: a fleet, an inference server, swaps and a killed primary, and its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_a_short_run_fails_no_request_and_leaves_its_report(tmp_path: Path) -> None:
    # Past the script that makes an environment: the one that runs this test is it.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/tools/bench:{ROOT}/tools/load"}
    command = [sys.executable, str(ROOT / "tools/load/main.py"), "--seconds", "4", "--rate", "40", "--models", "5"]
    done = subprocess.run(
        [*command, "--swap-every", "0.7", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=150, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads((tmp_path / "loadtest.json").read_text())
    told = document["figures"]
    assert told["failed requests"] == told["wrong answers"] == 0 and told["requests"] > 100
    assert told["swaps (publishes)"] >= 1 and told["loads"] >= 5
    assert told["primary killed: promoted after, s"] > 1
    assert (tmp_path / "loadtest.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "loadtest.html").read_text()
    assert page.count("data:image/svg+xml;base64,") >= 6
    assert "http://" not in page and "https://" not in page  # it needs nothing else
    assert "hot models by hour of the day" in done.stdout
