"""The command line against what people type and pipe (FAULTS 34): escapes, closed pipes, another user, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import FLEET, Daemon, Fleet, until

HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202egnp.exe\nsecond line\r\x9b31m"
NOBODY = 65534
NAMELESS = 54321
"""A uid that /etc/passwd does not have, as in containers."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("cli"))
    alpha = made.add("alpha")
    meta = made.root / "meta.json"
    meta.write_text(json.dumps({HOSTILE: HOSTILE, "auc": 0.9}))
    for number in (1, 2):
        file = made.root / "fraud.bin"
        file.write_bytes(b"%d" % number)
        words = ("publish", "fraud", str(file), "--note", HOSTILE, "--author", HOSTILE, "--meta", str(meta))
        made.run(*words, "--wait", "1")
    until(lambda: alpha.active("fraud") == 2, "version 2")
    yield made
    made.close()


READING = (
    ("status",),
    ("history", "fraud"),
    ("history", "fraud", "--asked"),
    ("show", "fraud"),
    ("diff", "fraud", "1", "2"),
    ("find", "auc>=0.5"),
)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_nothing_that_is_shown_moves_the_cursor(fleet: Fleet, words: tuple[str, ...]) -> None:
    shown = fleet.run(*words).stdout
    assert shown
    assert not [char for char in shown if not char.isprintable() and char != "\n"]


@pytest.mark.parametrize("words", [("status",), ("history", "fraud", "--json")], ids=" ".join)
def test_a_reader_that_went_away_and_a_full_device(fleet: Fleet, words: tuple[str, ...]) -> None:
    line = " ".join([sys.executable, "-m", "modelsync.cli", "--redis", fleet.redis_url, "--fleet", FLEET, *words])
    for where, wanted in (("| true; exit ${PIPESTATUS[0]}", 0), (">&-", 0), ("> /dev/full", 1)):
        done = subprocess.run(
            ["bash", "-c", f"{line} {where}"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == wanted and "Traceback" not in done.stderr, (where, done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("frobnicate",), 2, "No such command"),
        (("pin", "fraud"), 2, "VERSION"),
        (("pin", "fraud", "99"), 1, "no version 99"),
        (("pin", "../x", "1"), 2, "model name"),
        (("pin", "\x1b[2Jx", "1"), 2, "model name"),
        (("show", "nobody", "1"), 1, "nobody"),
        (("delete", "fraud", "2"), 6, "head"),
        (("unpin", "fraud"), 6, "not pinned"),
        (("switchover", "nobody"), 6, "cannot take over"),
        (("find", "auc ~ 1"), 2, "auc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_exit_codes(fleet: Fleet, words: tuple[str, ...], code: int, says: str) -> None:
    done = fleet.run(*words, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr and "\x1b" not in done.stderr


def test_configuration_and_a_redis_that_is_away(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[nonsense]\n")
    for words, code, says in (
        (("config", "check", str(bad)), 3, "nonsense"),
        (("--config", str(tmp_path / "none.toml"), "status"), 3, "--redis URL --fleet NAME"),
        (("--redis", "redis://127.0.0.1:1/0", "status"), 5, "127.0.0.1:1"),
        (("--redis", "redis://127.0.0.1:1/0", "--config", str(tmp_path / "none.toml"), "verify"), 5, "127.0.0.1:1"),
        (("up", "/proc/models"), 1, "/proc/models: "),
    ):
        command = [sys.executable, "-m", "modelsync.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code and "Traceback" not in done.stderr, (words, done.returncode, done.stderr)
        assert says in done.stderr


def test_a_fleet_that_nobody_knows_is_said(fleet: Fleet) -> None:
    """An empty table would tell an operator who mistyped the fleet's name that all hosts are gone."""
    command = [sys.executable, "-m", "modelsync.cli", "--redis", fleet.redis_url, "--fleet", "tset", "status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "") and "fleet=tset" in done.stderr


def test_a_host_whose_daemon_is_away(fleet: Fleet, tmp_path: Path) -> None:
    """The fleet's business is done by another host; this host's own is not done there instead."""
    beta = Daemon("beta", tmp_path, fleet.redis_url)

    def on_beta(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modelsync.cli", "--config", str(beta.config), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert "active on alpha" in on_beta("history", "fraud").stdout
    assert on_beta("alias", "fraud", "stable", "1").returncode == 0
    (tmp_path / "other.bin").write_bytes(b"other")
    published = on_beta("publish", "other", str(tmp_path / "other.bin"), "--wait", "1")
    assert published.returncode == 0, published.stderr
    for words, code, says in (
        (("gc",), 5, beta.url),
        (("scrub",), 5, beta.url),
        (("verify",), 1, "no daemon has run"),
        (("doctor",), 1, "beta has not reported"),
    ):
        done = on_beta(*words)
        assert done.returncode == code and says in done.stdout + done.stderr, (words, done)
    assert not beta.state.exists(), "whoever asks makes nothing that the daemon's user could not write to"


# An interpreter below /root can be started by root alone: everything is imported before root is given up.
AS_SOMEBODY = """
import encodings.idna, importlib, os
from modelsync import cli
for name in ("access", "redis_client", "edges.http.control", "edges.redis.catalog", "edges.redis.lease"):
    importlib.import_module("modelsync." + name)
for name in ("status", "wishes"):
    importlib.import_module("modelsync.cli." + name)
os.environ = {}
os.setgroups([])
os.setresgid(UID, UID, UID)
os.setresuid(UID, UID, UID)
cli.main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user(fleet: Fleet) -> None:
    """May ask over Redis, also without a name of its own, and is told what it may not read."""
    alpha: Daemon = fleet.daemons[0]

    def as_somebody(uid: int, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", AS_SOMEBODY.replace("UID", str(uid)), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")

    over_redis = ("--redis", fleet.redis_url, "--fleet", FLEET)
    done = as_somebody(NOBODY, *over_redis, "status")
    assert done.returncode == 0 and "fraud" in done.stdout, done.stderr
    closed = as_somebody(NOBODY, "--config", str(alpha.config), "status")
    assert closed.returncode == 3 and "ermission denied" in closed.stderr and "Traceback" not in closed.stderr
    nameless = as_somebody(NAMELESS, *over_redis, "alias", "fraud", "mine", "1")
    assert nameless.returncode == 0, nameless.stderr
