"""The samples in config/: they parse, they show every key with its default, and Redis takes its two files."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from modelsync import config
from modelsync.config import Config
from modelsync.core.errors import ConfigurationFault
from modelsync.core.ids import FleetName, ModelName, NodeId
from modelsync.edges.redis.catalog import RedisCatalog
from modelsync.edges.redis.connect import connect
from modelsync.edges.redis.embedded import server_binary
from modelsync.edges.redis.lease import RedisLease
from modelsync.ports import Authority, LeaseView

SAMPLES = Path(__file__).parents[2] / "config"
FULL = SAMPLES / "modelsync.toml"
DENIED = r"(?i)no permission|can't (run this command|access at least one)|ACL failure"


def parsed(text: str, tmp_path: Path) -> Config:
    """Parse a sample; the secret files that it names stand in a folder of the test's."""
    for name in ("token", "redis-password", "redis-ca.pem", "store", "signing-key.pem"):
        (tmp_path / name).write_text("x" * 20)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "store").write_text("aws_access_key_id=a\naws_secret_access_key=b\n")
    text = text.replace("/etc/modelsync/", f"{tmp_path}/")
    return config.parse(text.replace("/run/credentials/modelsyncd.service/", f"{tmp_path}/"), "sample", "gpu-01")


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.toml")), ids=lambda path: str(path.name))
def test_every_sample_parses(path: Path, tmp_path: Path) -> None:
    parsed(path.read_text(), tmp_path)


def test_the_full_sample_shows_the_defaults(tmp_path: Path) -> None:
    shown = parsed(FULL.read_text(), tmp_path)
    smallest = config.parse(
        f'[fleet]\nname = "{shown.fleet.name}"\nredis = "{shown.fleet.redis}"\n', "smallest", "gpu-01"
    )
    assert config.differences(smallest, shown) == config.Differences((), ())


def test_the_full_sample_names_every_key_and_its_comments_are_legal(tmp_path: Path) -> None:
    text, section, shown = FULL.read_text(), "", set()
    for line in text.splitlines():
        if found := re.match(r"#?\[(\w+)", line):
            section = found.group(1)
        elif (found := re.match(r"#?([a-z_]+) = ", line)) and section != "pins":
            shown.add(f"{section}.{found.group(1)}")
    known = {
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(Config)
        if section.name != "pins"
        for key in dataclasses.fields(getattr(config, f"{section.name.capitalize()}Section"))
    }
    assert shown == known
    everything = re.sub(r"^#([a-z_]+ = |\[)", r"\1", text, flags=re.MULTILINE)
    made = parsed(everything.replace("redis://127", "rediss://127"), tmp_path)
    assert made.models.watch is not None
    assert made.security.token_file is not None
    assert made.pins == {"fraud": 12, "ranker": "stable"}
    assert made.keep(ModelName("fraud")) == 20


@pytest.mark.parametrize(
    "table",
    [
        "validate = { zzzz = 1 }",
        "health = { zzzz = 1 }",
        "gate = { zzzz = 1 }",
        *(
            f'hooks = [{{ kind = "{kind}", zzzz = 1 }}]'
            for kind in ("triton", "tfserving", "mlserver", "vllm", "sglang", "url", "command", "systemctl", "signal")
        ),
    ],
)
def test_the_full_sample_tells_of_every_key_of_the_tables_within(table: str) -> None:
    """The parser itself says which keys it knows, when it is given another."""
    with pytest.raises(ConfigurationFault) as refused:
        config.parse(f'[fleet]\nname = "f"\nredis = "redis://h"\n[model.m]\n{table}\n', "sample", "gpu-01")
    said = re.search(r"here are known: ([a-z_, ]+)", str(refused.value))
    assert said is not None, refused.value
    words = set(re.findall(r"[a-z_]+", FULL.read_text()))
    assert set(said.group(1).split(", ")) <= words


def test_the_marks_of_a_restart_are_true(tmp_path: Path) -> None:
    """Each key's comment says "restart" exactly if an edit of the key waits for one."""
    comment, section, marked = "", "", set()
    for line in FULL.read_text().splitlines():
        if not line:
            comment = ""
        elif found := re.match(r"#?\[(\w+)", line):
            section = found.group(1)
        elif found := re.match(r"#?([a-z_]+) = ", line):
            if "restart)" in comment:
                marked.add(f"{section}.{found.group(1)}")
            comment = ""
        elif line.startswith("# ") and "restart" not in comment:
            comment = line
    old = parsed(FULL.read_text(), tmp_path)
    other = (
        '[fleet]\nname = "o"\nredis = "rediss://o"\npoll_s = 1\n[node]\nid = "o"\nlisten = "1.1.1.1:1"\n'
        'advertise = "o:1"\nstate_dir = "/o/s"\nlive_dir = "/o/l"\nview_dir = "/o/v"\n'
        'role = "replica"\nserve_url = "http://o:2"\npriority = 1\nnofailover = true\nrack = "o"\nzone = "o"\n'
        'labels = ["o"]\n'
        '[models]\nwatch = "/o/m"\nsettle_s = 1\nkeep = 1\nkeep_days = 1\nscrub_days = 1\nscrub_bytes_per_s = 99999\n'
        'include = ["o"]\nexclude = ["o"]\n'
        "[lease]\nttl_s = 9\nheartbeat_s = 1\n[transfer]\nrate_limit_bytes_per_s = 1\nconcurrency = 1\n"
        'compression = "never"\n'
        '[security]\ntoken_file = "/etc/modelsync/token"\nredis_password_file = "/etc/modelsync/redis-password"\n'
        'redis_tls_ca_file = "/etc/modelsync/redis-ca.pem"\n'
        'signing_key_file = "/etc/modelsync/signing-key.pem"\n'
        'trusted_keys = ["ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]\n'
        '[storage]\nmode = "partitioned"\ncopies = 1\nurl = "s3://o"\ncredentials_file = "/etc/modelsync/store"\n'
        'cache_bytes = 1\nahead = ["o"]\ngrace_s = 61\nreplace_after_s = 1\nmoves = 1\n'
        "split_bytes = 1073741824\nleaving = true\n"
    )
    edited = config.differences(old, parsed(other, tmp_path))
    assert marked == set(edited.restart)
    keys = {
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(Config)
        if section.name not in ("pins", "model", "serve")
        for key in dataclasses.fields(getattr(config, f"{section.name.capitalize()}Section"))
    }
    assert set(edited.restart) | set(edited.live) == keys, "every key is edited"


