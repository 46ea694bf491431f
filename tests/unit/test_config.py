"""The configuration file: what each fault says, what is found at once, and what an edit changes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from modelsync import config
from modelsync.config import Address, Config, secret_files
from modelsync.config.addresses import url_for_others
from modelsync.core.errors import ConfigurationFault
from modelsync.core.ids import ModelName

SMALL = '[fleet]\nname = "prod"\nredis = "redis://10.0.0.5:6379/0"\n'


def parsed(text: str, hostname: str = "gpu-01.example.net") -> Config:
    return config.parse(text, "test.toml", hostname)


def faults_of(text: str, hostname: str = "gpu-01") -> tuple[str, ...]:
    with pytest.raises(ConfigurationFault) as caught:
        parsed(text, hostname)
    assert caught.value.source == "test.toml"
    assert caught.value.exit_code == 3
    return caught.value.faults


def only_fault_of(text: str) -> str:
    faults = faults_of(text)
    assert len(faults) == 1, faults
    return faults[0]


# --- what is right ------------------------------------------------------------------------------------------------


def test_two_keys_are_enough_and_the_rest_has_defaults() -> None:
    made = parsed(SMALL)
    assert made.fleet == config.FleetSection("prod", "redis://10.0.0.5:6379/0", 5.0)  # type: ignore[arg-type]
    assert made.node.id == "gpu-01"
    assert made.node.listen == Address("127.0.0.1", 8461)
    assert made.node.advertise == "http://127.0.0.1:8461"
    assert (made.node.state_dir, made.node.live_dir) == (
        Path("/var/lib/modelsync/state"),
        Path("/var/lib/modelsync/live"),
    )
    assert (made.node.role, made.node.priority, made.node.nofailover) == ("auto", 100, False)
    assert made.models == config.ModelsSection(None, 2.0, 5, 0.0, 7.0, 16 << 20, ("*",), ())
    assert made.lease == config.LeaseSection(3.0, 0.25)
    assert made.transfer == config.TransferSection(0, 4)
    assert made.security == config.SecuritySection()
    assert dict(made.pins) == {}
    assert dict(made.model) == {}


def test_every_key_arrives() -> None:
    made = parsed(
        """
        [fleet]
        name = "prod"
        redis = "sentinel://10.0.0.1:26379,10.0.0.2,[fd00::1]:26379/mymaster"
        poll_s = 1
        [node]
        id = "n1"
        listen = "[::1]:9000"
        advertise = "n1.example.net:9001"
        state_dir = "/srv/state"
        live_dir = "/srv/live"
        role = "replica"
        priority = 7
        nofailover = true
        [models]
        watch = "/srv/models"
        settle_s = 0.5
        keep = 9
        include = ["fraud*"]
        exclude = ["fraud-test*"]
        [lease]
        ttl_s = 1.0
        heartbeat_s = 0.25
        [transfer]
        rate_limit_bytes_per_s = 1_000_000
        concurrency = 2
        [storage]
        mode = "replicated"
        [pins]
        fraud = 12
        ranker = "stable"
        "with.dot" = 3
        [model.fraud]
        keep = 20
        """
    )
    assert made.fleet.poll_s == 1.0
    assert isinstance(made.fleet.poll_s, float)
    assert made.node.listen == Address("::1", 9000)
    assert str(made.node.listen) == "[::1]:9000"
    assert made.node.advertise == "http://n1.example.net:9001"
    assert made.models.watch == Path("/srv/models")
    assert (made.models.include, made.models.exclude) == (("fraud*",), ("fraud-test*",))
    assert made.transfer == config.TransferSection(1_000_000, 2)
    assert made.pins == {"fraud": 12, "ranker": "stable", "with.dot": 3}
    assert made.keep(ModelName("fraud")) == 20
    assert made.keep(ModelName("other")) == 9


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/3",
        "redis://user@h",
        "redis://user:pass@h:1/0",
        "rediss://[fd00::1]:6380/0",
        "unix:///run/redis/redis.sock",
        "sentinel://h1/m",
        "sentinel://u@h1:26379,h2,h3/prod-master",
        "sentinel://h1/m/3?tls=true&sentinel_password=x",
        "redis://h?db=1&password_file=/etc/modelsync/redis",
        "unix:///run/redis.sock?db=2",
        "embedded",
    ],
)
def test_legal_redis_urls(url: str) -> None:
    assert parsed(f'[fleet]\nname = "f"\nredis = "{url}"\n').fleet.redis == url


def test_a_wildcard_listener_is_advertised_by_the_hosts_name() -> None:
    for listen in ("0.0.0.0:8461", "[::]:8461"):
        made = parsed(SMALL + f'[node]\nlisten = "{listen}"\n')
        assert made.node.advertise == "http://gpu-01.example.net:8461"
        made = parsed(SMALL + f'[node]\nlisten = "{listen}"\nadvertise = "http://10.0.0.7:80"\n')
        assert made.node.advertise == "http://10.0.0.7:80"


def test_a_byte_order_mark_and_comments_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf# prod\n" + SMALL.encode())
    assert config.load(path).fleet.name == "prod"


def test_a_config_cannot_be_changed() -> None:
    made = parsed(SMALL + "[pins]\nfraud = 1\n")
    with pytest.raises(FrozenInstanceError):
        made.fleet.poll_s = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.pins["fraud"] = 2  # type: ignore[index]


# --- what is wrong: one line of the table a fault -----------------------------------------------------------------

PUBLIC_KEY = f"ed25519:{'A' * 43}="

WRONG: Mapping[str, tuple[str, str]] = {
    "unknown key": ("[lease]\nttl = 3\n", "lease.ttl: unknown key; did you mean ttl_s?"),
    "unknown key without likeness": (
        "[lease]\nzzz = 3\n",
        "lease.zzz: unknown key; here are known: heartbeat_s, ttl_s",
    ),
    "unknown section": ("[leese]\nttl_s = 3\n", "leese: unknown key; did you mean lease?"),
    "key of another section": ("[models]\nttl_s = 3\n", "models.ttl_s: unknown key; it belongs in [lease]"),
    "unknown key of a model": ("[model.m]\nkep = 1\n", "model.m.kep: unknown key; did you mean keep?"),
    "section that is a value": ("node = 3\n", "node: is a whole number (3); a section, [node], would be right"),
    "list of sections": ("[[node]]\nid = 'a'\n", "node: is a list; a section, [node], would be right"),
    "text for a number": ('[lease]\nttl_s = "3s"\n', 'lease.ttl_s: is a text ("3s"); a plain number from'),
    "bool for an int": ("[node]\npriority = true\n", "node.priority: is true or false (true); a whole number from"),
    "bool for a float": ("[models]\nsettle_s = false\n", "models.settle_s: is true or false (false); a plain number"),
    "float for an int": ("[models]\nkeep = 5.0\n", "models.keep: is a number (5.0); a whole number from 1 to 10000"),
    "int for a bool": ("[node]\nnofailover = 1\n", "node.nofailover: is a whole number (1); true or false would"),
    "int for a text": ("[node]\nid = 7\n", "node.id: is a whole number (7); a text would be right"),
    "date for a number": ("[models]\nkeep = 2024-01-01\n", "models.keep: is a date or time (2024-01-01); a whole"),
    "table for a number": ("[models.keep]\na = 1\n", "models.keep: is a table; a whole number"),
    "nan": ("[lease]\nttl_s = nan\n", "lease.ttl_s: is nan; a plain number from 0.1 to 600"),
    "infinity": ("[models]\nsettle_s = inf\n", "models.settle_s: is inf; a plain number"),
    "negative": ("[models]\nsettle_s = -1\n", "models.settle_s: is -1; a plain number from 0.05"),
    "negative int": ("[transfer]\nrate_limit_bytes_per_s = -1\n", "transfer.rate_limit_bytes_per_s: is -1;"),
    "too large": ("[transfer]\nconcurrency = 65\n", "transfer.concurrency: is 65; a whole number f"),
    "zero": ("[models]\nkeep = 0\n", "models.keep: is 0; a whole number from 1 to 10000"),
    "huge": (f"[models]\nkeep = {10**30}\n", "models.keep: is 1000"),
    "lease too short": (
        "[lease]\nttl_s = 0.9\n",
        "lease.ttl_s: is 0.9 with lease.heartbeat_s 0.25; at least four heartbeats, 1, would be right",
    ),
    "choice": ('[node]\nrole = "primary"\n', 'node.role: is "primary"; "auto" or "replica" would be right'),
    "shared without a store": ('[storage]\nmode = "shared"\n', 'storage.mode: is "shared", and storage.url names no'),
    "a shared model without a store": ('[model.m]\nmode = "shared"\n', 'model.m.mode: is "shared", and'),
    "a store of another kind": ('[storage]\nurl = "ftp://h/x"\n', 'storage.url: is "ftp://h/x"; s3://'),
    "a store with a secret": ('[storage]\nurl = "s3://me:pw@b"\n', 'storage.url: is "hidden"; cred'),
    "a model of no mode": ('[model.m]\nmode = "raid"\n', 'model.m.mode: is "raid"; "replicated" or "shared"'),
    "storage nonsense": ('[storage]\nmode = "raid"\n', 'storage.mode: is "raid"; "replicated" or "shared"'),
    "no copies": ("[storage]\ncopies = 0\n", "storage.copies: is 0; a whole number from 1 to 16"),
    "node id": ('[node]\nid = "a b"\n', "node.id: 'a b' is not a legal node id: 1 to 128 of"),
    "node id like a temporary file": ('[node]\nid = "a.tmp"\n', "node.id: 'a.tmp' is not a legal node id"),
    "listen without a port": ('[node]\nlisten = "127.0.0.1"\n', 'node.listen: is "127.0.0.1"; HOST:PORT'),
    "listen on port 0": ('[node]\nlisten = "127.0.0.1:0"\n', 'node.listen: is "'),
    "listen on a high port": ('[node]\nlisten = "127.0.0.1:65536"\n', 'node.listen: is "'),
    "listen on half an address": ('[node]\nlisten = "10.0.0:80"\n', 'node.listen: is "'),
    "listen on bare IPv6": ('[node]\nlisten = "::1:8461"\n', 'node.listen: is "'),
    "advertise nowhere": ('[node]\nadvertise = "http://0.0.0.0:1"\n', "no other host can reach 0.0.0.0"),
    "advertise a path": ('[node]\nadvertise = "http://h:1/x"\n', 'node.advertise: is "'),
    "advertise half a bracket": ('[node]\nadvertise = "http://[::1"\n', 'node.advertise: is "'),
    "advertise another scheme": ('[node]\nadvertise = "ftp://h:1"\n', 'node.advertise: is "'),
    "relative path": ('[node]\nstate_dir = "state"\n', 'node.state_dir: is "state"; an absolute path'),
    "path with ..": ('[node]\nstate_dir = "/a/../b"\n', 'node.state_dir: is "'),
    "path with NUL": ('[node]\nstate_dir = "/a\\u0000b"\n', 'node.state_dir: is "'),
    "one directory twice": ('[node]\nlive_dir = "/var/lib/modelsync/state"\n', "node.live_dir: /var/lib/modelsync"),
    "watching our own store": ('[models]\nwatch = "/var/lib/modelsync"\n', "models.watch: /var/lib/modelsync and"),
    "patterns as one text": ('[models]\ninclude = "a*"\n', 'models.include: is a text ("a*"); a list of patterns'),
    "patterns of numbers": ("[models]\nexclude = [1]\n", "models.exclude: holds something else than texts"),
    "pin of an illegal name": ('[pins]\n"../x" = 1\n', "pins.\"../x\": '../x' is not a legal model name"),
    "pin to zero": ("[pins]\nm = 0\n", "pins.m: 0 is not a legal version"),
    "pin to a float": ("[pins]\nm = 1.5\n", "pins.m: is a number (1.5); a version, such as 12, or an alias"),
    "pin to a bool": ("[pins]\nm = true\n", "pins.m: is true or false (true); a version, such as 12"),
    "pin to a quoted version": ('[pins]\nm = "12"\n', 'pins.m: is "12"; a version without quotes, 12'),
    "pin to an illegal alias": ('[pins]\nm = "a b"\n', "pins.m: 'a b' is not a legal alias"),
    "pin of a dotted name": ("[pins]\na.b = 1\n", "pins.a: is a table; a version or an alias would be right; a name"),
    "model that is a value": ("[model]\nm = 3\n", "model.m: is a whole number (3); a section, [model.m],"),
    "model of an illegal name": ('[model."a b"]\nkeep = 3\n', "model.\"a b\": 'a b' is not a legal model name"),
    "control characters": ('[lease]\n"\\u001b[2J" = 1\n', 'lease."\\u001b[2J": unknown key'),
    "missing token file": ('[security]\ntoken_file = "/no/t"\n', "security.token_file: /no/t cannot be read: No such"),
    "missing signing key": (
        '[security]\nsigning_key_file = "/no/k"\n',
        "security.signing_key_file: /no/k cannot be read",
    ),
    "no key at all": ("[security]\ntrusted_keys = []\n", "security.trusted_keys: names no key, so that nothing"),
    "trusted key as a text": (
        f'[security]\ntrusted_keys = "{PUBLIC_KEY}"\n',
        "security.trusted_keys: is a text",
    ),
    "trusted key cut off": (
        f'[security]\ntrusted_keys = ["{PUBLIC_KEY[:-2]}"]\n',
        "security.trusted_keys: 'ed25519:AAAA",
    ),
    "missing authority": (
        '[security]\nredis_tls_ca_file = "/no/ca"\n',
        "security.redis_tls_ca_file: /no/ca is not a file that this user can read",
    ),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_each_fault_names_its_key_and_what_would_be_right(case: str) -> None:
    text, expected = WRONG[case]
    faults = faults_of(text + SMALL)
    assert any(expected in fault for fault in faults), faults
    key = expected.partition(":")[0]
    extra = [fault for fault in faults if not fault.startswith(key) and "missing authority" not in case]
    assert expected.startswith("no other") or extra == [], "one mistake is told once"
    assert not any("\x1b" in fault for fault in faults)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://h",
        "redis://",
        "redis://h:0",
        "redis://h:x",
        "redis://h/zero",
        "redis://h?tls=true",
        "redis://h?db",
        "redis://h#1",
        "redis://h h",
        "sentinel://h1/m/zero",
        "unix://run/redis.sock",
        "unix:///",
        "sentinel://h1,h2",
        "sentinel://h1,,h2/m",
        "sentinel:///m",
        "Embedded",
        "10.0.0.5:6379",
        "redis://[::1",
    ],
)
def test_illegal_redis_urls(url: str) -> None:
    fault = only_fault_of(f'[fleet]\nname = "f"\nredis = "{url}"\n')
    assert fault.startswith("fleet.redis: is")
    assert "redis://HOST:6379/0" in fault or "after the question mark, db=" in fault


def test_a_password_in_a_wrong_url_is_not_shown() -> None:
    for url in (
        "rdis://:hunter2@h",
        "redis://u:hunter2@h:x/",
        "redis://:hun:ter2@hunter2@h:x",
        "sentinel://h?sentinel_password=hunter2",
    ):
        fault = only_fault_of(f'[fleet]\nname = "f"\nredis = "{url}"\n')
        assert "hunter2" not in fault
        assert "***" in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        (" \n\t\n", "the file is empty"),
        ("# only a comment\n", 'fleet.name: is missing; a name that all nodes of the fleet share, such as "prod",'),
        (SMALL + "[node\n", "line 4, column 6: Expected ']'"),
        (SMALL + 'name = "again"\n', "line 4, column 15: this key or section was given before"),
        (SMALL + '[fleet]\nname = "again"\n', "line 4, column 7: this key or section was given before"),
        ('[fleet]\nname = "pro', "at the end of the file: Unterminated string"),
        (SMALL + "[lease]\nttl_s = 3s\n", "line 5, column 10: "),
        (SMALL + "a = " + "[" * 100_000, "the document is nested too deeply"),
        (SMALL + "[models]\nkeep = " + "9" * 5000, "syntax: Exceeds the limit"),
    ],
)
def test_a_document_that_is_not_toml(text: str, expected: str) -> None:
    assert any(fault.startswith(expected) for fault in faults_of(text)), faults_of(text)


def test_everything_wrong_is_reported_at_once() -> None:
    faults = faults_of(
        """
        [fleet]
        redis = "nowhere"
        pol_s = 3
        [node]
        role = "boss"
        [lease]
        ttl_s = nan
        [pins]
        "a/b" = -1
        """
    )
    assert [fault.partition(":")[0] for fault in faults] == [
        "fleet.name",
        "fleet.redis",
        "fleet.pol_s",
        "node.role",
        "lease.ttl_s",
        'pins."a/b"',
        'pins."a/b"',
    ]


def test_a_hundred_thousand_faults_are_bounded_in_text_and_time() -> None:
    started = time.monotonic()
    faults = faults_of(SMALL + "[lease]\n" + "".join(f"k{i} = 1\n" for i in range(50_000)))
    assert len(faults) == 51
    assert faults[-1] == "and 49950 more faults like these"
    assert time.monotonic() - started < 10


def test_a_host_name_that_is_no_node_id_asks_for_one() -> None:
    faults = faults_of(SMALL + '[node]\nlisten = "0.0.0.0:8461"\n', hostname="_bad_host")
    assert "node.id" in " ".join(faults)
    assert "set node.advertise" in " ".join(faults)


# --- the file itself -----------------------------------------------------------------------------------------------


def load_faults(path: Path) -> str:
    with pytest.raises(ConfigurationFault) as caught:
        config.load(path)
    assert caught.value.source == str(path)
    return " ".join(caught.value.faults)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    assert "No such file" in load_faults(path)
    path.write_bytes(SMALL.encode() + b"[node]\nid = '\xff'\n")
    assert load_faults(path) == "line 5: byte 69 is not UTF-8"
    path.write_bytes(SMALL.encode() + b"#" * (1024 * 1024))
    assert load_faults(path) == "the file is larger than 1 MiB"
    path.write_bytes(b"")
    assert load_faults(path) == "the file is empty"
    assert "not a regular file" in load_faults(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in load_faults(tmp_path / "fifo")


def secret(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_secret_is_read_without_its_line_feed(tmp_path: Path) -> None:
    path = secret(tmp_path / "t", b"abc-123\n", 0o640)
    assert config.read_secret(path, "security.token_file") == "abc-123"
    assert parsed(SMALL + f'[security]\ntoken_file = "{path}"\n').security.token_file == path


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        (b"hunter2", 0o644, "has mode 0644, so others can read or change the secret; chmod 600 would be right"),
        (b"hunter2", 0o660, "has mode 0660"),
        (b"", 0o600, "does not hold one line"),
        (b"hunter2\nmore\n", 0o600, "does not hold one line"),
        (b"hunter2 x", 0o600, "does not hold one line"),
        (b"\xffhunter2", 0o600, "cannot be read: 'utf-8' codec"),
        (b"hunter2" * 1000, 0o600, "does not hold one line"),
    ],
)
@pytest.mark.parametrize("key", ["token_file", "redis_password_file"])
def test_secrets_that_cannot_be_used(tmp_path: Path, key: str, content: bytes, mode: int, expected: str) -> None:
    path = secret(tmp_path / "t", content, mode)
    fault = only_fault_of(SMALL + f'[security]\n{key} = "{path}"\n')
    assert fault.startswith(f"security.{key}: {path} {expected}")
    assert "hunter2" not in fault
    with pytest.raises(ConfigurationFault, match="security"):
        config.read_secret(path, f"security.{key}")


def test_a_password_in_a_url_needs_a_private_file_and_stands_alone(tmp_path: Path) -> None:
    path = secret(tmp_path / "c.toml", b'[fleet]\nname = "f"\nredis = "redis://:pw@h"\n', 0o644)
    assert "everyone can read this file" in load_faults(path)
    path.chmod(0o640)
    assert config.load(path).fleet.redis == "redis://:pw@h"
    both = path.read_text() + f'[security]\nredis_password_file = "{secret(tmp_path / "p", b"pw")}"\n'
    assert "gives a password too" in only_fault_of(both)


def test_a_certificate_authority_needs_tls(tmp_path: Path) -> None:
    authority = secret(tmp_path / "ca.pem", b"x", 0o644)
    tail = f'[security]\nredis_tls_ca_file = "{authority}"\n'
    assert "only used with rediss://" in only_fault_of(SMALL + tail)
    for url in ("rediss://10.0.0.5:6379/0", "sentinel://h1,h2/m?tls=true"):
        made = parsed(SMALL.replace("redis://10.0.0.5:6379/0", url) + tail)
        assert made.security.redis_tls_ca_file == authority


# --- an edit -------------------------------------------------------------------------------------------------------


def test_what_an_edit_changed_and_how_much_of_it_is_live() -> None:
    old = parsed(SMALL + "[pins]\na = 1\nb = 2\n[models]\nkeep = 3\n")
    new = parsed(
        SMALL.replace("prod", "test")
        + 'poll_s = 1\n[pins]\nb = "stable"\n"c.d" = 1\n[model.m]\nkeep = 9\n'
        + '[node]\nlisten = "127.0.0.1:9999"\npriority = 1\nnofailover = true\n'
        + '[lease]\nttl_s = 4\n[models]\nwatch = "/srv/m"\nkeep = 4\n[transfer]\nconcurrency = 9\n'
    )
    found = config.differences(old, new)
    assert found.live == (
        "fleet.poll_s",
        "model.m.keep",
        "models.keep",
        "node.nofailover",
        "node.priority",
        'pins."c.d"',
        "pins.a",
        "pins.b",
        "transfer.concurrency",
    )
    assert found.restart == ("fleet.name", "lease.ttl_s", "models.watch", "node.advertise", "node.listen")
    assert config.differences(old, old) == config.Differences((), ())

    merged = config.in_force(old, new)
    assert config.differences(old, merged) == config.Differences(found.live, ())
    assert config.differences(merged, new) == config.Differences((), found.restart)


@pytest.mark.parametrize(
    ("url", "advertise", "expected"),
    [
        ("redis://:p%40w@0.0.0.0:8462/0", "http://gpu-01:8461", "redis://:p%40w@gpu-01:8462/0"),
        ("redis://[::]:8462/0", "http://[2001:db8::7]:8461", "redis://[2001:db8::7]:8462/0"),
        ("redis://127.0.0.1:8462/0", "http://127.0.0.1:8461", "redis://127.0.0.1:8462/0"),
        ("redis://redis.example.net:6379/0", "http://gpu-01:8461", "redis://redis.example.net:6379/0"),
        ("unix:///run/redis.sock", "http://gpu-01:8461", "unix:///run/redis.sock"),
        ("sentinel://a,b,c/main", "http://gpu-01:8461", "sentinel://a,b,c/main"),
    ],
)
def test_a_url_that_others_can_use(url: str, advertise: str, expected: str) -> None:
    assert url_for_others(url, advertise) == expected


def test_a_credential_of_a_service_that_does_not_run_is_said() -> None:
    fault = secret_files.secret_fault(Path("/run/credentials/none.service/token"))
    assert fault is not None and "while the service runs" in fault
    assert "service" not in str(secret_files.secret_fault(Path("/nonexistent/token")))
