"""zstd over byte planes: what is packed comes back, and what no honest peer packs is refused within bounds."""

from __future__ import annotations

import contextlib
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core.compression.frames import MAX_FRAME_BYTES, PLANES
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.edges.pull import codec
from modelsync.edges.pull.codec import Undecodable, join, pack, split, unpack

zstandard = pytest.importorskip("zstandard", reason="a node without it sends and receives bytes as they are")

TEXT = b"".join(b'{"token": "tok%d", "id": %d}' % (n, n) for n in range(40_000))[:CHUNK_BYTES]


@given(st.binary(max_size=300), st.sampled_from(PLANES))
def test_planes_are_joined_again(data: bytes, planes: int) -> None:
    assert join(split(data, planes), planes) == data


def test_planes_are_what_they_are_called() -> None:
    assert split(b"aAbBc", 2) == b"abcAB"
    assert split(b"0123012", 4) == b"0011223"


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 50), st.sampled_from(PLANES))
def test_what_is_packed_comes_back(data: bytes, times: int, planes: int) -> None:
    data *= times
    assert unpack(pack(data, planes), planes, len(data)) == data


def test_a_whole_chunk_comes_back_from_a_view() -> None:
    for planes in PLANES:
        packed = pack(TEXT, planes)
        assert len(packed) < len(TEXT) / 2
        assert unpack(memoryview(bytearray(packed)), planes, len(TEXT)) == TEXT


def test_a_trial_is_what_packing_does() -> None:
    for trial in codec.tried(TEXT):
        assert trial.packed_bytes == len(pack(TEXT, trial.planes))
        assert trial.raw_bytes == len(TEXT) and trial.took_s > 0
    assert codec.tried(b"") == ()


def with_dictionary() -> bytes:
    dictionary = zstandard.ZstdCompressionDict(TEXT[:10_000])
    return bytes(zstandard.ZstdCompressor(dict_data=dictionary, write_dict_id=True).compress(TEXT))


def with_trained_dictionary() -> bytes:
    dictionary = zstandard.train_dictionary(4096, [TEXT[at : at + 500] for at in range(0, 200_000, 500)])
    return bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT))


def with_a_large_window() -> bytes:
    """A head by hand (RFC 8878, section 3.1.1.1): no single segment, a size of 4 bytes, a window of 2^27."""
    return b"\x28\xb5\x2f\xfd" + bytes([0b10 << 6, 17 << 3]) + CHUNK_BYTES.to_bytes(4, "little") + blocks_of(GOOD)


def blocks_of(packed: bytes) -> bytes:
    return packed[zstandard.frame_header_size(packed) :]


def without_size() -> bytes:
    return bytes(zstandard.ZstdCompressor(write_content_size=False).compress(TEXT))


def of_size(size_bytes: int) -> bytes:
    return bytes(zstandard.ZstdCompressor().compress(bytes(size_bytes)))


def head_of(packed: bytes) -> bytes:
    return packed[: zstandard.frame_header_size(packed)]


def says_less_than_it_is() -> bytes:
    """A head that says one chunk, before blocks that become 16 of them."""
    return head_of(of_size(CHUNK_BYTES)) + blocks_of(of_size(16 * CHUNK_BYTES))


def says_more_than_it_is() -> bytes:
    return head_of(of_size(CHUNK_BYTES)) + blocks_of(of_size(CHUNK_BYTES // 2))


GOOD = pack(TEXT, 1) if codec.AVAILABLE else b""
HOSTILE = {
    "bomb that says so": lambda: of_size(1 << 30),
    "bomb that lies": says_less_than_it_is,
    "less than it says": says_more_than_it_is,
    "no size": without_size,
    "dictionary": with_dictionary,
    "trained dictionary": with_trained_dictionary,
    "large window": with_a_large_window,
    "empty": lambda: b"",
    "cut off": lambda: GOOD[:-1],
    "cut off in the head": lambda: GOOD[:5],
    "trailing byte": lambda: GOOD + b"\0",
    "two frames": lambda: GOOD + GOOD,
    "skippable frame": lambda: b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
    "skippable frame first": lambda: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + GOOD,
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(100),
    "no frame": lambda: b"weights of a small model",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_honest_peer_packs(name: str) -> None:
    packed = HOSTILE[name]()
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable):
            unpack(packed, 1, CHUNK_BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * MAX_FRAME_BYTES


def test_flipped_bits_are_undecodable_or_other_bytes_of_the_same_size() -> None:
    draw = random.Random(11)
    for _ in range(500):
        at, bit = draw.randrange(len(GOOD)), draw.randrange(8)
        bad = GOOD[:at] + bytes([GOOD[at] ^ 1 << bit]) + GOOD[at + 1 :]
        with contextlib.suppress(Undecodable):
            assert len(unpack(bad, 1, CHUNK_BYTES)) == CHUNK_BYTES  # its digest tells


@given(st.binary(max_size=200), st.sampled_from(PLANES), st.integers(1, MAX_FRAME_BYTES))
def test_noise_is_undecodable(data: bytes, planes: int, raw_bytes: int) -> None:
    with pytest.raises(Undecodable):
        unpack(data, planes, raw_bytes)


def test_a_wrong_number_of_planes_gives_other_bytes() -> None:
    assert unpack(pack(TEXT, 2), 4, len(TEXT)) != TEXT
