"""Content trust (FAULTS 35): what nobody who is trusted has signed is never pulled and never run, whoever wrote it."""

from __future__ import annotations

import http.client
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from blake3 import blake3
from tests.integration.daemons import FLEET, Daemon, Fleet, until
from tests.integration.terms import QUICK_LEASE, Ledger, in_step, primary_of

from modelsync.core import signing
from modelsync.core.ids import Digest, FleetName
from modelsync.core.signing import PublicKey, Signature
from modelsync.edges.host import ed25519
from modelsync.edges.host.ed25519 import Ed25519Signer

NAMES = ("alpha", "beta", "gamma")
Record = dict[str, Any]
"""One ``v:N``."""


def security(key_file: Path | None, trusted: list[PublicKey]) -> str:
    key = f'signing_key_file = "{key_file}"\n' if key_file else ""
    keys = f"trusted_keys = {json.dumps([f'{key} of somebody' for key in trusted])}\n" if trusted else ""
    return f"{QUICK_LEASE}[security]\n{key}{keys}"


class SignedFleet(Fleet):
    """Three daemons, each with a key of its own and the trust of all; and somebody who can write to Redis."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ledger = Ledger()
        self.keys = {name: root / f"{name}.pem" for name in (*NAMES, "eve")}
        self.public = {name: ed25519.new_key(path) for name, path in self.keys.items()}
        for name in NAMES:
            self.add(name, self.sections(name), wait=name == NAMES[0])
        until(lambda: in_step(self.daemons), "a fleet in step")

    def sections(self, name: str, without: str = "") -> str:
        return security(self.keys[name], [self.public[one] for one in NAMES if one != without])

    def signer(self, name: str) -> Ed25519Signer:
        return ed25519.load_signer(self.keys[name])

    @property
    def primary(self) -> Daemon:
        return until(lambda: primary_of(self.daemons), "a primary")

    @property
    def replicas(self) -> list[Daemon]:
        return self.without(self.primary)

    def without(self, gone: Daemon) -> list[Daemon]:
        return [daemon for daemon in self.daemons if daemon is not gone]

    def publish(self, model: str, **files: bytes) -> None:
        """A directory renamed into the models directory, and live everywhere."""
        primary, beside = self.primary, self.root / "beside"
        beside.mkdir()
        for name, data in files.items():
            (beside / name).write_bytes(data)
        shutil.rmtree(primary.models / model, ignore_errors=True)
        beside.rename(primary.models / model)
        for daemon in self.daemons:
            until(lambda d=daemon: contents(d, model) == files, f"{model} on {daemon.name}\n{self.primary.tail()}")

    def record(self, model: str, number: int) -> Record:
        found: Record = json.loads(self.redis.hget(self.key(f"model:{model}"), f"v:{number}") or "{}")
        return found

    def manifest(self, model: str, number: int) -> dict[str, Any]:
        path = self.primary.state / "manifests" / self.record(model, number)["digest"].removeprefix("b3:")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def forge(self, model: str, number: int, record: Record, data: bytes = b"") -> None:
        """What a primary writes at a publish, written by somebody who has Redis alone."""
        tail = self.redis.xrevrange(self.key("log"), count=1)[0][0]
        epoch, _, seq = tail.partition("-")
        at = f"{epoch}-{int(seq) + 1}"
        fields = {"id": at, "head": number, "desired": number, f"v:{number}": json.dumps(record)}
        self.redis.hset(self.key(f"model:{model}"), mapping=fields)
        entry = {
            "kind": "published",
            "model": model,
            "version": number,
            "digest": record["digest"],
            "by": "",
            "note": "",
        }
        self.redis.xadd(self.key("log"), {**entry, **({"manifest": data.decode()} if data else {})}, id=at)
        self.redis.publish(self.key("events"), '{"event": "version.published"}')


def contents(daemon: Daemon, model: str) -> dict[str, bytes]:
    tree = daemon.tree(model)
    return {} if tree is None else {path.name: path.read_bytes() for path in tree.iterdir()}


def line(daemon: Daemon, model: str) -> dict[str, Any]:
    """What a host says of a model."""
    node = next(node for node in daemon.status()["nodes"] if node["id"] == daemon.name)
    found: dict[str, Any] = node["models"].get(model, {})
    return found


def alarms(daemon: Daemon) -> str:
    own = next(node for node in daemon.status()["nodes"] if node["id"] == daemon.name)
    return " | ".join(own.get("alarms", ()))


def encoded(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(data: bytes) -> str:
    return f"b3:{blake3(data).hexdigest()}"


def signed(signer: Ed25519Signer, digest: str, fleet: str = FLEET) -> str:
    message = signing.signed_bytes(FleetName(fleet), Digest.parse(digest))
    return str(Signature(signer.public.id, signer.sign(message)))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedFleet]:
    made = SignedFleet(tmp_path_factory.mktemp("signed"))
    yield made
    made.close()


# --- what somebody with Redis can try ---------------------------------------------------------------------------------


def _next(fleet: SignedFleet, model: str) -> dict[str, Any]:
    """A manifest of version 3 with the files of version 2, as a publisher would make it."""
    return {**fleet.manifest(model, 2), "version": 3, "note": "mine"}


def _forged(
    signature: Callable[[SignedFleet, str, str], str],
) -> Callable[[SignedFleet, str], tuple[int, Record, bytes]]:
    def make(fleet: SignedFleet, model: str) -> tuple[int, Record, bytes]:
        data = encoded(_next(fleet, model))
        record = {
            **fleet.record(model, 2),
            "digest": digest_of(data),
            "signature": signature(fleet, model, digest_of(data)),
        }
        return 3, record, data

    return make


def _mixed(fleet: SignedFleet, model: str) -> tuple[int, Record, bytes]:
    one, two = fleet.manifest(model, 1), fleet.manifest(model, 2)
    data = encoded({**two, "files": [one["files"][0], two["files"][1]]})
    return 2, {**fleet.record(model, 2), "digest": digest_of(data)}, data


def _renumbered(fleet: SignedFleet, model: str) -> tuple[int, Record, bytes]:
    return 3, fleet.record(model, 1), b""


def _other_digest(fleet: SignedFleet, model: str) -> tuple[int, Record, bytes]:
    return 2, {**fleet.record(model, 2), "digest": fleet.record(model, 1)["digest"]}, b""


FORGED: dict[str, tuple[Callable[[SignedFleet, str], tuple[int, Record, bytes]], str]] = {
    "no signature": (_forged(lambda fleet, model, digest: ""), "it is not signed"),
    "wrong key": (
        _forged(lambda fleet, model, digest: signed(fleet.signer("eve"), digest)),
        "trusted_keys of this host",
    ),
    "wrong key under a trusted name": (
        _forged(
            lambda fleet, model, digest: str(
                Signature(fleet.public["alpha"].id, fleet.signer("eve").sign(digest.encode()))
            )
        ),
        "over something else",
    ),
    "signature of another version": (
        _forged(lambda fleet, model, digest: fleet.record(model, 2)["signature"]),
        "over something else",
    ),
    "signature for another fleet": (
        _forged(lambda fleet, model, digest: signed(fleet.signer("alpha"), digest, "other")),
        "over something else",
    ),
    "same version with another digest": (_other_digest, "over something else"),
    "files of two versions": (_mixed, "over something else"),
    "a signed version under another number": (_renumbered, "names the manifest of version 1"),
}


@pytest.mark.parametrize("case", FORGED, ids=str)
def test_what_was_forged_in_redis_is_not_run(fleet: SignedFleet, case: str) -> None:
    forge, expected = FORGED[case]
    model = case.replace(" ", "-")
    fleet.publish(model, a=b"a1" + case.encode(), b=b"b1")
    fleet.publish(model, a=b"a2" + case.encode(), b=b"b2")
    two = contents(fleet.replicas[0], model)
    with fleet.redis.pubsub() as listener:
        listener.subscribe(fleet.key("events"))
        number, record, data = forge(fleet, model)
        fleet.forge(model, number, record, data)
        for daemon in fleet.daemons:
            until(lambda d=daemon: expected in str(line(d, model)["error"]), f"{daemon.name} to refuse it")
        told: list[dict[str, Any]] = []
        until(
            lambda: told.extend(rejections(listener)) or {event["node"] for event in told} == set(NAMES), "each to tell"
        )
    for daemon in fleet.daemons:
        said = line(daemon, model)
        assert got(daemon, model, number, "a") == 409, "nor is it handed to anybody"
        assert contents(daemon, model) == two and said["active"] == 2 and said["state"] == "rejected", said
        assert f"version {number} of {model}" in said["error"]
        assert f"version.untrusted: version {number} of {model}" in alarms(daemon)
        assert not (daemon.state / "manifests" / record["digest"][3:]).exists() or not data, "it was not even pulled"
    assert all(expected in event["reason"] and event["version"] == number for event in told)
    fleet.publish(model, a=b"a3")  # what is published next is well


def rejections(listener: Any) -> list[dict[str, Any]]:
    """What was announced of rejected versions since it was asked last."""
    found = []
    while (message := listener.get_message(timeout=0.01)) is not None:
        event = json.loads(message["data"]) if message["type"] == "message" else {}
        found += [event] if event.get("event") == "version.rejected" else []
    return found


def test_an_older_record_is_not_taken_whoever_signed_it(fleet: SignedFleet) -> None:
    fleet.publish("older", a=b"1")
    before = fleet.redis.hgetall(fleet.key("model:older"))
    fleet.publish("older", a=b"2")
    fleet.redis.hset(fleet.key("model:older"), mapping=before)
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        fleet.redis.xadd(fleet.key("log"), {"kind": "published", "model": "older"}, id=before["id"])
    epoch, _, seq = fleet.redis.xrevrange(fleet.key("log"), count=1)[0][0].partition("-")
    fleet.redis.xadd(fleet.key("log"), {"kind": "published", "model": "older"}, id=f"{epoch}-{int(seq) + 1}")
    fleet.publish("beside", a=b"1")  # whoever runs this has read everything that came before it
    assert [daemon.active("older") for daemon in fleet.daemons] == [2, 2, 2]
    assert [daemon.head("older") for daemon in fleet.daemons] == [2, 2, 2]
    assert all(contents(daemon, "older") == {"a": b"2"} for daemon in fleet.daemons)


# --- a fleet's life ---------------------------------------------------------------------------------------------------


def test_a_signature_survives_an_earlier_release_a_wiped_redis_and_its_primary(fleet: SignedFleet) -> None:
    fleet.publish("kept", a=b"1")
    first, by = fleet.record("kept", 1), fleet.primary
    assert first["signature"] == signed(fleet.signer(by.name), first["digest"])
    entries = [entry for _, entry in fleet.redis.xrevrange(fleet.key("log")) if entry.get("model") == "kept"]
    assert entries[0]["signature"] == first["signature"]
    unknowing = {key: value for key, value in first.items() if key != "signature"}
    fleet.forge("kept", 1, unknowing)  # as a primary of a release that knows no signatures writes it back
    by.kill()
    until(lambda: primary_of(fleet.without(by)), "another primary")
    until(lambda: fleet.record("kept", 1) == first, "the new one to write the signature back")
    fleet.redis.flushall()
    until(lambda: fleet.record("kept", 1) == first, "the signature, after Redis lost everything")
    answer = fleet.ledger.await_accepted(fleet.without(by), "kept", b"two")
    assert fleet.record("kept", answer["version"])["signature"].split(":")[1] != fleet.public[by.name].id
    shutil.rmtree(by.state)
    by.start()
    for daemon in fleet.daemons:
        until(lambda d=daemon: d.alive() and d.active("kept") == 2, f"{daemon.name} to run it, pulled or pulled anew")
    history = json.loads(fleet.run("history", "kept", "--json").stdout)
    assert [entry["signed_by"] for entry in history][1] == fleet.public[by.name].id


def test_a_key_that_is_taken_out_revokes_what_it_signed(fleet: SignedFleet) -> None:
    fleet.publish("revoked", a=b"1")
    fleet.publish("revoked", a=b"2")
    primary, (one, other) = fleet.primary, fleet.replicas
    one.config.write_text(one.base + fleet.sections(one.name, without=primary.name))
    until(lambda: "version.runs_untrusted: revoked" in alarms(one), "the alarm")
    said = line(one, "revoked")
    assert (said["active"], said["state"]) == (2, "active") and "it goes on until" in said["error"], said
    assert not alarms(other).count("revoked")
    fleet.run("rollback", "revoked")
    until(lambda: other.active("revoked") == 1, "the others to roll back")
    until(lambda: "trusted_keys of this host" in str(line(one, "revoked")["error"]), "it to refuse")
    assert contents(one, "revoked") == {"a": b"2"}
    primary.put("after.bin", b"3")
    until(lambda: other.active("after") == 1, "the others to run it")
    until(lambda: line(one, "after").get("state") == "rejected", "it to refuse")
    assert contents(one, "after") == {} and line(one, "after")["held"] == []
    one.config.write_text(one.base + fleet.sections(one.name))
    until(lambda: (one.active("revoked"), one.active("after")) == (1, 1), "it to follow again, without a restart")
    assert line(one, "after")["error"] is None


# --- switching it on --------------------------------------------------------------------------------------------------


def test_a_fleet_is_switched_to_signing_while_it_runs(tmp_path: Path) -> None:
    fleet, key = Fleet(tmp_path), tmp_path / "key.pem"
    public = ed25519.new_key(key)
    try:
        solo = fleet.add("solo", QUICK_LEASE)
        solo.put("m.bin", b"1")
        until(lambda: solo.active("m") == 1, "the first version")
        assert "signature" not in fleet.redis.hget(fleet.key("model:m"), "v:1")

        solo.config.write_text(solo.base + security(None, [public]))
        until(lambda: "version.runs_untrusted: m: version 1" in alarms(solo), "it to miss the signature")
        assert solo.active("m") == 1 and "signing_key_file is not" in str(solo.status()["nodes"][0]["error"])
        (tmp_path / "n.bin").write_bytes(b"1")
        refused = fleet.run("publish", "n", str(tmp_path / "n.bin"), check=False)
        assert refused.returncode == 6 and "signing_key_file is not" in refused.stderr, refused
        assert refused_before_its_body(solo)
        solo.put("n.bin", b"1")
        until(lambda: "signing_key_file is not" in str(solo.status()["nodes"][0].get("refusals")), "the refusal")
        checked = fleet.run("config", "check", str(solo.config))
        assert "note: security.trusted_keys is set" in checked.stdout

        assert solo.stop() == 0
        solo.config.write_text(solo.base + security(key, [public]))
        solo.start()
        until(lambda: solo.alive() and solo.active("n") == 1, "what was refused to be published now")
        assert solo.active("m") == 1 and "runs here and it is not signed" in line(solo, "m")["error"]
        sick = '[model.m]\nhealth = { command = ["/bin/false"], ready_s = 0.2, interval_s = 0.1 }\n'
        reloads = solo.log.read_text().count("config.reloaded")
        solo.config.write_text(solo.base + security(key, [public]) + sick)
        until(lambda: solo.log.read_text().count("config.reloaded") > reloads, "the reload")
        again = json.loads(fleet.run("publish", "m", str(solo.models / "m.bin"), "--json", "--wait", "0").stdout)
        assert again["version"] == 2, "the same bytes, signed"
        until(lambda: "version 1 is not gone back to" in str(line(solo, "m")["error"]), "its servers to refuse it")
        assert solo.active("m") == 2
        solo.config.write_text(solo.base + security(key, [public]))
        until(lambda: solo.active("m") == 2 and line(solo, "m")["error"] is None, "the signed one")
        assert json.loads(fleet.run("publish", "m", str(solo.models / "m.bin"), "--json").stdout)["version"] == 2
        fleet.run("rollback", "m")
        until(lambda: "it is not signed" in str(line(solo, "m")["error"]), "it to refuse the first one")
        assert contents(solo, "m") == {"m.bin": b"1"} and solo.active("m") == 2
    finally:
        fleet.close()


def refused_before_its_body(daemon: Daemon) -> bool:
    """Whether uploads are refused while their body is still awaited."""
    statuses = []
    for method, path in (("PUT", "/v1/models/n?filename=n"), ("POST", "/v1/models/n/uploads?filename=n&size_bytes=9")):
        connection = http.client.HTTPConnection(daemon.url.removeprefix("http://"), timeout=5)
        connection.putrequest(method, path)
        connection.putheader("Content-Length", "0" if method == "POST" else "1000000")
        connection.endheaders()
        statuses.append(connection.getresponse().status)
        connection.close()
    return statuses == [409, 409]


@pytest.mark.parametrize("mode", ["shared", "partitioned"])
def test_what_lies_elsewhere_is_asked_for_its_signature_too(tmp_path: Path, mode: str) -> None:
    """In an object store, and in parts on other hosts."""
    fleet, key = Fleet(tmp_path), tmp_path / "key.pem"
    public = ed25519.new_key(key)
    (tmp_path / "store").mkdir()
    storage = f'[storage]\nmode = "{mode}"\n' + (
        f'url = "file://{tmp_path}/store"\nahead = []\n'
        if mode == "shared"
        else f"copies = 1\nsplit_bytes = {1 << 20}\n"
    )
    files = {"a": b"1" * (3 << 19), "b": b"2" * (3 << 19)}
    try:
        first = fleet.add("first", security(key, [public]) + storage)
        other = fleet.add("other", security(None, [public]) + storage)
        until(lambda: len(first.status()["nodes"]) == 2, "both to know of each other")
        for name, data in files.items():
            (tmp_path / "m").mkdir(exist_ok=True)
            (tmp_path / "m" / name).write_bytes(data)
        (tmp_path / "m").rename(first.models / "m")
        until(lambda: got(other, "m", 1, "a") == files["a"], "it to be read through")
        record = json.loads(fleet.redis.hget(fleet.key("model:m"), "v:1"))
        del record["signature"]
        data = encoded({**json.loads((first.state / "manifests" / record["digest"][3:]).read_bytes()), "version": 2})
        SignedFleet.forge(fleet, "m", 2, {**record, "digest": digest_of(data)}, data)  # type: ignore[arg-type]
        until(lambda: other.head("m") == first.head("m") == 2, "the forged version to be known")
        assert got(other, "m", 2, "a") == 409 == manifest_status(other, "m", 2)
        urllib.request.urlopen(urllib.request.Request(f"{other.url}/v1/models/m/load", method="POST"), timeout=5)
        until(lambda: "it is not signed" in str(line(other, "m")["error"]), "it to be refused")
        assert contents(other, "m") == {} and "it is not signed" in line(other, "m")["rejected"]["2"]
        assert got(other, "m", 1, "b") == files["b"], "what is signed is to be had as ever"
    finally:
        fleet.close()


def manifest_status(daemon: Daemon, model: str, number: int) -> int:
    try:
        with urllib.request.urlopen(f"{daemon.url}/v1/models/{model}/versions/{number}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def got(daemon: Daemon, model: str, number: int, path: str) -> bytes | int:
    """A file as anybody downloads it, or the status of a refusal."""
    try:
        with urllib.request.urlopen(
            f"{daemon.url}/v1/models/{model}/versions/{number}/files/{path}", timeout=5
        ) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        return error.code
