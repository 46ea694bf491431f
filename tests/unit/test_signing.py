"""What is signed of a version, byte for byte, and whose signature counts; and the keys in their files."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from modelsync.cli.keys import keys_group
from modelsync.core import signing
from modelsync.core.errors import BadName, ConfigurationFault, PolicyRefusal
from modelsync.core.ids import Digest, FleetName
from modelsync.core.signing import PublicKey, Signature
from modelsync.edges.host import ed25519
from modelsync.edges.host.ed25519 import Ed25519Signer, Ed25519Verifier

PROD, OTHER = FleetName("prod"), FleetName("other")
ONE, TWO = (Digest(blake3(data).digest()) for data in (b"1", b"2"))
ALPHA, BETA, EVE = (Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)) for seed in (1, 2, 3))
VERIFIER = Ed25519Verifier()


def signed(by: Ed25519Signer, digest: Digest = ONE, fleet: FleetName = PROD) -> str:
    return str(Signature(by.public.id, by.sign(signing.signed_bytes(fleet, digest))))


def refusal(text: str, *trusted: Ed25519Signer, digest: Digest = ONE, fleet: FleetName = PROD) -> str | None:
    keys = [signer.public for signer in trusted]
    return signing.refusal(text, fleet, digest, keys, VERIFIER.verify)


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_what_is_signed_is_three_lines() -> None:
    """Fixed for ever: another text would make every signature that was given worthless."""
    assert signing.signed_bytes(PROD, ONE) == (
        b"modelsync version signature 1\nprod\nb3:d63bd9a826af91c1fea371965a64e11ee20f13e46b5f52c59901136605b3a487\n"
    )
    assert signing.signed_bytes(PROD, ONE) != signing.signed_bytes(PROD, TWO)
    assert signing.signed_bytes(PROD, ONE) != signing.signed_bytes(OTHER, ONE)


def test_keys_and_signatures_are_read_as_they_are_written() -> None:
    assert PublicKey.parse(f"{ALPHA.public}") == PublicKey.parse(f"{ALPHA.public} gpu-01 since May") == ALPHA.public
    text = signed(ALPHA)
    assert str(Signature.parse(text)) == text and len(text) < signing.MAX_TEXT_CHARS


@pytest.mark.parametrize(
    "text",
    [
        None,
        3,
        "",
        " ",
        "ed25519:",
        str(ALPHA.public)[8:],
        "rsa:" + str(ALPHA.public)[8:],
        str(ALPHA.public)[:-1],
        str(ALPHA.public)[:-2] + "==",
        "ed25519:" + base64.b64encode(b"x" * 31).decode(),
        "ed25519:" + base64.b64encode(b"x" * 33).decode(),
        f"ed25519: {str(ALPHA.public)[8:]}",
        "ed25519:" + "é" * 44,
    ],
)
def test_what_is_no_public_key_is_refused(text: Any) -> None:
    with pytest.raises(BadName, match="public key"):
        PublicKey.parse(text)


# --- trust ------------------------------------------------------------------------------------------------------------

_ALTERED = signed(ALPHA)[:-10] + ("A" if signed(ALPHA)[-10] != "A" else "B") + signed(ALPHA)[-9:]

CASES: dict[str, tuple[str, tuple[Ed25519Signer, ...], str | None]] = {
    "by the one key": (signed(ALPHA), (ALPHA,), None),
    "by one of them": (signed(BETA), (ALPHA, BETA), None),
    "none": ("", (ALPHA,), "it is not signed"),
    "by nobody who is trusted": (signed(EVE), (ALPHA, BETA), f"key {EVE.public.id}, which security.trusted_keys"),
    "by a key that was taken out": (signed(BETA), (ALPHA,), f"key {BETA.public.id}, which security.trusted_keys"),
    "of another version": (signed(ALPHA, TWO), (ALPHA,), "over something else"),
    "of another fleet": (signed(ALPHA, ONE, OTHER), (ALPHA,), "over something else"),
    "under another's name": (signed(EVE).replace(EVE.public.id, ALPHA.public.id), (ALPHA,), "over something else"),
    "altered": (_ALTERED, (ALPHA,), "over something else"),
    "of a later kind": ("ml-dsa:abc:def", (ALPHA,), "of no form that this release knows"),
    "cut off": (signed(ALPHA)[:-4], (ALPHA,), "of no form that this release knows"),
    "of zeros": (f"ed25519:{ALPHA.public.id}:{base64.b64encode(bytes(64)).decode()}", (ALPHA,), "over something else"),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whose_signature_counts(case: str) -> None:
    text, trusted, expected = CASES[case]
    found = refusal(text, *trusted)
    assert found is None if expected is None else found is not None and expected in found


def test_a_signature_over_the_bare_digest_does_not_count() -> None:
    bare = str(Signature(ALPHA.public.id, ALPHA.sign(str(ONE).encode())))
    assert "over something else" in str(refusal(bare, ALPHA))


def test_who_can_publish_what_it_would_accept() -> None:
    own, trusted = ALPHA.public, [ALPHA.public, BETA.public]
    assert (
        signing.sealing_fault(own, trusted) is signing.sealing_fault(own, []) is signing.sealing_fault(None, []) is None
    )
    assert "signing_key_file is not" in str(signing.sealing_fault(None, trusted))
    assert EVE.public.id in str(signing.sealing_fault(EVE.public, trusted))


# --- key files --------------------------------------------------------------------------------------------------------


def run(*words: str) -> tuple[int, str]:
    """A command of ``modelsync keys``: its exit code, and what it printed or raised."""
    done = CliRunner().invoke(keys_group, list(words))
    return done.exit_code, done.output + str(done.exception or "")


def test_a_new_key_is_for_its_owner_alone_and_signs(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    before = os.umask(0)
    try:
        code, line = run("new", str(path))
    finally:
        os.umask(before)
    assert code == 0 and path.stat().st_mode & 0o777 == 0o600
    assert run("show", str(path)) == (0, line)
    shown = json.loads(run("show", str(path), "--json")[1])
    key = PublicKey.parse(line.strip())
    assert (shown["file"], shown["id"], shown["public"]) == (str(path), key.id, line.strip())
    assert refusal(signed(ed25519.load_signer(path)), ed25519.load_signer(path)) is None


@pytest.mark.parametrize("there", ["a file", "a link to nowhere", "a directory"])
def test_a_key_is_never_written_over(tmp_path: Path, there: str) -> None:
    path = tmp_path / "key.pem"
    if there == "a file":
        path.write_text("mine")
    elif there == "a directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PolicyRefusal, match="never written over"):
        ed25519.new_key(path)
    assert there != "a file" or path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert run("new", str(tmp_path / "no" / "key"))[0] == 2


def pem(key: Any, passphrase: bytes | None = None) -> bytes:
    kept = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    data: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)
    return data


@pytest.mark.parametrize(
    "data",
    [b"", b"secret nonsense", pem(X25519PrivateKey.generate()), pem(Ed25519PrivateKey.generate(), b"x"), b"\0" * 9000],
    ids=["empty", "nonsense", "another kind", "passphrase", "long"],
)
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigurationFault, match=r"security\.signing_key_file: .*keys new") as refused:
        ed25519.load_signer(path)
    assert "secret" not in str(refused.value)
    assert "FILE" in run("show", str(path))[1]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    ed25519.new_key(path)
    path.chmod(0o644)
    assert "chmod 600" in run("show", str(path))[1]


@pytest.mark.parametrize("raw", [bytes(32), b"\xff" * 32, b"\x01" + bytes(31)])
def test_a_key_that_is_no_point_verifies_nothing_and_raises_nothing(raw: bytes) -> None:
    assert not VERIFIER.verify(PublicKey(raw), ALPHA.sign(b"m"), b"m")
