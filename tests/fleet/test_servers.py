"""A unit of a real systemd that is reloaded with each version, and one whose reload fails."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from tests.fleet.lab import CONFIG, LIVE, Fleet, until

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]

UNIT = f"""[Service]
ExecStart=/bin/sleep infinity
ExecReload=/bin/sh -c 'case $(cat {LIVE}/reloaded/current/*) in bad*) echo no model >&2; exit 1;; esac; \
cat {LIVE}/reloaded/current/* > /run/inference-serves'
"""
# systemd asks polkit whether somebody else than root may reload a unit, and these hosts have none: see the comment on
# `systemctl` in config/modelsync.toml.
AS_ROOT = "[Service]\nUser=root\nCapabilityBoundingSet=CAP_LEASE CAP_DAC_OVERRIDE\n"
HOOK = '\n[model.reloaded]\nhooks = [{ kind = "systemctl", unit = "inference.service", timeout_s = 5 }]\n'


@pytest.fixture
def host(fleet: Fleet) -> Iterator[str]:
    """A replica whose daemon may reload units."""
    name = fleet.replicas()[0]
    fleet.put(name, "/etc/systemd/system/inference.service", UNIT)
    fleet.put(name, "/etc/systemd/system/modelsyncd.service.d/root.conf", AS_ROOT)
    fleet.sh(name, f"cp -a {CONFIG} /root/good.toml; cat >> {CONFIG} <<'END'\n{HOOK}END\n")
    fleet.sh(name, "systemctl daemon-reload; systemctl start inference; systemctl restart modelsyncd")
    fleet.await_step()
    yield name
    fleet.sh(name, f"cp -a /root/good.toml {CONFIG}; rm -r /etc/systemd/system/modelsyncd.service.d")
    fleet.sh(name, "systemctl stop inference; rm /etc/systemd/system/inference.service; systemctl stop modelsyncd")
    fleet.sh(name, "chown -R modelsync: /var/lib/modelsync; systemctl daemon-reload; systemctl start modelsyncd")
    fleet.await_step()


def test_a_unit_is_reloaded_and_a_refusal_is_taken_back(fleet: Fleet, host: str) -> None:
    def serves() -> str:
        return fleet.sh(host, "cat /run/inference-serves 2>/dev/null || true").strip()

    def model() -> dict[str, object]:
        node = next(node for node in fleet.status()["nodes"] if node["id"] == host)
        found: dict[str, object] = node["models"].get("reloaded", {})
        return found

    for number, data in enumerate((b"one", b"two"), 1):
        fleet.publish("reloaded", data)
        until(lambda d=data, n=number: (serves(), model().get("active")) == (d.decode(), n), f"version {number}")
    began_s = time.monotonic()
    fleet.publish("reloaded", b"bad three")
    until(lambda: model().get("state") == "rejected", "version 3 to be turned down")
    assert (model()["active"], serves()) == (2, "two")
    assert time.monotonic() - began_s < 10, "what these hosts' commands take among it"
    reason = json.dumps(model()["rejected"])
    assert "systemctl inference.service" in reason
    fleet.publish("reloaded", b"four")
    until(lambda: serves() == "four", "version 4")
