"""One model's record: every change, every refusal, and the fields it is kept as."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core import catalog, catalog_fields
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.errors import (
    BadName,
    MalformedMessage,
    ModelsyncError,
    NoSuchVersion,
    PolicyRefusal,
    VersionConflict,
)
from modelsync.core.ids import ZERO_ID, Digest, EntryId, ModelName, Version

FRAUD = ModelName("fraud")
NOW = EntryId(9, 1)


def digest(seed: object) -> Digest:
    return Digest(blake3(str(seed).encode()).digest())


def of(number: int, content: object = None, at: EntryId | None = None) -> VersionRecord:
    content = number if content is None else content
    return VersionRecord(
        digest((number, content)), digest(content), at or EntryId(1, number), 10 * number, 1000 + number
    )


def record(*numbers: int, **fields: Any) -> ModelRecord:
    """A record with these versions; the last is the head and is desired."""
    head = Version(numbers[-1]) if numbers else None
    versions = {Version(number): of(number) for number in numbers}
    made = ModelRecord(FRAUD, EntryId(1, len(numbers)), head, head, versions=versions)
    return replace(made, **fields)


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_publish_is_the_head_and_is_wanted() -> None:
    after = catalog.published(record(1, 2, desired=1), Version(3), of(3, at=NOW))
    assert (after.head, after.desired, after.wanted, after.id) == (3, 3, 3, NOW)
    assert after.versions == {1: of(1), 2: of(2), 3: of(3, at=NOW)}


def test_a_first_publish_may_have_any_number() -> None:
    assert catalog.published(ModelRecord(FRAUD), Version(12), of(12)).head == 12


def test_a_publish_under_a_pin_waits() -> None:
    after = catalog.published(record(1, 2, pinned=1), Version(3), of(3))
    assert (after.head, after.desired, after.pinned, after.wanted) == (3, 3, 1, 1)
    assert catalog.unpinned(after, NOW).wanted == 3


Change = Callable[[ModelRecord], ModelRecord]
BOTH = record(1, 2, 3)
ALIASED = record(1, 2, 3, aliases={"stable": Version(2)})

TRANSITIONS: list[tuple[str, ModelRecord, Change, dict[str, Any]]] = [
    ("pin a number", BOTH, lambda r: catalog.pinned(r, 1, NOW), {"pinned": 1, "wanted": 1, "desired": 3}),
    ("pin a text", BOTH, lambda r: catalog.pinned(r, "1", NOW), {"pinned": 1}),
    ("pin an alias", ALIASED, lambda r: catalog.pinned(r, "stable", NOW), {"pinned": 2}),
    ("pin over a pin", record(1, 2, pinned=1), lambda r: catalog.pinned(r, 2, NOW), {"pinned": 2}),
    ("unpin", record(1, 2, pinned=1), lambda r: catalog.unpinned(r, NOW), {"pinned": None, "wanted": 2}),
    ("update", record(1, 2, desired=1), lambda r: catalog.updated(r, None, NOW), {"desired": 2, "wanted": 2}),
    ("update to", BOTH, lambda r: catalog.updated(r, 2, NOW), {"desired": 2, "head": 3}),
    ("update to alias", ALIASED, lambda r: catalog.updated(r, "stable", NOW), {"desired": 2}),
    ("roll back", BOTH, lambda r: catalog.rolled_back(r, None, NOW), {"desired": 2, "head": 3}),
    ("roll back twice", record(1, 2, 3, desired=2), lambda r: catalog.rolled_back(r, None, NOW), {"desired": 1}),
    ("roll back over a gap", record(1, 7), lambda r: catalog.rolled_back(r, None, NOW), {"desired": 1}),
    ("roll back to", BOTH, lambda r: catalog.rolled_back(r, 1, NOW), {"desired": 1}),
    ("alias", BOTH, lambda r: catalog.aliased(r, "stable", 2, NOW), {"aliases": {"stable": 2}}),
    ("alias an alias", ALIASED, lambda r: catalog.aliased(r, "b", "stable", NOW), {"aliases": {"stable": 2, "b": 2}}),
    ("move an alias", ALIASED, lambda r: catalog.aliased(r, "stable", 3, NOW), {"aliases": {"stable": 3}}),
    ("delete", BOTH, lambda r: catalog.deleted(r, Version(2), NOW), {"versions": {1: of(1), 3: of(3)}, "deleted": {2}}),
    ("reissue", BOTH, lambda r: catalog.reissued(r, NOW), {"versions": BOTH.versions}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "change", "expected"), [t[1:] for t in TRANSITIONS], ids=[t[0] for t in TRANSITIONS]
)
def test_transitions(before: ModelRecord, change: Change, expected: dict[str, Any]) -> None:
    after = change(before)
    assert {key: getattr(after, key) for key in expected} == expected
    assert after.id == NOW
    assert catalog_fields.from_fields(FRAUD, catalog_fields.to_fields(after)) == after


REFUSALS: list[tuple[str, ModelRecord, Change, type[ModelsyncError], str]] = [
    ("publish below the head", record(1, 3), lambda r: catalog.published(r, Version(2), of(2)), PolicyRefusal,
     "fraud: version 2 is not above the head, 3"),
    ("publish the head again", BOTH, lambda r: catalog.published(r, Version(3), of(3)), PolicyRefusal,
     "fraud: version 3 is not above the head, 3"),
    ("publish a deleted number", record(1, 3, deleted=frozenset({2})),
     lambda r: catalog.published(r, Version(2), of(2)), PolicyRefusal, "fraud: version 2 is not above the head, 3"),
    ("pin what is not", BOTH, lambda r: catalog.pinned(r, 4, NOW), NoSuchVersion,
     "fraud has no version 4; known (newest 8): 1, 2, 3"),
    ("pin in an empty record", ModelRecord(FRAUD), lambda r: catalog.pinned(r, 1, NOW), NoSuchVersion,
     "fraud has no version 1; known (newest 8): none"),
    ("pin a lost alias", record(1, aliases={"stable": Version(9)}), lambda r: catalog.pinned(r, "stable", NOW),
     NoSuchVersion, "fraud has no version 9; known (newest 8): 1"),
    ("pin an unknown alias", BOTH, lambda r: catalog.pinned(r, "stable", NOW), NoSuchVersion,
     "fraud has no alias 'stable'"),
    ("unpin nothing", BOTH, lambda r: catalog.unpinned(r, NOW), PolicyRefusal, "fraud is not pinned"),
    ("update while pinned", record(1, 2, pinned=1), lambda r: catalog.updated(r, 2, NOW), PolicyRefusal,
     "fraud is pinned to version 1: unpin it before you update"),
    ("update nothing", ModelRecord(FRAUD), lambda r: catalog.updated(r, None, NOW), NoSuchVersion,
     "fraud has no version yet"),
    ("roll back while pinned", record(1, 2, pinned=2), lambda r: catalog.rolled_back(r, None, NOW), PolicyRefusal,
     "fraud is pinned to version 2: unpin it before you roll back"),
    ("roll back forward", record(1, 2, 3, desired=2), lambda r: catalog.rolled_back(r, 3, NOW), PolicyRefusal,
     "version 3 is not earlier than 2: that would be an update"),
    ("roll back to the same", BOTH, lambda r: catalog.rolled_back(r, 3, NOW), PolicyRefusal,
     "version 3 is not earlier than 3: that would be an update"),
    ("roll back from the first", record(1), lambda r: catalog.rolled_back(r, None, NOW), NoSuchVersion,
     "fraud has no version before 1"),
    ("roll back nothing", ModelRecord(FRAUD), lambda r: catalog.rolled_back(r, None, NOW), NoSuchVersion,
     "fraud has no version yet"),
    ("alias of nothing", BOTH, lambda r: catalog.aliased(r, "stable", 9, NOW), NoSuchVersion,
     "fraud has no version 9; known (newest 8): 1, 2, 3"),
    ("too many aliases", record(1, aliases={f"a{n}": Version(1) for n in range(100)}),
     lambda r: catalog.aliased(r, "b", 1, NOW), PolicyRefusal, "fraud has 100 aliases already"),
    ("delete what is not", BOTH, lambda r: catalog.deleted(r, Version(4), NOW), NoSuchVersion,
     "fraud has no version 4; known (newest 8): 1, 2, 3"),
    ("delete the head", record(1, 2, desired=1), lambda r: catalog.deleted(r, Version(2), NOW), PolicyRefusal,
     "version 2 of fraud cannot be deleted: it is the head, and its number must not be given again"),
    ("delete what is wanted", record(1, 2, desired=1), lambda r: catalog.deleted(r, Version(1), NOW), PolicyRefusal,
     "version 1 of fraud cannot be deleted: it is wanted"),
    ("delete what is pinned", record(1, 2, pinned=1), lambda r: catalog.deleted(r, Version(1), NOW), PolicyRefusal,
     "version 1 of fraud cannot be deleted: it is wanted"),
    ("delete what is aliased", ALIASED, lambda r: catalog.deleted(r, Version(2), NOW), PolicyRefusal,
     "version 2 of fraud cannot be deleted: an alias names it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "change", "kind", "reason"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refusals(before: ModelRecord, change: Change, kind: type[ModelsyncError], reason: str) -> None:
    with pytest.raises(ModelsyncError) as caught:
        change(before)
    assert (type(caught.value), str(caught.value)) == (kind, reason)


def test_one_number_with_two_contents() -> None:
    with pytest.raises(VersionConflict) as caught:
        catalog.published(BOTH, Version(2), of(2, "other bytes"))
    assert caught.value.details() == {
        "model": "fraud", "version": 2, "known": str(digest(2)), "offered": str(digest("other bytes"))
    }  # fmt: skip


@pytest.mark.parametrize("alias", ["12", "", "a b", "x.tmp", "../x", "é"])
def test_illegal_aliases(alias: str) -> None:
    with pytest.raises(BadName):
        catalog.aliased(BOTH, alias, 1, NOW)


def test_the_newest_version_with_the_same_bytes() -> None:
    versions = {Version(1): of(1, "x"), Version(2): of(2, "y"), Version(3): of(3, "x")}
    same = record(1, 2, 3, versions=versions)
    assert same.with_content(digest("x")) == 3
    assert same.with_content(digest("z")) is None


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_oldest_unnamed_version_makes_room() -> None:
    full = record(*range(1, catalog.MAX_VERSIONS + 1), aliases={"stable": Version(1)})
    after = catalog.published(full, Version(501), of(501))
    assert sorted(set(full.versions) - set(after.versions)) == [2]
    assert len(after.versions) == catalog.MAX_VERSIONS


def test_deletions_are_remembered_up_to_a_bound() -> None:
    before = record(1, 600, 601, deleted=frozenset(Version(n) for n in range(2, 502)))
    after = catalog.deleted(before, Version(600), NOW)
    assert after.deleted == frozenset({*range(3, 502), 600})


# --- two copies of one record -----------------------------------------------------------------------------------------


def test_the_later_copy_wins_and_ours_among_equals() -> None:
    ours, later = record(1, 2), record(1, 2, 3)
    assert catalog.merged(ours, later) is later
    assert catalog.merged(later, ours) is later
    assert catalog.merged(ours, record(1, 2)) is ours


def test_a_signature_that_an_earlier_release_left_out_is_kept() -> None:
    """What it wrote is newer, and says the same of the version but for the field that it does not know."""
    signed = {number: replace(of(number), signature=f"s{number}") for number in (1, 2)}
    ours = record(1, 2, versions=signed)
    other = replace(of(2, "other"), signature="")
    theirs = record(1, 2, 3, id=NOW, versions={1: of(1), 2: other, 3: of(3)})
    after = catalog.merged(ours, theirs)
    assert after == replace(theirs, versions={1: signed[1], 2: other, 3: of(3)}), "of the same bytes alone"
    resigned = replace(theirs, versions={1: replace(of(1), signature="t1")})
    assert catalog.merged(ours, resigned) is resigned, "what is there is what counts"
    assert catalog.merged(theirs, ours) is theirs


def test_a_signature_travels_with_its_version_and_is_bounded() -> None:
    made = record(1, 2, versions={1: of(1), 2: replace(of(2), signature="ed25519:ab:cd")})
    fields = catalog_fields.to_fields(made)
    assert "signature" not in fields["v:1"], "what an earlier release wrote is written as it wrote it"
    assert catalog_fields.from_fields(FRAUD, fields) == catalog_fields.from_json(FRAUD, catalog_fields.to_json(made))
    assert catalog_fields.from_fields(FRAUD, fields) == made
    for wrong in ("s" * 257, 3, None, ["s"]):
        value = {**json.loads(fields["v:2"]), "signature": wrong}
        with pytest.raises(MalformedMessage):
            catalog_fields.from_fields(FRAUD, {**fields, "v:2": json.dumps(value)})


def later(*numbers: int, **fields: Any) -> ModelRecord:
    return record(*numbers, id=EntryId(2, 1), **fields)


@pytest.mark.parametrize(
    ("ours", "theirs", "orphans"),
    [
        (record(1, 2, 3), later(1, 2), [3]),
        (record(1, 2, 3), later(1, 2, deleted=frozenset({3})), []),
        (record(1, 2), later(1, 2, versions={1: of(1), 2: of(2, "other")}), [2]),
        (record(1, 2, 3), later(3, 4), []),  # older than all that they keep
        (record(1, 2, 4), later(1, 3, 4, aliases={"stable": Version(1)}), []),  # 2 was dropped, 1 only has a name
        (record(1, 2, 3), later(1, 2, 4), [3]),
        (record(1), replace(ModelRecord(FRAUD), id=EntryId(2, 1)), [1]),
        (record(1, 2, 3), replace(record(1), id=ZERO_ID), []),  # theirs is the older one
    ],
)
def test_orphans(ours: ModelRecord, theirs: ModelRecord, orphans: list[int]) -> None:
    assert catalog.orphaned(ours, theirs) == {number: ours.versions[Version(number)] for number in orphans}


# --- fields -----------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(1, 60).map(Version)
NOTES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ENTRIES = st.builds(
    VersionRecord, st.integers(0, 9).map(digest), st.integers(0, 9).map(digest),
    st.builds(EntryId, st.integers(0, 9), st.integers(0, 9)), st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1),
    NOTES, NOTES, st.none() | st.integers(0, 9).map(digest),
)  # fmt: skip
ALIASES = st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True), NUMBERS)
RECORDS = st.builds(
    ModelRecord, st.just(FRAUD), st.builds(EntryId, st.integers(0, 9), st.integers(0, 9)), st.none() | NUMBERS,
    st.none() | NUMBERS, st.none() | NUMBERS, ALIASES,
    st.dictionaries(NUMBERS, ENTRIES, max_size=4), st.frozensets(NUMBERS, max_size=4),
)  # fmt: skip


@given(RECORDS)
def test_fields_and_json_come_back(made: ModelRecord) -> None:
    assert catalog_fields.from_fields(FRAUD, catalog_fields.to_fields(made)) == made
    assert catalog_fields.from_json(FRAUD, catalog_fields.to_json(made)) == made


@given(RECORDS, RECORDS)
def test_changed_fields_turn_one_hash_into_the_other(before: ModelRecord, after: ModelRecord) -> None:
    fields = catalog_fields.to_fields(before)
    written, removed = catalog_fields.changed_fields(before, after)
    assert {key: text for key, text in (fields | written).items() if key not in removed} == catalog_fields.to_fields(
        after
    )
    assert not any(fields.get(key) == text for key, text in written.items())


def test_the_fields() -> None:
    fields = catalog_fields.to_fields(
        record(7, pinned=7, aliases={"stable": Version(7)}, deleted=frozenset({Version(3)}))
    )
    entry = json.loads(fields.pop("v:7"))
    assert fields == {
        "id": "1-1", "head": "7", "desired": "7", "pinned": "7", "aliases": '{"stable":7}', "deleted": "[3]",
        "rollout": "",
        "changes": "[]",
    }  # fmt: skip
    assert entry == {
        "digest": str(of(7).digest), "content": str(digest(7)), "id": "1-7", "size_bytes": 70, "created_ms": 1007,
        "author": "", "note": "", "parent": None,
    }  # fmt: skip


def test_nothing_in_redis_is_an_empty_record() -> None:
    assert catalog_fields.from_fields(FRAUD, {}) == ModelRecord(FRAUD)
    assert catalog_fields.from_fields(FRAUD, {"of a later release": "x"}) == ModelRecord(FRAUD)


def version_text(**fields: Any) -> dict[str, str]:
    value = json.loads(catalog_fields.to_fields(record(1))["v:1"])
    return {"v:1": json.dumps({**value, **fields})}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"id": "9007199254740992-1"}, "record of model fraud"),
        ({"id": "1"}, "record of model fraud"),
        ({"head": "01"}, "record of model fraud"),
        ({"head": "-1"}, "record of model fraud"),
        ({"desired": "two"}, "record of model fraud"),
        ({"pinned": "1" * 5000}, "record of model fraud"),
        ({"aliases": "[]"}, "aliases"),
        ({"aliases": '{"12":1}'}, "record of model fraud"),
        ({"aliases": '{"a":"../x"}'}, "record of model fraud"),
        ({"aliases": '{"a":1,"a":2}'}, "aliases"),
        ({"aliases": "\ud800"}, "aliases"),
        ({"aliases": "{}" + " " * 65536}, "aliases"),
        ({"deleted": "{}"}, "deleted versions"),
        ({"deleted": "[0]"}, "record of model fraud"),
        ({"deleted": "[" * 10_000}, "deleted versions"),
        ({"v:01": "{}"}, "record of model fraud"),
        ({"v:": "{}"}, "record of model fraud"),
        ({"v:1": "[]"}, "version record"),
        ({"v:1": "{}"}, "record of model fraud"),
        ({"v:1": '"\udfff"'}, "version record"),
        (version_text(digest="b3:" + "A" * 64), "record of model fraud"),
        (version_text(size_bytes=-1), "version record"),
        (version_text(size_bytes=1.5), "version record"),
        (version_text(created_ms=True), "version record"),
        (version_text(note=None), "version record"),
        (version_text(author=["x"]), "version record"),
        (version_text(parent=""), "record of model fraud"),
    ],
)
def test_hostile_fields(fields: dict[str, str], what: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        catalog_fields.from_fields(FRAUD, fields)
    assert caught.value.what == what


@pytest.mark.parametrize("data", [b"", b"[]", b'{"id":1}', b"{", b'{"id":"1-1","id":"1-2"}', b"\xff"])
def test_hostile_files(data: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        catalog_fields.from_json(FRAUD, data)
    assert caught.value.what == "catalog of fraud"


def test_the_longest_notes_that_a_manifest_allows_are_read_back() -> None:
    entry = replace(of(1), author="\x01" * 65_536, note="\x01" * 65_536)
    made = record(1, versions={Version(1): entry})
    assert catalog_fields.from_json(FRAUD, catalog_fields.to_json(made)) == made
