"""How quick a way is, from windows of what was sent there: only a full link shows it."""

from __future__ import annotations

import pytest

from modelsync.core.compression.way import ENOUGH_BYTES, LEAST_S, TRUSTED_S, Way, Window

MIB = 1 << 20
GIGABIT = 125e6


def plain(size_bytes: int, busy_s: float, held_s: float = 0.0) -> Window:
    return Window(size_bytes, busy_s, held_s, busy_s)


def test_nothing_is_known_before_enough_has_arrived() -> None:
    way = Way()
    assert not way.saw(plain(ENOUGH_BYTES - 1, 0.01), 0.0, plain=True)
    assert way.bytes_per_s is None and not way.may_be_quicker(1e9)
    assert way.saw(plain(ENOUGH_BYTES, 0.01), 0.0, plain=True)
    assert way.bytes_per_s == pytest.approx(ENOUGH_BYTES / 0.01)


def test_a_link_that_never_was_busy_is_quick_and_finite() -> None:
    way = Way()
    way.saw(plain(2 * MIB, 0.0), 0.0, plain=True)
    assert way.bytes_per_s == 2 * MIB / LEAST_S


def test_packed_chunks_that_leave_the_link_idle_do_not_make_it_quick() -> None:
    """A token bucket of 1 Gbit/s, a chunk of 150 KB every 2 ms: each passes at once, in what the bucket saved up."""
    way = Way()
    way.saw(plain(8 * MIB, 8 * MIB / GIGABIT), 0.0, plain=True)
    for n in range(1, 20):
        way.saw(Window(n * 150_000, n * 0.0001, 0.0, n * 0.002), 0.002 * n, plain=False)
    assert way.bytes_per_s == pytest.approx(GIGABIT)


def test_what_arrived_is_the_least_that_a_link_does() -> None:
    way = Way()
    way.saw(Window(2 * MIB, 0.001, 0.0, 0.02), 0.0, plain=False)
    assert way.bytes_per_s == 2 * MIB / 0.02
    way.saw(Window(MIB, 0.001, 0.0, 0.02), 0.0, plain=False)
    assert way.bytes_per_s == 2 * MIB / 0.02
    assert way.may_be_quicker(0.0)


def test_packed_chunks_that_fill_the_link_show_what_it_is() -> None:
    way = Way()
    way.saw(plain(MIB, 0.001), 0.0, plain=True)
    way.saw(Window(MIB, MIB / 12.5e6, 0.0, 1.1 * MIB / 12.5e6), 1.0, plain=False)
    assert way.bytes_per_s == pytest.approx(12.5e6)


def test_a_receiver_that_unpacks_slowly_is_no_slow_link() -> None:
    way = Way()
    way.saw(plain(8 * MIB, 0.001), 0.0, plain=True)
    quick = way.bytes_per_s
    way.saw(Window(MIB, 0.1, 0.095, 0.1), 1.0, plain=False)
    assert way.bytes_per_s == quick


def test_a_link_may_have_become_quicker_behind_packed_chunks() -> None:
    way, idle = Way(), Window(MIB, 0.001, 0.0, 0.02)
    way.saw(plain(8 * MIB, 8 * MIB / GIGABIT), 0.0, plain=True)
    assert not way.may_be_quicker(2 * TRUSTED_S)  # nothing was packed since
    way.saw(idle, 1.0, plain=False)
    assert not way.may_be_quicker(TRUSTED_S - 0.1)
    assert way.may_be_quicker(TRUSTED_S)
    way.saw(plain(4 * MIB, 4 * MIB / 1e9), TRUSTED_S, plain=True)
    assert way.bytes_per_s == pytest.approx(1e9) and not way.may_be_quicker(TRUSTED_S)
