"""The shipped systemd files: known to systemd, hardened, and of one mind with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from modelsync.core.errors import ConfigurationFault, StateInUse

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "modelsyncd.service"
UNITS = sorted(SYSTEMD.glob("*.service"))
MAX_EXPOSURE = 1.5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: apt-get install systemd)"
)


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def directive(name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name} stands {len(found)} times in the unit"
    return str(found[0])


@needs_systemd
@pytest.mark.parametrize("shipped", UNITS, ids=lambda path: str(path.name))
def test_exposure(shipped: Path) -> None:
    report = analyze("security", "--offline=true", "--no-pager", str(shipped))
    exposure = re.search(rf"Overall exposure level for {re.escape(shipped.name)}: ([0-9.]+)", report)
    assert exposure is not None, report
    assert float(exposure.group(1)) <= MAX_EXPOSURE


@needs_systemd
@pytest.mark.parametrize("shipped", UNITS, ids=lambda path: str(path.name))
@pytest.mark.parametrize("spoiled", [False, True])
def test_every_directive_is_known(tmp_path: Path, shipped: Path, spoiled: bool) -> None:
    """``verify`` wants the program to exist, so another stands in; a spoiled unit shows that it does complain."""
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", shipped.read_text(), flags=re.MULTILINE)
    unit = tmp_path / shipped.name
    unit.write_text(text.replace("NoNewPrivileges=", "NoNewPrivilege=") if spoiled else text)
    complaints = [line for line in analyze("verify", str(unit)).splitlines() if shipped.name in line]
    assert any("Unknown key" in line for line in complaints) == spoiled, complaints
    assert spoiled or complaints == []


def test_a_restart_that_cannot_help_is_prevented() -> None:
    codes = {ConfigurationFault.exit_code, StateInUse.exit_code}
    assert {int(code) for code in directive("RestartPreventExitStatus").split()} == codes


def test_the_user_and_the_directories_agree() -> None:
    user = directive("User")
    assert re.search(rf"^u {user} ", (SYSTEMD / "modelsync.sysusers.conf").read_text(), re.MULTILINE)
    tmpfiles = (SYSTEMD / "modelsync.tmpfiles.conf").read_text()
    mode = directive("StateDirectoryMode")
    assert re.search(rf"^d /var/lib/{directive('StateDirectory')} +{mode} +{user} ", tmpfiles, re.MULTILINE)


def test_the_daemon_is_watched_and_reloadable() -> None:
    assert directive("Type") == "notify"
    assert 2 <= float(directive("WatchdogSec")) <= 60
    assert "kill -HUP $MAINPID" in directive("ExecReload")
    assert directive("KillMode") == "mixed"
