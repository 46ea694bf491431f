"""Both pages in a real browser: what their scripts make of real answers, and that nothing of it fails there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import joblib
import pytest
from tests.integration.daemons import Fleet, until
from tests.integration.serving import ROWS, fp64, iris, put_joblib, serving

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")


def drawn(url: str, profile: Path) -> str:
    """The document as it is after a while in the browser. What its scripts complain of fails the test."""
    assert BROWSER is not None
    # Its own sandbox needs more rights than a container gives. Time goes by at once, past a few rounds of polling.
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=6000", "--enable-logging=stderr", "--v=0", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    assert "<main>" in done.stdout, done.stderr[-2000:]
    banner = re.search(r'<div id="banner"[^>]*>', done.stdout)
    assert banner is not None and "hidden" in banner.group(), "the page says that it cannot be read"
    return done.stdout


def test_the_inference_servers_page_draws_its_curves(tmp_path: Path) -> None:
    put_joblib(tmp_path / "live", "iris", iris())
    with serving(tmp_path / "live", "--trust-pickle", "all", "--workers", "2") as server:
        for _ in range(20):
            server.triton.infer("iris", [fp64(ROWS[:2])])
        page = drawn(server.url, tmp_path / "profile")
    assert len(re.findall(r"<svg[^>]*aria-label=", page)) == 6
    assert re.search(r'<path d="M[^"]+" class="[a-z]*" stroke="#[0-9a-f]{6}"><title>iris</title>', page), (
        "a curve of the model"
    )
    assert "in memory</span>" in page
    assert re.search(r"<span>requests</span><b[^>]*>20</b>", page)


def test_the_daemons_page_says_who_runs_what(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    try:
        alpha = fleet.add("alpha")
        joblib.dump(iris(), tmp_path / "fraud.joblib")
        (tmp_path / "fraud.joblib").rename(alpha.models / "fraud.joblib")
        until(lambda: alpha.active("fraud") == 1, "it is active")
        page = drawn(alpha.url, tmp_path / "profile")
    finally:
        fleet.close()
    assert re.search(r'<th[^>]*>fraud</th>.*?<span class="badge version good">1</span>', page, re.S), page
    assert re.search(r"<span>runs as wanted</span><b[^>]*>1 of 1</b>", page)
    assert re.search(r'<span id="seen-by">as alpha sees it</span>', page)
