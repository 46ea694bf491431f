"""A Redis that asks for TLS, and one whose users have the rights of the shipped ACL: daemons come up and publish."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import FLEET, Daemon, free_port, until
from tests.integration.terms import Ledger, in_step

from modelsync.edges.redis.embedded import server_binary

ACL = Path(__file__).parents[2] / "config" / "users.acl"
PASSWORD = "for-tests-only"


@contextlib.contextmanager
def running(program: str, directory: Path, *words: str) -> Iterator[None]:
    with (directory / "redis.log").open("wb") as log:
        server = subprocess.Popen([program, "--dir", str(directory), "--save", "", *words], stdout=log, stderr=log)
    try:
        yield
    finally:
        server.kill()
        server.wait(10)


@contextlib.contextmanager
def pair(root: Path, url: str, security: str) -> Iterator[list[Daemon]]:
    made = [Daemon(name, root, url, security) for name in ("alpha", "beta")]
    try:
        for daemon in made:
            daemon.start()
        until(lambda: in_step(made), "a fleet in step")
        yield made
    finally:
        for daemon in made:
            daemon.end()


def publishes(daemons: list[Daemon]) -> None:
    ledger = Ledger()
    for data in (b"1", b"2"):
        ledger.await_accepted(daemons, "m", data)
    for daemon in daemons:
        until(lambda d=daemon: d.active("m") == 2, f"the model on {daemon.name}\n{daemon.tail()}")
    old = next(daemon for daemon in daemons if ledger.publish(daemon, "m", b"3")[0] == 201)
    old.kill()
    assert ledger.await_accepted([d for d in daemons if d is not old], "m", b"4")["version"] == 4


def openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


def certificates(directory: Path) -> None:
    """An authority of our own, and a certificate for 127.0.0.1 that it has signed."""
    subject = ["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj"]
    openssl(directory, "req", "-x509", *subject, "/CN=the tests' authority", "-keyout", "ca.key", "-out", "ca.crt")
    openssl(directory, "req", *subject, "/CN=redis", "-keyout", "redis.key", "-out", "redis.csr")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signed_by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl(directory, "x509", "-req", "-in", "redis.csr", *signed_by, "-out", "redis.crt")


def test_tls_with_an_authority_of_our_own(tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("needs redis-server and openssl (Debian: redis-server, openssl); the embedded server has no TLS")
    certificates(tmp_path)
    port = free_port()
    files = ["--tls-cert-file", "redis.crt", "--tls-key-file", "redis.key", "--tls-ca-cert-file", "ca.crt"]
    words = ["--port", "0", "--tls-port", str(port), *files, "--tls-auth-clients", "no"]
    url = f"rediss://127.0.0.1:{port}/0"
    with running(program, tmp_path, *words):
        trusted = f'[security]\nredis_tls_ca_file = "{tmp_path / "ca.crt"}"\n'
        with pair(tmp_path / "trusting", url, trusted) as daemons:
            publishes(daemons)
        stranger = Daemon("stranger", tmp_path, url).start()
        try:
            until(stranger.alive, "it to come up without Redis")
            until(lambda: "certificate" in stranger.status()["redis"].lower(), "it to say what it does not trust")
            assert "security.redis_tls_ca_file" in stranger.status()["redis"]
        finally:
            stranger.end()


def test_the_user_of_the_shipped_acl(tmp_path: Path) -> None:
    secret = hashlib.sha256(PASSWORD.encode()).hexdigest()
    lines = ACL.read_text().replace("{prod}", f"{{{FLEET}}}").splitlines()
    users = [line.replace("user modelsync on", f"user modelsync on #{secret}") for line in lines]
    (tmp_path / "users.acl").write_text("\n".join(line for line in users if line.startswith("user ")) + "\n")
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    (tmp_path / "password").chmod(0o400)
    port = free_port()
    words = ["--port", str(port), "--bind", "127.0.0.1", "--aclfile", str(tmp_path / "users.acl")]
    security = f'[security]\nredis_password_file = "{tmp_path / "password"}"\n'
    with (
        running(shutil.which("redis-server") or str(server_binary()), tmp_path, *words),
        pair(tmp_path / "daemons", f"redis://modelsync@127.0.0.1:{port}/0", security) as daemons,
    ):
        publishes(daemons)
        for daemon in daemons:
            assert "NOPERM" not in daemon.log.read_text()
