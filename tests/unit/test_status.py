"""The status document, a model's history, and reports that other nodes wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.test_catalog import of, record

from modelsync.core import status
from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import EntryId, ModelName
from modelsync.core.messages import hints
from modelsync.core.status import NodeReport


def node(id: str, role: str = "replica", last_seen_s: float = 0.24, **models: Any) -> NodeReport:
    return NodeReport(id, role, f"http://{id}:8461", "ok", last_seen_s, models=models)


def line(active: int | None, *held: int) -> dict[str, Any]:
    return status.node_model(active=active, wanted=3, held=held, state="active", error=None, why="test")  # type: ignore[arg-type]


def test_the_document() -> None:
    models = [replace(record(1, 2, 3), name=ModelName("zebra")), record(1, 2, 3, pinned=2, aliases={"b": 1, "a": 2})]
    nodes = [node("n2", "primary", fraud=line(2, 3, 2)), node("n1", "primary"), node("n3", last_seen_s=10.01)]
    made = status.document(fleet="prod", epoch=7, primary="n1", redis="ok", nodes=nodes, models=models)
    assert {key: made[key] for key in ("fleet", "epoch", "primary", "redis")} == {
        "fleet": "prod", "epoch": 7, "primary": "n1", "redis": "ok"
    }  # fmt: skip
    assert made["models"] == [
        {"name": "fraud", "head": 3, "wanted": 2, "pinned": 2, "aliases": {"a": 2, "b": 1}},
        {"name": "zebra", "head": 3, "wanted": 3, "pinned": None, "aliases": {}},
    ]
    assert [(n["id"], n["role"], n["state"], n["last_seen_s"]) for n in made["nodes"]] == [
        ("n1", "primary", "ok", 0.2),
        ("n2", "replica", "ok", 0.2),  # it says primary, but the lease is another's
        ("n3", "replica", "lost", 10.0),
    ]
    assert made["nodes"][1]["models"]["fraud"] == {
        "active": 2, "wanted": 3, "held": [2, 3], "state": "active", "error": None, "why": "test"
    }  # fmt: skip


def test_no_primary_is_null() -> None:
    assert status.document(fleet="f", epoch=0, primary="", redis="down", nodes=[], models=[])["primary"] is None


@pytest.mark.parametrize(("last_seen_s", "lost"), [(0.0, False), (10.0, False), (10.1, True)])
def test_lost(last_seen_s: float, lost: bool) -> None:
    assert node("n1", last_seen_s=last_seen_s).lost is lost


def test_history() -> None:
    nodes = [node("n1", fraud=line(3, 2, 3)), node("n2", last_seen_s=60.0, fraud=line(1, 1)), node("n3")]
    lines = status.history(record(1, 2, 3), nodes)
    assert [(each["version"], each["state"]) for each in lines] == [(3, "active"), (2, "retained"), (1, "evicted")]
    assert lines[2] == {
        "version": 1, "digest": str(of(1).digest), "id": "1-1", "created": "1970-01-01T00:00:01.001Z", "author": "",
        "note": "", "size_bytes": 10, "state": "evicted", "hosts": {},
    }  # fmt: skip


def test_copies_counts_living_nodes_that_know_the_publisher_s_epoch() -> None:
    def told(epoch: int, state: str, *held: int) -> dict[str, object]:
        return {"epoch": epoch, "state": state, "models": {"fraud": {"held": list(held)}}}

    nodes = [told(4, "ok", 2, 3), told(5, "degraded", 2), told(4, "lost", 2, 3), told(3, "ok", 1, 2, 3)]
    document = {"nodes": nodes}
    assert [status.copies(document, "fraud", number, EntryId(4, 9)) for number in (1, 2, 3)] == [0, 2, 1]
    assert status.copies(document, "other", 1, EntryId(4, 9)) == 0


@pytest.mark.parametrize(
    ("unix_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
        (253_402_300_799_000, "9999-12-31T23:59:59.000Z"),
        (253_402_300_800_000, "unknown"),
        (2**53 - 1, "unknown"),
        (10**30, "unknown"),
    ],
)
def test_times(unix_ms: int, text: str) -> None:
    assert status.iso_time(unix_ms) == text


def test_reports_of_other_nodes() -> None:
    models = {"fraud": line(3, 2, 3), "idle": {"active": None, "held": []}}
    assert status.parse_node_models(models) is models


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "models is not an object"),
        (None, "models is not an object"),
        ({"fraud": 1}, "a model's line has no list `held`"),
        ({"fraud": {}}, "a model's line has no list `held`"),
        ({"fraud": {"held": "12"}}, "a model's line has no list `held`"),
        ({"fraud": {"held": [1, "2"]}}, "a model's line has no list `held`"),
        ({"fraud": {"held": [], "active": [1]}}, "a model's `active` is not a version"),
        ({"fraud": {"held": [], "active": {}}}, "a model's `active` is not a version"),
    ],
)
def test_hostile_reports(value: Any, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        status.parse_node_models(value)
    assert caught.value.details() == {"what": "node report", "reason": reason}


def test_hints_of_an_announcement_are_never_more_than_hints() -> None:
    assert hints(b'{"event": "version.published", "node": "a"}') == ("version.published", "a", "", "")
    for data in (b"", b"[]", b"{", b'{"event": 1, "node": ["a"]}', b"\xff", b"[" * 100_000):
        assert hints(data) == ("", "", "", "")


@pytest.mark.parametrize(
    ("living", "placed", "asked"),
    [
        (1, {}, 1),
        (3, {}, 2),
        (3, {"mode": "partitioned", "copies": 1}, 1),
        (3, {"mode": "partitioned", "copies": 9}, 2),
        (1, {"mode": "partitioned", "copies": 2}, 1),
        (3, {"mode": "shared"}, 0),
    ],
)
def test_how_many_copies_a_publisher_waits_for(living: int, placed: dict[str, Any], asked: int) -> None:
    nodes = [{"state": "ok"}] * living + [{"state": "lost"}]
    document = {"nodes": nodes, "placement": {"fraud": placed} if placed else {"other": {"mode": "shared"}}}
    assert status.copies_to_wait_for(document, "fraud") == asked
