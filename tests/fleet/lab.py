"""Hosts with a real systemd, and a fleet installed on them as the README says.

The hosts come from ``fleetlab``: named by MODELSYNC_FLEETLAB, on PATH, or in ``shared/tools`` beside the checkout.
They are containers that boot a Debian of their own, and their disks can lose what was not synced. Nothing here knows
what is tested.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOSTS = ("h1", "h2", "h3")
CONFIG = "/etc/modelsync/modelsync.toml"
LIVE = "/var/lib/modelsync/live"
STATE = "/var/lib/modelsync/state"
PASSWORD, ADMIN_PASSWORD = "a-password-for-the-daemons", "another-for-the-administrator"
PACKAGES = ("--include", "polkitd")
"""What hosts have beyond fleetlab's own choice; `build` and `up` have to be told the same."""
POLL_S = 5.0
HOST_IS_AWAY = 1000
"""Beside exit codes, which end at 255."""

# What the README's guide says word for word: an install per host, a Redis, a configuration, a start.
REDIS_SCRIPT = """
install -o redis -g redis -m 640 redis.conf users.acl /etc/redis/
sed -i "s/^user modelsync on/& #$(printf %s "$PASSWORD" | sha256sum | cut -c-64)/" /etc/redis/users.acl
sed -i "s/^user admin on/& #$(printf %s "$ADMIN_PASSWORD" | sha256sum | cut -c-64)/" /etc/redis/users.acl
sed -i 's/^bind .*/bind 0.0.0.0/' /etc/redis/redis.conf
systemctl restart redis-server
"""
PROGRAM_SCRIPT = """
python3 -m venv /opt/modelsync
/opt/modelsync/bin/pip install --quiet modelsync-*.whl
"""
UNIT_SCRIPT = """
ln -sf /opt/modelsync/bin/modelsync /usr/local/bin/modelsync
cd /opt/modelsync/share/modelsync/systemd
install -D -m 644 modelsyncd.service /etc/systemd/system/modelsyncd.service
install -D -m 644 modelsync.sysusers.conf /etc/sysusers.d/modelsync.conf
install -D -m 644 modelsync.tmpfiles.conf /etc/tmpfiles.d/modelsync.conf
systemd-sysusers
systemd-tmpfiles --create
install -d -m 2775 -g modelsync /srv/models
printf '%s\\n' "$PASSWORD" | install -o modelsync -m 400 /dev/stdin /etc/modelsync/redis-password
cat >/etc/modelsync/modelsync.toml <<'END'
[fleet]
name = "prod"
redis = "redis://modelsync@redis:6379/0"

[node]
listen = "0.0.0.0:8461"

[models]
watch = "/srv/models"

[security]
redis_password_file = "/etc/modelsync/redis-password"
END
chgrp modelsync /etc/modelsync/modelsync.toml
chmod 640 /etc/modelsync/modelsync.toml
modelsync config check /etc/modelsync/modelsync.toml
systemctl daemon-reload
systemctl enable --now modelsyncd
"""


