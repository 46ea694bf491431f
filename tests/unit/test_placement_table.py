"""What ``modelsync status`` says of placements, word for word: an operator reads it in the night."""

from __future__ import annotations

import pytest

from modelsync.cli import placement_table

GIB = 1 << 30
DOCUMENT = {
    "nodes": [
        {"id": "one", "state": "ok", "capacity_bytes": 100 * GIB},
        {"id": "two", "state": "ok", "capacity_bytes": 50 * GIB, "leaving": True},
        {"id": "three", "state": "lost", "capacity_bytes": 50 * GIB},
        {"id": "four", "state": "ok", "disk_full": True},
        {"id": "five", "state": "ok", "leaving": True},
    ],
    "placement": {
        "fraud": {
            "mode": "partitioned", "size_bytes": GIB, "copies": 2, "owners": ["one", "three"], "holding": 1, "living": 2
        },
        "big": {
            "mode": "partitioned", "size_bytes": 5 * GIB, "copies": 2, "owners": ["one", "two", "gone"],
            "holding": 1, "living": 1,
            "parts": [
                {"owners": ["one", "two"], "holding": 2, "living": 2, "size_bytes": 3 * GIB},
                {"owners": ["two", "gone"], "holding": 1, "living": 1, "size_bytes": 2 * GIB},
            ],
        },
        "common": {"mode": "shared", "size_bytes": 7},
    },
    "placement_plan": [
        {"model": "big part 2", "to": "gone", "size_bytes": 2 * GIB, "living": 1},
        {"model": "fraud", "to": "four", "size_bytes": GIB, "living": 2},
    ],
}  # fmt: skip

EXPECTED = """
HOST   OWNS  BYTES    DISK       NOTE
five   0     0 B      -          leaving: owns nothing any more, can be stopped
four   0     0 B      -          disk full: given no more
gone   1     2.0 GiB  -          not there; others serve its models, and it is replaced after replace_after_s
one    2     4.0 GiB  100.0 GiB  -
three  1     1.0 GiB  50.0 GiB   not there; others serve its models, and it is replaced after replace_after_s
two    2     5.0 GiB  50.0 GiB   leaving: is being emptied

MODEL     KEPT         SIZE     OWNERS      COPIES
big       in 2 parts   5.0 GiB  -           1 of 2
  part 1  -            3.0 GiB  one, two    2 of 2
  part 2  -            2.0 GiB  two, gone   1 of 2
common    shared       7 B      -           -
fraud     partitioned  1.0 GiB  one, three  1 of 2 (+1)

to copy: 2, 3.0 GiB; what is rarest goes first
  big part 2 to gone, 2.0 GiB, 1 living copy; waits for it to return, or to be replaced
  fraud to four, 1.0 GiB, 2 living copies
"""


def test_what_an_operator_reads(capsys: pytest.CaptureFixture[str]) -> None:
    placement_table.show(DOCUMENT)
    assert capsys.readouterr().out == EXPECTED


def test_a_fleet_that_holds_everything_everywhere_is_not_told_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    placement_table.show({"nodes": DOCUMENT["nodes"]})
    assert capsys.readouterr().out == ""


def test_what_is_wrong_with_many_models_is_one_line() -> None:
    lines = {f"m{number}": {"trouble": "missing: c"} for number in range(7)}
    document = {"placement": {**lines, "other": {"trouble": "missing: d"}, "well": {}}}
    assert placement_table.troubles(document) == ["m0, m1, m2, m3, m4 and 2 more: missing: c", "other: missing: d"]
    assert placement_table.troubles({"placement": {"m": {"trouble": "t"}}}) == ["m: t"]
    assert placement_table.troubles({}) == []
