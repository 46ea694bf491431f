"""core.condemned: names and the log as hostile input, which versions go, and what becomes of each object in a round."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core.errors import MalformedMessage, PolicyRefusal
from modelsync.core.ids import Digest, EntryId, FleetName, ModelName, Version
from modelsync.core.storage import condemned
from modelsync.core.storage.claims import Claim
from modelsync.core.storage.condemned import Claimed, CondemnedLog, Listed, Name, Wanted

A, B, C = (Digest(bytes([n]) * 32) for n in (0xAB, 2, 3))
M = ModelName("m")
names = st.builds(
    Name, st.sampled_from(["objects", "manifests"]), st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.integers(0, condemned.MAX_TURN),
)  # fmt: skip


@given(names)
def test_a_name_reads_back(name: Name) -> None:
    assert condemned.parse_name(str(name)) == name


@pytest.mark.parametrize(
    "key",
    [
        "objects/" + A.hex, f"objects/b3/00/{A.hex}", f"objects/b3/ab/{A.hex}.0", f"objects/b3/ab/{A.hex}.01",
        f"objects/b3/ab/{A.hex}.1000", f"objects/b3/ab/{A.hex}.-1", f"objects/b3/ab/{A.hex}.1.1",
        f"manifests/{A.hex}.٣",
        f"manifests/../manifests/{A.hex}", f"versions/m/{A.hex}", "", "clock", f"objects/b3/ab/{A.hex.upper()}",
        f"objects/b3/ab/{A.hex}#1",
    ],
)  # fmt: skip
def test_what_is_none_of_ours_is_no_name(key: str) -> None:
    assert condemned.parse_name(key) is None


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"names":{}}', b'{"names":[1]}', b'{"names":["clock"]}', b'{"names":[],"more":1}',
     json.dumps({"names": [str(Name("manifests", A.hex))] * (condemned.MAX_NAMES + 1)}).encode()],
)  # fmt: skip
def test_a_log_that_is_none_is_refused(document: bytes) -> None:
    with pytest.raises(MalformedMessage):
        condemned.decode(document)


def test_a_condemned_name_is_never_used_again_and_read_as_long_as_it_is_there() -> None:
    log = CondemnedLog()
    first = log.usable("objects", A)
    log.add(condemned.decode(condemned.encode([first])))
    second = log.usable("objects", A)
    assert (first.turn, second.turn) == (0, 1)
    assert log.condemns(first) and not log.condemns(second)
    assert log.readable("objects", A) == [second, first]
    assert log.usable("manifests", A).turn == 0, "a chunk list of the same digest is another object"


# --- versions --------------------------------------------------------------------------------------------------------


def claimed(number: int, digest: Digest = A, model: str = "m", fleet: str = "prod") -> Claimed:
    return Claimed(ModelName(model), Version(number), Claim(FleetName(fleet), EntryId(1, number), digest))


def wanted(head: int | None, *kept: int, shared: bool = True) -> Wanted:
    return Wanted(Version(head) if head else None, {Version(n): A for n in kept}, shared)


def test_versions_go_that_the_catalog_keeps_no_longer() -> None:
    all_of = [claimed(n) for n in range(1, 6)]
    assert condemned.dropped(all_of, {M: wanted(5, 2, 5)}) == [claimed(1), claimed(3), claimed(4)]


def test_a_number_above_the_head_and_a_model_that_is_not_known_stay() -> None:
    assert condemned.dropped([claimed(6)], {M: wanted(5, 5)}) == []
    assert condemned.dropped([claimed(1)], {M: wanted(None)}) == []
    assert condemned.dropped([claimed(1, model="other")], {M: wanted(5, 5)}) == []


def test_two_fleets_in_one_place_are_refused() -> None:
    condemned.require_alone([claimed(1)], FleetName("prod"))
    with pytest.raises(PolicyRefusal, match="belongs to fleet staging"):
        condemned.require_alone([claimed(1), claimed(2, fleet="staging")], FleetName("prod"))


def test_what_the_store_lacks_is_named() -> None:
    assert condemned.missing([claimed(1), claimed(2, B)], {M: wanted(2, 1, 2)}) == [(M, 2)]
    assert condemned.missing([], {M: wanted(2, 1, 2, shared=False)}) == []


# --- objects ---------------------------------------------------------------------------------------------------------

GRACE_S = 10.0


def listed(digest: Digest, age_s: float = 99.0, turn: int = 0) -> Listed:
    return Listed(Name("objects", digest.hex, turn), 5, age_s)


def judged(
    *objects: Listed, log: CondemnedLog | None = None, seen_s: dict[Name, float] | None = None, roots_s: float = 100.0
) -> tuple[int, int, int]:
    made = condemned.judged(objects, {A}, {B}, log or CondemnedLog(), seen_s or {}, roots_s, GRACE_S)
    return len(made.condemn), len(made.waiting), len(made.delete)


def test_what_is_named_or_under_way_is_left_alone_whatever_its_age() -> None:
    assert judged(listed(A), listed(B)) == (0, 0, 0)


def test_a_young_object_is_not_condemned_yet() -> None:
    assert judged(listed(C, 9.9)) == (0, 1, 0)
    assert judged(listed(C, 10.0)) == (1, 0, 0)


@pytest.mark.parametrize(("seen_s", "outcome"), [(90.0, (0, 0, 1)), (90.1, (0, 1, 0)), (None, (0, 1, 0))])
def test_a_condemned_one_goes_a_grace_after_it_was_seen_to_be(
    seen_s: float | None, outcome: tuple[int, int, int]
) -> None:
    log, one = CondemnedLog(), listed(C)
    log.add([one.name])
    assert judged(one, log=log, seen_s={one.name: seen_s} if seen_s is not None else {}) == outcome


def test_a_condemned_one_that_is_named_again_stays() -> None:
    log, one = CondemnedLog(), listed(A)
    log.add([one.name])
    assert judged(one, log=log, seen_s={one.name: 0.0}) == (0, 0, 0)
