"""modelsync-serve's systemd unit: known to systemd, hardened, and of one mind with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.test_systemd_unit import MAX_EXPOSURE, SYSTEMD, analyze, needs_systemd

from modelsync.core.errors import ConfigurationFault
from modelsync.serve.settings import ServeSettings

UNIT = SYSTEMD / "modelsync-serve.service"


def directive(name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


@needs_systemd
def test_exposure() -> None:
    report = analyze("security", "--offline=true", "--no-pager", str(UNIT))
    exposure = re.search(r"Overall exposure level for modelsync-serve.service: ([0-9.]+)", report)
    assert exposure is not None, report
    assert float(exposure.group(1)) <= MAX_EXPOSURE


@needs_systemd
@pytest.mark.parametrize("spoiled", [False, True])
def test_every_directive_is_known(tmp_path: Path, spoiled: bool) -> None:
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("NoNewPrivileges=", "NoNewPrivilege=") if spoiled else text)
    complaints = [line for line in analyze("verify", str(unit)).splitlines() if UNIT.name in line]
    assert any("Unknown key" in line for line in complaints) == spoiled, complaints


def test_it_runs_as_the_daemon_does_and_drains_before_it_is_killed() -> None:
    assert re.search(rf"^u {directive('User')} ", (SYSTEMD / "modelsync.sysusers.conf").read_text(), re.MULTILINE)
    assert directive("Type") == "notify"
    assert int(directive("TimeoutStopSec")) > ServeSettings(Path("/x")).drain_s
    assert directive("RestartPreventExitStatus") == str(ConfigurationFault.exit_code)
