"""Whether packing pays, how an answer goes on, and what a stranger may write into a header or a frame's head."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core.compression import frames
from modelsync.core.compression.choice import (
    DOUBT_CHUNKS,
    MIN_GAIN,
    PATIENCE_CHUNKS,
    TRY_AGAIN_CHUNKS,
    UNKNOWN_LINK_BYTES_PER_S,
    UNPACK_BYTES_PER_S,
    Course,
    Link,
    Trial,
    agreed,
    best,
    gain,
)
from modelsync.core.compression.frames import FORMAT, HEAD_BYTES, MAX_FRAME_BYTES, PLANES, RAW, STOP, Ask, Head
from modelsync.core.compression.pace import LATELY_S, Pace
from modelsync.core.manifest import CHUNK_BYTES

MB = 1e6
FAST_ETHERNET, GIGABIT, TEN_GIGABIT, LOOPBACK = 12.5 * MB, 125 * MB, 1250 * MB, 4000 * MB


def trial(planes: int, ratio: float, mb_per_s: float) -> Trial:
    return Trial(planes, CHUNK_BYTES, int(ratio * CHUNK_BYTES), CHUNK_BYTES / (mb_per_s * MB))


# As measured, decision 15: ways 1, 2, 4 and 8 of each content.
FLOAT32 = (trial(1, 0.926, 1315), trial(2, 0.890, 1400), trial(4, 0.842, 950), trial(8, 0.841, 900))
BFLOAT16 = (trial(1, 0.780, 1329), trial(2, 0.684, 620), trial(4, 0.684, 610), trial(8, 0.685, 610))
INT8 = (trial(1, 0.879, 1404), trial(2, 0.879, 1030), trial(4, 0.879, 1010), trial(8, 0.879, 1010))
FOREST = (trial(1, 0.209, 660), trial(2, 0.226, 490), trial(4, 0.253, 430), trial(8, 0.275, 420))
NOISE = (trial(1, 1.0, 10000), trial(2, 1.0, 3000), trial(4, 1.0, 3000), trial(8, 1.0, 3000))
SHRINKS_A_LITTLE = (trial(1, 0.97, 1300), trial(2, 0.99, 1000), trial(4, 0.99, 1000), trial(8, 0.99, 1000))
SLOWLY = (trial(1, 0.3, 100),)


@pytest.mark.parametrize(
    ("content", "link", "planes"),
    [
        (FLOAT32, FAST_ETHERNET, 8),
        (FLOAT32, GIGABIT, 8),
        (FLOAT32, TEN_GIGABIT, None),
        (BFLOAT16, GIGABIT, 2),
        (BFLOAT16, LOOPBACK, None),
        (INT8, GIGABIT, 1),
        (FOREST, FAST_ETHERNET, 1),
        (FOREST, GIGABIT, 1),
        (FOREST, TEN_GIGABIT, None),
        (NOISE, FAST_ETHERNET, None),
        (SHRINKS_A_LITTLE, FAST_ETHERNET, None),
        (SLOWLY, FAST_ETHERNET, 1),
        (SLOWLY, GIGABIT, None),
        ((), GIGABIT, None),
    ],
)
def test_what_pays_on_which_link(content: tuple[Trial, ...], link: float, planes: int | None) -> None:
    chosen = best(content, Link(link), "auto")
    assert (chosen.planes if chosen else None) == planes


@pytest.mark.parametrize(
    ("link", "speed"),
    [
        (Link(), UNKNOWN_LINK_BYTES_PER_S),
        (Link(LOOPBACK), LOOPBACK),
        (Link(LOOPBACK, 1000), 1000),
        (Link(500.0, 1000), 500),
        (Link(None, 1000), 1000),
    ],
)
def test_a_rate_limit_makes_a_quick_link_slow(link: Link, speed: float) -> None:
    assert link.speed == speed


def test_a_limit_decides_as_a_link_does() -> None:
    assert best(FOREST, Link(LOOPBACK), "auto") is None
    assert best(FOREST, Link(LOOPBACK, int(GIGABIT)), "auto") is FOREST[0]


def test_many_answers_that_share_the_packers_pack_less() -> None:
    assert best(FOREST, Link(GIGABIT, packer_share=0.25), "auto") is FOREST[0]
    assert best(FOREST, Link(GIGABIT, packer_share=0.1), "auto") is None


def test_a_receiver_that_is_busy_is_spared() -> None:
    assert best(FOREST, Link(GIGABIT, unpack_bytes_per_s=100 * MB), "auto") is None
    assert best(FOREST, Link(FAST_ETHERNET, unpack_bytes_per_s=100 * MB), "auto") is FOREST[0]


def test_a_pace_is_smoothed_and_forgotten() -> None:
    pace = Pace(usual=100.0)
    assert pace.lately(0.0) == 100.0
    pace.note(50.0, 1.0)
    assert pace.lately(1.0) == 90.0  # one that was held up does not count for much, the first one neither
    pace.note(140.0, 2.0)
    assert pace.lately(2.0) == 100.0
    pace.note(0.0, 3.0)
    assert (pace.lately(3.0), pace.lately(3.0 + LATELY_S)) == (80.0, 100.0)
    pace.note(50.0, 3.0 + LATELY_S)
    assert pace.lately(3.0 + LATELY_S) == 90.0


def test_always_asks_for_the_fewest_bytes_whatever_they_cost() -> None:
    assert best(FLOAT32, Link(LOOPBACK), "always") is FLOAT32[3]
    assert best(SHRINKS_A_LITTLE, Link(LOOPBACK), "always") is SHRINKS_A_LITTLE[0]
    assert best(NOISE, Link(FAST_ETHERNET), "always") is None


@given(ratio=st.floats(0, 2), pack=st.floats(1e5, 1e11), link=st.floats(1e3, 1e11), share=st.floats(0.01, 1))
def test_what_is_chosen_pays(ratio: float, pack: float, link: float, share: float) -> None:
    one = Trial(1, CHUNK_BYTES, int(ratio * CHUNK_BYTES), CHUNK_BYTES / pack)
    way = Link(link, packer_share=share)
    chosen = best((one,), way, "auto")
    assert (chosen is not None) == (gain(one, way) >= MIN_GAIN)
    if chosen is not None:
        assert one.ratio < 1 / 1.04  # nothing that grows, and nothing that hardly shrinks
        assert way.speed * MIN_GAIN <= UNPACK_BYTES_PER_S  # nothing on a link that outruns the receiver


@pytest.mark.parametrize(
    ("asked", "own", "both"),
    [
        ("auto", "auto", "auto"),
        ("auto", "never", "never"),
        ("always", "never", "never"),
        ("auto", "always", "always"),
        ("always", "auto", "always"),
        ("never", "always", "never"),
    ],
)
def test_either_side_may_refuse(asked: frames.Compression, own: frames.Compression, both: str) -> None:
    assert agreed(asked, own) == both


# --- an answer's course -----------------------------------------------------------------------------------------------


def test_a_trial_holds_for_a_while() -> None:
    course, tried = Course("auto"), 0
    for _ in range(3 * TRY_AGAIN_CHUNKS):
        if course.wants_trial:
            tried += 1
            course.tried(FOREST)
        assert course.choose(Link(GIGABIT)) is FOREST[0]
    assert (tried, course.spent) == (3, False)


def test_content_that_changes_is_tried_anew_at_once() -> None:
    course = Course("auto")
    course.tried(FOREST)
    expected = course.choose(Link(GIGABIT))
    assert expected is not None
    course.packed(expected, trial(1, 0.22, 600))
    assert not course.wants_trial
    course.packed(expected, trial(1, 0.5, 600))
    assert course.wants_trial


def test_a_link_that_turns_out_quick_ends_the_frames() -> None:
    course = Course("auto")
    course.tried(FOREST)
    assert course.choose(Link()) is FOREST[0]  # not known yet
    for _ in range(PATIENCE_CHUNKS):
        assert not course.spent
        assert course.choose(Link(LOOPBACK)) is None
        course.tried(FOREST)
    assert course.spent


def test_of_ways_that_are_nearly_as_good_the_one_of_the_fewest_bytes() -> None:
    nearly = (trial(1, 0.30, 400), trial(2, 0.35, 410))
    assert best(nearly, Link(LOOPBACK, int(GIGABIT)), "auto") is nearly[0]
    much = (trial(1, 0.30, 200), trial(2, 0.35, 410))
    assert best(much, Link(LOOPBACK, int(GIGABIT)), "auto") is much[1]


def test_what_a_chunk_took_counts_more_than_what_the_samples_said() -> None:
    course = Course("auto")
    course.tried((trial(1, 0.30, 100), trial(2, 0.40, 300)))
    expected = course.choose(Link(GIGABIT))
    assert expected is not None and expected.planes == 2
    course.packed(expected, trial(2, 0.41, 90))
    chosen = course.choose(Link(GIGABIT))
    assert chosen is None  # 100 and 90 MB/s: neither way keeps up with the link


def test_a_link_that_was_not_full_lately_is_shown_a_few_chunks_as_they_are() -> None:
    course, idle = Course("auto"), Link(GIGABIT, may_be_quicker=True)
    course.tried(FOREST)
    assert [course.choose(idle) for _ in range(DOUBT_CHUNKS)] == [None] * DOUBT_CHUNKS
    assert not course.spent
    assert course.choose(Link(GIGABIT)) is FOREST[0]  # it showed that it is no quicker
    assert course.choose(idle) is FOREST[0]  # once an answer


def test_a_link_that_turns_out_quicker_ends_the_frames() -> None:
    course = Course("auto")
    course.tried(FOREST)
    for _ in range(DOUBT_CHUNKS):
        assert course.choose(Link(GIGABIT, may_be_quicker=True)) is None
    for _ in range(PATIENCE_CHUNKS):
        assert course.choose(Link(LOOPBACK)) is None
    assert course.spent


@pytest.mark.parametrize(
    ("mode", "link"),
    [
        ("always", Link(GIGABIT, may_be_quicker=True)),
        ("auto", Link(GIGABIT, int(FAST_ETHERNET), may_be_quicker=True)),
    ],
)
def test_nothing_is_shown_where_the_answer_would_be_the_same(mode: frames.Compression, link: Link) -> None:
    course = Course(mode)
    course.tried(FOREST)
    assert course.choose(link) is FOREST[0]


def test_one_chunk_that_pays_renews_the_patience() -> None:
    course = Course("auto")
    for _ in range(5):
        for content in (NOISE, NOISE, NOISE, FOREST):
            course.tried(content)
            course.choose(Link(GIGABIT))
            assert not course.spent


def test_always_never_gives_up() -> None:
    course = Course("always")
    for _ in range(10 * PATIENCE_CHUNKS):
        course.tried(NOISE)
        assert course.choose(Link(LOOPBACK)) is None
        assert not course.spent


# --- on the wire ------------------------------------------------------------------------------------------------------


@given(st.sampled_from(["auto", "always"]), st.integers(1, MAX_FRAME_BYTES), st.integers(0, 10**15 - 1))
def test_an_ask_reads_back(mode: frames.Compression, chunk_bytes: int, speed: int) -> None:
    ask = Ask(mode, chunk_bytes, speed, speed // 2)
    assert frames.parse_ask(ask.text()) == ask


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "1",
        "2; mode=auto; chunk=1048576; limit=0; unpack=0",
        "1; mode=never; chunk=1048576; limit=0; unpack=0",
        "1; mode=auto; chunk=0; limit=0; unpack=0",
        f"1; mode=auto; chunk={MAX_FRAME_BYTES + 1}; limit=0; unpack=0",
        "1; mode=auto; chunk=-1; limit=0; unpack=0",
        "1; mode=auto; chunk=1048576; limit=-1; unpack=0",
        "1; mode=auto; chunk=1048576; limit=0; unpack=" + "9" * 5000,
        "1; mode=auto; chunk=1048576; limit=0; unpack=0; more",
        "1; mode=auto; chunk=1048576; limit=0",
        "1; mode=auto; chunk=\u0661; limit=0; unpack=0",
        "1; mode=auto; chunk=1048576; limit=0; unpack=0\n",
    ],
)
def test_an_ask_that_cannot_be_met_is_none(text: str | None) -> None:
    assert frames.parse_ask(text) is None


@given(st.sampled_from(PLANES), st.integers(2, MAX_FRAME_BYTES), st.data())
def test_a_head_reads_back(kind: int, raw: int, data: st.DataObject) -> None:
    head = Head(kind, raw, data.draw(st.integers(1, raw - 1)))
    assert len(head.encode()) == HEAD_BYTES
    assert frames.decode_head(head.encode(), raw) == head
    assert frames.decode_head(head.encode(), None) == head


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (Head(3, 1000, 10), 1000),
        (Head(16, 1000, 10), 1000),
        (Head(254, 1000, 10), 1000),
        (Head(1, 1001, 10), 1000),
        (Head(1, 999, 10), 1000),
        (Head(1, 1000, 0), 1000),
        (Head(1, 1000, 1000), 1000),
        (Head(1, 1000, 2**32 - 1), 1000),
        (Head(1, MAX_FRAME_BYTES + 1, 10), None),
        (Head(1, 2**32 - 1, 10), None),
        (Head(RAW, 1000, 999), 1000),
        (Head(RAW, 1000, 1001), None),
        (Head(RAW, 0, 0), None),
        (Head(STOP, 0, 1), None),
        (Head(STOP, 1, 0), 1000),
    ],
)
def test_a_head_of_no_honest_peer(head: Head, expected: int | None) -> None:
    with pytest.raises(ValueError):
        frames.decode_head(head.encode(), expected)


@given(st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES), st.one_of(st.none(), st.integers(1, MAX_FRAME_BYTES)))
def test_no_head_asks_for_more_than_a_frame(data: bytes, expected: int | None) -> None:
    try:
        head = frames.decode_head(data, expected)
    except ValueError:
        return
    assert head.wire_bytes <= head.raw_bytes <= (expected or MAX_FRAME_BYTES)
    assert head.encode() == data


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 999))
def test_pieces_cover_a_range_along_the_chunks(start: int, size: int, chunk_bytes: int) -> None:
    found = list(frames.pieces(start, start + size, chunk_bytes))
    assert sum(length for _, length in found) == size
    at = start
    for offset, length in found:
        assert offset == at and length > 0
        assert offset // chunk_bytes == (offset + length - 1) // chunk_bytes
        at += length


def test_the_format_is_what_a_puller_says() -> None:
    assert Ask("auto", CHUNK_BYTES).text().startswith(f"{FORMAT};")
