"""Errors to statuses and JSON, and back: the exit code must survive, and a lying peer must not choose it freely."""

from __future__ import annotations

import json

import pytest

from modelsync.core import errors
from modelsync.core.errors import ModelsyncError, PeerRefused, PolicyRefusal
from modelsync.edges.http.errors import error_document, error_from_document, status_of

SAMPLES: list[tuple[ModelsyncError, int]] = [
    (errors.BadName(kind="model", value="'..'", rule="letters"), 400),
    (errors.MalformedMessage(what="body", reason="not JSON"), 400),
    (errors.NoSuchVersion(reason="no version 3"), 404),
    (errors.PolicyRefusal(reason="pinned to 12"), 409),
    (errors.VersionConflict(model="m", version=3, known="b3:a", offered="b3:b"), 409),
    (errors.SourceChanged(path="a"), 409),
    (errors.NotAModel(path="a", reason="a FIFO"), 422),
    (errors.DiskFull(path="/x", needed_bytes=3, free_bytes=None), 507),
    (errors.LeaseLost(epoch=3, holder="n2"), 503),
    (errors.StaleEpoch(offered=1, accepted=2), 503),
    (errors.NoPrimary(fleet="prod"), 503),
    (errors.RedisUnavailable(operation="read", reason="refused"), 503),
    (errors.RedisRefused(operation="read", reason="NOPERM"), 503),
    (errors.TimedOut(what="publish", reached="1 of 2 copies"), 504),
]


@pytest.mark.parametrize(("error", "status"), SAMPLES, ids=lambda value: type(value).__name__)
def test_an_error_survives_the_wire(error: ModelsyncError, status: int) -> None:
    assert status_of(error) == status
    document = json.loads(json.dumps(error_document(error)))
    assert document["message"] == str(error)
    revived = error_from_document(document, status=status, peer="http://n1")
    assert type(revived) is type(error)
    assert revived.details() == error.details()
    assert revived.exit_code == error.exit_code


@pytest.mark.parametrize(
    "error",
    [
        errors.DiskFailed(path="/x", operation="fsync", errno_name="EIO"),
        errors.LayoutCorrupt(path="/x", reason="y"),
        errors.StateInUse(path="/x", holder="7"),
        errors.ConfigurationFault(source="f", faults=("a: b",)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_host_s_own_trouble_is_a_500_and_stays_its_own(error: ModelsyncError) -> None:
    assert status_of(error) == 500
    revived = error_from_document(error_document(error), status=500, peer="http://n1")
    assert isinstance(revived, PeerRefused)
    assert revived.exit_code == 5, "another host's exit code 75 or 3 would speak of this one"


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {},
        {"error": "PolicyRefusal"},
        {"error": "PolicyRefusal", "details": []},
        {"error": "PolicyRefusal", "details": {"reason": 3}},
        {"error": "VersionConflict", "details": {"model": "m", "version": True, "known": "a", "offered": "b"}},
        {"error": "DiskFull", "details": {"path": "x", "needed_bytes": "3", "free_bytes": None}},
        {"error": "Exception", "details": {}},
        {"error": "__class__", "details": {}},
        {"error": ["PolicyRefusal"], "details": {"reason": "x"}},
    ],
)
def test_an_answer_that_does_not_fit_is_a_refusal_by_the_peer(document: object) -> None:
    revived = error_from_document(document, status=409, peer="http://n1")
    assert isinstance(revived, PeerRefused)
    assert revived.status == 409


def test_hostile_text_is_bounded_and_extra_fields_are_ignored() -> None:
    document = {"error": "PolicyRefusal", "details": {"reason": "x" * 10**6, "exit_code": 0, "args": []}}
    revived = error_from_document(document, status=409, peer="p")
    assert len(str(revived)) == 2000
    assert revived.exit_code == 6


@pytest.mark.parametrize("status", [401, 403, 421])
def test_a_missing_token_is_a_refusal_by_policy(status: int) -> None:
    revived = error_from_document({"error": "Unauthorized", "message": "the token"}, status=status, peer="p")
    assert type(revived) is PolicyRefusal
    assert "the token" in str(revived)


def test_every_error_class_has_a_status() -> None:
    def below(kind: type[ModelsyncError]) -> set[type[ModelsyncError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    for kind in below(ModelsyncError):
        assert 400 <= status_of(kind.__new__(kind)) <= 599, kind