class CannotMakeHosts(Exception):
    """This machine has no fleetlab, or fleetlab cannot work here; the text says why."""


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0, every_s: float = 0.05) -> Any:
    """Wait for a condition and return what it returned; fails after ``timeout_s``, saying ``what`` did not come."""
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end_s, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(every_s)
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Shell:
    """A shell that stays open on a host: a command there costs milliseconds, not a new process of fleetlab's."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def run(self, script: str) -> tuple[int, bytes]:
        """Exit code and standard output; where it failed, standard error after it. HOST_IS_AWAY is a code as well."""
        assert self._process.stdin is not None and self._process.stdout is not None
        mark = secrets.token_hex(8)
        text = f"(set -e\n{script}\n) </dev/null 2>/run/stderr\ncode=$?\n"
        text += f"[ $code = 0 ] || cat /run/stderr\nprintf '\\n{mark} %s\\n' $code\n"
        lines: list[bytes] = []
        try:
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()
            while not (line := self._process.stdout.readline()).startswith(mark.encode()):
                if not line:
                    raise BrokenPipeError
                lines.append(line)
        except BrokenPipeError:
            return HOST_IS_AWAY, b"the host is off, or went away meanwhile"
        return int(line.split()[1]), b"".join(lines)[:-1]

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


class Lab:
    """Some hosts, by fleetlab's commands. Two labs of different slots live side by side."""

    def __init__(self, program: str, slot: int) -> None:
        self._program = program
        self.environment = {**os.environ, "FLEETLAB_NAME": f"ms{slot}", "FLEETLAB_SUBNET": f"10.81.{slot}.0/24"}
        self._shells: dict[str, _Shell] = {}

    def command(self, *words: object) -> list[str]:
        """A fleetlab command line, for a process of the caller's own; it needs ``environment``."""
        return [self._program, *map(str, words)]

    def run(
        self, *words: object, check: bool = True, input: str | bytes = b"", timeout_s: float = 90.0
    ) -> subprocess.CompletedProcess[bytes]:
        """One fleetlab command."""
        if words[0] in ("poweroff", "kill", "down"):
            self._leave(words[1:])
        given = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            self.command(*words), env=self.environment, input=given, capture_output=True, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{words}: exit {done.returncode}\n{done.stdout.decode()}{done.stderr.decode()}")
        return done

    def sh(self, host: str, script: str, *, check: bool = True) -> str:
        """Run a shell script as root on a host; its standard output, stripped."""
        code, output = self._try(host, script)
        assert not check or code == 0, f"{host}: {script!r}: exit {code}\n{output.decode()}"
        return output.decode().strip() if code == 0 else ""

    def exit_code(self, host: str, script: str) -> int:
        return self._try(host, script)[0]

    def _try(self, host: str, script: str) -> tuple[int, bytes]:
        if (shell := self._shells.get(host)) is not None:
            done = shell.run(script)
            if done[0] != HOST_IS_AWAY:
                return done
            shell.close()
        # None yet, or the host was switched off and perhaps on again since.
        shell = self._shells[host] = _Shell(self.command("exec", host, "sh"), self.environment)
        return shell.run(script)

    def _leave(self, hosts: Sequence[object]) -> None:
        """Close the shells on these hosts, or all: a host cannot go off while somebody from outside is in it."""
        for host in list(self._shells):
            if host in hosts or not hosts:
                self._shells.pop(host).close()

    def put(self, host: str, path: str, data: bytes | str) -> None:
        """Write a file on a host, in place."""
        self.run("exec", host, "sh", "-c", f"cat > {path}", input=data)


class Fleet(Lab):
    """Three hosts and a Redis, with modelsync installed and running."""

    # --- installing --------------------------------------------------------------------------------------------------

    def install(self, wheelhouse: Path) -> None:
        """Bring the hosts up and follow the guide on them; only the package index is a directory of wheels."""
        self.run("down")
        disk = ("--disk-image", 2048, "--bind-ro", f"{wheelhouse}:/srv/wheels")
        self.run("up", 3, *PACKAGES, "--redis", *disk, timeout_s=600)
        self.run("cp", ROOT / "config/redis.conf", "redis:/root/")
        self.run("cp", ROOT / "config/users.acl", "redis:/root/")
        passwords = f"PASSWORD={PASSWORD} ADMIN_PASSWORD={ADMIN_PASSWORD}"
        self.sh("redis", f"cd /root; {passwords}\n{REDIS_SCRIPT}")
        index = "export PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels"
        self.sh(HOSTS[0], f"cp /srv/wheels/modelsync-*.whl /root; cd /root; {index}\n{PROGRAM_SCRIPT}")
        for host in HOSTS[1:]:  # the same bytes at the same place: quicker than two more installs
            program = self.run("exec", HOSTS[0], "tar", "-C", "/opt", "-c", "modelsync").stdout
            self.run("exec", host, "tar", "-C", "/opt", "-x", input=program)
        for host in HOSTS:
            self.sh(host, f"{passwords}\n{UNIT_SCRIPT}")
            self.sh(host, "sync")  # the power cuts are to test the daemon, not pip

    def mend(self) -> None:
        """Whatever a test before has left: all on, all connected, all running, one primary, everyone in step."""
        if self.in_step():
            return
        self.run("heal")
        self.run("boot")
        self.sh("redis", "systemctl start redis-server")
        for host in HOSTS:
            self.sh(host, "systemctl reset-failed; systemctl start modelsyncd")
        self.await_step()

    # --- asking ------------------------------------------------------------------------------------------------------

    def redis(self, *words: object) -> str:
        """redis-cli on the Redis host, as its administrator."""
        client = f"redis-cli --no-auth-warning --user admin --pass {ADMIN_PASSWORD}"
        return self.sh("redis", f"{client} {shlex.join(map(str, words))}")

    def status(self, host: str = "h1") -> dict[str, Any]:
        """The status document as a host's daemon has it; empty if it does not answer."""
        answer = self.sh(host, "curl -sfm 5 http://localhost:8461/v1/status", check=False)
        return json.loads(answer) if answer else {}

    def in_step(self) -> bool:
        """One primary, three nodes seen by each other as well, and every model where it should be."""
        documents = [self.status(host) for host in HOSTS]
        return all(_in_step(document) for document in documents) and len({d["primary"] for d in documents}) == 1

    def await_step(self, timeout_s: float = 40.0) -> None:
        try:
            until(self.in_step, "a fleet in step", timeout_s, every_s=0.2)
        except AssertionError as error:
            seen = "\n".join(f"{host}: {json.dumps(self.status(host))}" for host in HOSTS)
            logs = "\n".join(self.journal(host)[-1500:] for host in HOSTS)
            raise AssertionError(f"{error}\n{seen}\n{logs}") from error

    def primary(self) -> str:
        return str(until(lambda: self.status().get("primary"), "a primary"))

    def replicas(self) -> list[str]:
        return [host for host in HOSTS if host != self.primary()]

    def live(self, host: str, model: str) -> str:
        """SHA-256 of what ``current`` holds on a host; that of nothing if it is not there."""
        return self.sh(host, f"cat {LIVE}/{model}/current/* | sha256sum")[:64]

    def live_on(self, hosts: tuple[str, ...] | list[str], model: str, data: bytes) -> bool:
        return all(self.live(host, model) == sha256(data) for host in hosts)

    def await_live(self, model: str, data: bytes, *, hosts: tuple[str, ...] = HOSTS, timeout_s: float = 10.0) -> None:
        until(lambda: self.live_on(hosts, model, data), f"{model} live on {', '.join(hosts)}", timeout_s)

    def history(self, model: str, host: str = "h1") -> list[dict[str, Any]]:
        return json.loads(self.sh(host, f"modelsync history {model} --json"))  # type: ignore[no-any-return]

    def journal(self, host: str) -> str:
        return self.sh(host, "journalctl --sync; journalctl -u modelsyncd -o cat --no-pager -n 300")

    # --- doing -------------------------------------------------------------------------------------------------------

    def publish(self, model: str, data: bytes, host: str = "h1", *options: str) -> dict[str, Any]:
        """``modelsync publish`` on a host; the file is named after the model."""
        self.put(host, f"/root/{model}.bin", data)
        words = ("modelsync", "publish", model, f"/root/{model}.bin", "--json", *options)
        return json.loads(self.sh(host, shlex.join(words)))  # type: ignore[no-any-return]


