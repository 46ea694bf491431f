"""modelsync-serve's systemd unit: of one mind with the code. That it is hardened is test_systemd_unit's."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.test_systemd_unit import SYSTEMD

from modelsync.core.errors import ConfigurationFault
from modelsync.serve.settings import ServeSettings

UNIT = SYSTEMD / "modelsync-serve.service"


def directive(name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


def test_it_runs_as_the_daemon_does_and_drains_before_it_is_killed() -> None:
    assert re.search(rf"^u {directive('User')} ", (SYSTEMD / "modelsync.sysusers.conf").read_text(), re.MULTILINE)
    assert directive("Type") == "notify"
    assert int(directive("TimeoutStopSec")) > ServeSettings(Path("/x")).drain_s
    assert directive("RestartPreventExitStatus") == str(ConfigurationFault.exit_code)
