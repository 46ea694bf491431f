"""Plans, frames and the rules of keeping: core.uploads."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelsync.core import uploads
from modelsync.core.errors import BadName, MalformedMessage, NotAModel, UploadsFull
from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.core.uploads import FrameReader, Kept, UploadPlan

MIB = CHUNK_BYTES


def digest(text: str) -> Digest:
    return Digest(blake3(text.encode()).digest())


def plan_of(*files: tuple[str, int]) -> UploadPlan:
    lines, chunks = [], b""
    for path, size in files:
        count = -(-size // MIB)
        chunks += b"".join(digest(f"{path} {n}").raw for n in range(count))
        lines.append((path, size, digest(f"{path} 0") if count == 1 else digest(path)))
    return uploads.plan_of(lines, chunks)


PLAN = plan_of(("a", 0), ("b", 2 * MIB + 5), ("c", 7), ("d/e", 0), ("d/f", MIB))


def test_a_plan_survives_the_wire() -> None:
    assert uploads.decode_plan(uploads.encode_plan(PLAN)) == PLAN
    assert PLAN.chunk_count == 5 and PLAN.size_bytes == 3 * MIB + 12
    assert [PLAN.place_of(chunk) for chunk in range(5)] == [
        (1, 0, MIB), (1, MIB, MIB), (1, 2 * MIB, 5), (2, 0, 7), (4, 0, MIB),
    ]  # fmt: skip
    assert PLAN.entry_of(1).chunks == tuple(digest(f"b {n}") for n in range(3))
    assert PLAN.entry_of(0).chunks == ()


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    changed = data.replace(old, new)
    return (len(data) and (int.from_bytes(data[:4], "big") + len(new) - len(old))).to_bytes(4, "big") + changed[4:]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MalformedMessage),
        (b"\x00\x00\x01\x00{}", MalformedMessage),
        (uploads.encode_plan(PLAN)[:-1], MalformedMessage),
        (uploads.encode_plan(PLAN) + b"x" * 32, MalformedMessage),
        (replaced(uploads.encode_plan(PLAN), b'"d/e"', b'"../e"'), BadName),
        (replaced(uploads.encode_plan(PLAN), b'"d/e"', b'"b/e"'), MalformedMessage),
        (replaced(uploads.encode_plan(PLAN), b'"c"', b'"b"'), MalformedMessage),
        (replaced(uploads.encode_plan(PLAN), b"1048576,", b"4096,"), MalformedMessage),
        (replaced(uploads.encode_plan(PLAN), b",7,", b",-7,"), MalformedMessage),
        (replaced(uploads.encode_plan(PLAN), b",7,", b",7777777777777777777,"), MalformedMessage),
        (replaced(uploads.encode_plan(PLAN), str(digest("c 0")).encode(), str(digest("x")).encode()), MalformedMessage),
        (b"\x00\x00\x00\x2b" + b'{"chunk_bytes":1048576,"files":[],"format":1}'[:43], MalformedMessage),
        (bytes(uploads.MAX_PLAN_BYTES + 1), MalformedMessage),
    ],
)
def test_hostile_plans_are_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        uploads.decode_plan(data)


def test_an_empty_plan_is_no_model() -> None:
    with pytest.raises(NotAModel):
        uploads.plan_of([], b"")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(range(5)), max_size=5), st.sampled_from([4097, 65_536, MIB - 1, MIB + 4, 3 * MIB]))
@example([2, 3, 2], 1)
def test_frames_come_out_as_they_went_in_however_they_are_cut(order: list[int], cut: int) -> None:
    sent = [(chunk, bytes([chunk]) * PLAN.place_of(chunk)[2]) for chunk in order]
    body = b"".join(uploads.frame_head(chunk) + data for chunk, data in sent)
    reader = FrameReader(PLAN)
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
    assert [(chunk, bytes(data)) for piece in pieces for chunk, data in reader.feed(piece)] == sent
    reader.finish()


def test_frames_that_the_plan_does_not_have_or_that_end_early() -> None:
    with pytest.raises(MalformedMessage):
        list(FrameReader(PLAN).feed(uploads.frame_head(5) + b"x"))
    for body in (uploads.frame_head(3) + b"123456", b"\0"):
        reader = FrameReader(PLAN)
        assert list(reader.feed(body)) == []
        with pytest.raises(MalformedMessage):
            reader.finish()


def test_runs_of_what_is_missing() -> None:
    assert uploads.missing_runs(b"\0\0\1\0\1") == [(0, 2), (3, 4)]
    assert uploads.missing_runs(b"\1\1") == []
    assert uploads.runs_of([[0, 2], [3, 5]], PLAN) == [(0, 2), (3, 5)]
    assert PLAN.bytes_of([(2, 4)]) == 12
    for lie in (None, {}, [[0]], [[0, 6]], [[2, 1]], [[0, 2], [1, 3]], [[-1, 2]], [[0, True]], [[0.0, 1.0]]):
        with pytest.raises(MalformedMessage):
            uploads.runs_of(lie, PLAN)


def kept(number: int, idle_s: float, *, plan_bytes: int = 0, busy: bool = False) -> Kept:
    return Kept(f"{number}", 1_000_000 - idle_s, plan_bytes, busy)


NOW_S = 1_000_000.0


def test_an_upload_that_nobody_goes_on_with_is_given_up() -> None:
    day = uploads.IDLE_S
    assert uploads.expired([kept(1, day - 1), kept(2, day + 1), kept(3, 2 * day, busy=True)], NOW_S) == ["2"]


def test_a_new_upload_takes_the_place_of_one_that_stands_still() -> None:
    full = [kept(n, 10) for n in range(uploads.MAX_UPLOADS)]
    with pytest.raises(UploadsFull):
        uploads.gives_way(full, 0, NOW_S)
    assert uploads.gives_way(full[1:], 0, NOW_S) == []
    assert uploads.gives_way([*full[2:], kept(90, 700), kept(91, 800)], 0, NOW_S) == ["91"]
    with pytest.raises(UploadsFull):
        uploads.gives_way([*full[1:], kept(91, 800, busy=True)], 0, NOW_S)


def test_plans_in_memory_are_bounded_together() -> None:
    large = [kept(n, 700 + n, plan_bytes=uploads.MAX_PLAN_BYTES) for n in range(2)]
    assert uploads.gives_way(large, 1, NOW_S) == ["1"]
    with pytest.raises(UploadsFull):
        uploads.gives_way([kept(1, 1, plan_bytes=uploads.MAX_PLANS_BYTES)], 1, NOW_S)