# --- redis.conf and users.acl --------------------------------------------------------------------------------------


def servers() -> list[Path]:
    """The embedded Valkey, and Debian's Redis where it is installed: the oldest and the newest that are at hand."""
    found = shutil.which("redis-server")
    return [server_binary(), *([Path(found)] if found else [])]


def client(port: int, user: str | None) -> redis.Redis:
    return redis.Redis(port=port, username=user, password="pw" if user else None, retry=Retry(NoBackoff(), 0))


@pytest.fixture(params=servers(), ids=lambda path: str(path.name))
def port(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """The samples as they are, but for the passwords, the port and the directories."""
    digest = hashlib.sha256(b"pw").hexdigest()
    acl = tmp_path / "users.acl"
    acl.write_text(re.sub(r"^(user \w+ on)", rf"\1 #{digest}", (SAMPLES / "users.acl").read_text(), flags=re.MULTILINE))
    # chdir happens as the file is read, so the directory cannot be overridden behind it.
    settings = tmp_path / "redis.conf"
    settings.write_text((SAMPLES / "redis.conf").read_text().replace("dir /var/lib/redis", f"dir {tmp_path}"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    overrides = ["--port", str(number), "--aclfile", str(acl)]
    log = (tmp_path / "log").open("wb")
    child = subprocess.Popen([request.param, settings, *overrides], stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        for _ in range(500):
            assert child.poll() is None, (tmp_path / "log").read_text()
            try:
                client(number, "admin").ping()
                break
            except redis.ConnectionError:
                time.sleep(0.01)
        yield number
    finally:
        child.terminate()
        child.wait(10)
        log.close()


async def test_a_daemon_can_do_its_work_and_nothing_else(port: int) -> None:
    fleet, url = FleetName("prod"), f"redis://modelsync:pw@127.0.0.1:{port}/0"
    lease = RedisLease(connect(url), fleet, NodeId("n1"), "http://n1")
    epoch = await lease.acquire(LeaseView(), "nonce", 0)
    assert epoch == 1
    grant = Authority(1, NodeId("n1"), "nonce")
    assert await lease.renew(grant, 1) is None
    assert await lease.reassert(grant, 2) is not None
    await lease.release(grant)
    catalog = RedisCatalog(connect(url), fleet)
    await catalog.tail()
    assert await catalog.model_names() == []
    await lease.close()
    await catalog.close()

    mine = client(port, "modelsync")
    key = "modelsync:{prod}:node:n1"
    mine.hset(key, "a", "1")
    mine.expire(key, 10)
    assert mine.pttl(key) > 0
    mine.sadd("modelsync:{prod}:nodes", "n1")
    mine.lpush("modelsync:{prod}:answers", "x")
    mine.ltrim("modelsync:{prod}:answers", 0, 9)
    subscription = mine.pubsub()
    subscription.subscribe("modelsync:{prod}:events", "modelsync:{prod}:control")
    mine.publish("modelsync:{prod}:events", "{}")
    refused = {str(entry["object"]) for entry in client(port, "admin").acl_log()}
    assert refused <= {"client|setinfo"}, "nothing is refused but redis-py's telling of its own version"

    for command in (
        ("HGETALL", "modelsync:{test}:lease"),
        ("SET", "other", "1"),
        ("PUBLISH", "modelsync:{test}:events", "x"),
        ("SUBSCRIBE", "other"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("SHUTDOWN", "NOSAVE"),
        ("REPLICAOF", "NO", "ONE"),
    ):
        with pytest.raises(redis.ResponseError, match=DENIED):
            client(port, "modelsync").execute_command(*command)


def test_an_operator_reads_and_asks_and_cannot_write(port: int) -> None:
    operator = client(port, "operator")
    client(port, "modelsync").hset("modelsync:{prod}:lease", "epoch", "1")
    assert operator.hgetall("modelsync:{prod}:lease") == {b"epoch": b"1"}
    assert operator.xrange("modelsync:{prod}:log") == []
    assert operator.publish("modelsync:{prod}:control", "pin fraud 12") == 0
    for command in (("HSET", "modelsync:{prod}:lease", "epoch", "9"), ("FLUSHALL",), ("KEYS", "*"), ("EVAL", "", "0")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client(port, "operator").execute_command(*command)


def test_nobody_comes_in_without_a_name(port: int) -> None:
    with pytest.raises(redis.AuthenticationError):
        client(port, None).ping()


def test_the_settings_are_in_force(port: int) -> None:
    settings = client(port, "admin").config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["save"] == ""
    assert settings["protected-mode"] == "yes"
    assert settings["bind"] == "127.0.0.1 -::1"
