"""The daemon as it is shipped reloads a unit of a real systemd with each version, and takes back what fails to load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.fleet.lab import CONFIG, LIVE, Fleet, until

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(300)]

# A server as the README wants it: a user of its own, who reads models as a member of the group.
UNIT = f"""[Service]
User=nobody
SupplementaryGroups=modelsync
RuntimeDirectory=inference
ExecStart=/bin/sleep infinity
ExecReload=/bin/sh -c 'case $(cat {LIVE}/reloaded/current/*) in bad*) echo no model >&2; exit 1;; esac; \
cat {LIVE}/reloaded/current/* > /run/inference/serves'
"""
PATH = "/etc/systemd/system/inference.service"
# The question that systemd asks of polkit, which reads a new rule a little later.
LEAVE = """pkcheck --action-id org.freedesktop.systemd1.manage-units --process $(systemctl show modelsyncd -P MainPID) \
--detail unit inference.service --detail verb reload"""
RULES = "/etc/polkit-1/rules.d/50-modelsync.rules"
HOOK = """
[model.reloaded]
hooks = [{ kind = "systemctl", unit = "inference.service", timeout_s = 5 }]
[model.checked]
validate = { check = "structure", command = ["/bin/sh", "-c", "nice; ! grep worse $MODELSYNC_TREE/*"] }
"""


@pytest.fixture
def host(fleet: Fleet) -> Iterator[str]:
    """A replica with such a server, whose daemon has polkit's leave to reload it."""
    name = fleet.replicas()[0]
    fleet.put(name, PATH, UNIT)
    fleet.sh(name, f"install -m 644 /opt/modelsync/share/modelsync/systemd/50-modelsync.rules {RULES}")
    fleet.sh(name, f"cp -a {CONFIG} /root/good.toml; cat >> {CONFIG} <<'END'\n{HOOK}END\n")
    fleet.sh(name, "systemctl daemon-reload; systemctl start inference; systemctl reload modelsyncd")
    until(lambda: fleet.exit_code(name, LEAVE) == 0, "polkit to read its rules")
    yield name
    fleet.sh(name, f"cp -a /root/good.toml {CONFIG}; systemctl reload modelsyncd")
    fleet.sh(name, f"systemctl stop inference; rm -f {PATH} {RULES}; systemctl daemon-reload")
    for model in ("reloaded", "checked"):
        fleet.sh(name, f"modelsync update {model}", check=False)  # one that was turned down, or is not there
    fleet.await_step()


def line(fleet: Fleet, host: str, model: str) -> dict[str, Any]:
    """What a host says of a model."""
    (node,) = (node for node in fleet.status(host)["nodes"] if node["id"] == host)
    return dict(node["models"].get(model, {}))


def test_a_unit_is_reloaded_and_a_refusal_is_taken_back(fleet: Fleet, host: str) -> None:
    def serves() -> str:
        return fleet.sh(host, "cat /run/inference/serves 2>/dev/null || true").strip()

    def model() -> dict[str, Any]:
        return line(fleet, host, "reloaded")

    def is_so(version: int, data: str) -> bool:
        found = model()
        return (found.get("active"), found.get("state"), serves()) == (version, "active", data)

    version = 0
    for data in ("one", "two"):
        version = fleet.publish("reloaded", data.encode())["version"]
        until(lambda v=version, d=data: is_so(v, d), f"version {version}")

    fleet.publish("reloaded", b"bad three")
    until(lambda: model().get("state") == "rejected" and serves() == "two", "version 3 to be turned down")
    assert (model()["active"], fleet.sh(host, f"cat {LIVE}/reloaded/current/*")) == (version, "two")
    assert "hook systemctl inference.service: ended with 1: Job for inference.service failed" in json.dumps(model())

    version = fleet.publish("reloaded", b"four")["version"]
    until(lambda: is_so(version, "four"), "version 4")

    # Without leave there is no reload, and the version is taken back as well.
    fleet.sh(host, f"rm {RULES}")
    until(lambda: fleet.exit_code(host, LEAVE) != 0, "polkit to forget the rule")
    fleet.publish("reloaded", b"five")
    until(lambda: model().get("state") == "rejected", "version 5 to be turned down")
    assert (model()["active"], serves()) == (version, "four")


def test_the_leave_is_for_reloads_of_that_unit_alone(fleet: Fleet, host: str) -> None:
    as_daemon = "runuser -u modelsync -- systemctl --no-ask-password"
    version = fleet.publish("reloaded", b"six")["version"]
    until(lambda: line(fleet, host, "reloaded").get("active") == version, "the version")
    assert fleet.exit_code(host, f"{as_daemon} reload inference") == 0
    for order in ("restart inference", "stop inference", "reload-or-restart inference", "reload modelsyncd"):
        assert fleet.exit_code(host, f"{as_daemon} {order}") != 0, order


def test_checks_run_in_their_cage_below_the_shipped_unit(fleet: Fleet, host: str) -> None:
    version = fleet.publish("checked", b"good")["version"]
    until(lambda: line(fleet, host, "checked").get("state") == "active", "version 1")
    fleet.publish("checked", b"worse")
    until(lambda: line(fleet, host, "checked").get("state") == "rejected", "version 2 to be turned down")
    found = line(fleet, host, "checked")
    assert (found["active"], fleet.sh(host, f"cat {LIVE}/checked/current/*")) == (version, "good")
    assert "ended with 1: 5 worse" in json.dumps(found), "5: it goes behind the daemon"