def _in_step(status: dict[str, Any]) -> bool:
    if not status or status["redis"] != "ok" or not status["primary"] or len(status["nodes"]) != len(HOSTS):
        return False
    lines = [node["models"].get(model["name"]) for node in status["nodes"] for model in status["models"]]
    return all(node["state"] == "ok" for node in status["nodes"]) and all(
        line is not None and line["active"] == line["wanted"] and line["state"] == "active" for line in lines
    )


# --- making it --------------------------------------------------------------------------------------------------------


def find_program() -> str:
    """Where fleetlab is. Raises CannotMakeHosts."""
    named = os.environ.get("MODELSYNC_FLEETLAB")
    for candidate in (named, shutil.which("fleetlab"), ROOT.parent / "shared/tools/fleetlab"):
        if candidate and os.access(candidate, os.X_OK):
            if os.geteuid() != 0:
                raise CannotMakeHosts("hosts can only be made by root")
            return str(candidate)
    raise CannotMakeHosts("no fleetlab: set MODELSYNC_FLEETLAB, or put it on PATH")


def make_wheelhouse(directory: Path) -> None:
    """The project's wheel and those it depends on, for the hosts' Python, which is Debian 12's 3.11.2."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _quietly(*pip, "wheel", "--no-deps", "--wheel-dir", directory, ROOT)
    (wheel,) = directory.glob("modelsync-*.whl")
    # pip judges markers by its own Python, and 3.11.3 was the first to do without async-timeout.
    options = ("--only-binary=:all:", "--python-version=3.11", "--dest", directory)
    _quietly(*pip, "download", *options, wheel, "async-timeout")


def _quietly(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def slot() -> Iterator[int]:
    """A number that no other run on this machine has now: it names the lab and its network."""
    for number in range(16):
        with open(f"/run/lock/modelsync-fleet-{number}", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number
            return
    raise CannotMakeHosts("sixteen other runs have hosts up")


@contextlib.contextmanager
def fleet(scratch: Path) -> Iterator[Fleet]:
    """A fleet that is up, and gone afterwards whatever happens. Raises CannotMakeHosts."""
    program = find_program()
    with slot() as number:
        made = Fleet(program, number)
        missing = made.run("deps", check=False)
        if missing.returncode:
            raise CannotMakeHosts(f"fleetlab lacks {missing.stdout.decode().strip() or missing.stderr.decode()}")
        if made.run("build", *PACKAGES, check=False, timeout_s=600).returncode:
            raise CannotMakeHosts("fleetlab cannot build the hosts' Debian: see `fleetlab build`")
        make_wheelhouse(scratch)
        try:
            made.install(scratch)
            yield made
        finally:
            made.run("down")
