"""The bar of commands that wait, and what moves on a host, as reports have it."""

from __future__ import annotations

import io

import pytest

from modelsync.cli import progress, status
from modelsync.cli.progress import Bar, duration, rendered
from modelsync.ports import Progress
from modelsync.runtime.under_way import UnderWay

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            {"done_bytes": 5 * MIB, "total_bytes": 20 * MIB, "rate_bytes_per_s": MIB, "left_s": 15.0},
            "sending  [###.........]   25 %  5.0 MiB of 20.0 MiB  1.0 MiB/s  15 s left",
        ),
        (
            {"done_bytes": 0, "total_bytes": 20 * MIB, "rate_bytes_per_s": None, "left_s": None},
            "sending  [............]    0 %  0 B of 20.0 MiB",
        ),
        (
            {"done_bytes": 7, "total_bytes": 7, "rate_bytes_per_s": 7, "left_s": 0.0},
            "sending  [############]  100 %  7 B of 7 B  7 B/s",
        ),
        (
            {"done_bytes": 0, "total_bytes": 0, "rate_bytes_per_s": None, "left_s": 0.0},
            "sending  [############]  100 %  0 B of 0 B",
        ),
    ],
)
def test_a_bar_says_what_is_known(line: dict[str, object], text: str) -> None:
    assert rendered("sending", line) == text


def test_times_as_people_say_them() -> None:
    found = [duration(seconds) for seconds in (0.2, 59.4, 60, 200, 3599, 7500)]
    assert found == ["1 s", "59 s", "1 min 0 s", "3 min 20 s", "59 min 59 s", "2 h 5 min"]


def test_a_terminal_sees_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    terminal = Terminal()
    bar = Bar(quiet=False, stream=terminal)
    for step in range(11):
        bar.show("sending", step * MIB, 10 * MIB)
        now[0] += 0.03
    bar.say("it broke\x1b[31m off")
    bar.end()
    text = terminal.getvalue()
    assert text.count("\r") == 6, "not for each of eleven steps, but the last one, and the two lines made empty"
    assert "100 %" in text and "it broke\N{REPLACEMENT CHARACTER}[31m off\n" in text
    assert text.endswith("\r\x1b[K")


@pytest.mark.parametrize("quiet", [False, True])
def test_elsewhere_only_what_is_said_is_seen(quiet: bool) -> None:
    stream = Terminal() if quiet else io.StringIO()
    bar = Bar(quiet=quiet, stream=stream)
    bar.show("sending", 1, 2)
    bar.note("waiting")
    bar.say("it broke off")
    bar.end()
    assert stream.getvalue() == "it broke off\n"


class Clock:
    now_s = 10.0

    def boottime_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 0


def test_what_moves_is_told_by_model_and_forgotten_when_it_ends() -> None:
    clock, pulls, uploads = Clock(), {"fraud": Progress(100 * MIB, 0)}, dict[str, Progress]()
    under_way = UnderWay(pulls=lambda: pulls, uploads=lambda: uploads, clock=clock)
    assert under_way.lines()["transfers"]["fraud"]["rate_bytes_per_s"] is None
    clock.now_s, pulls["fraud"].done_bytes = 14.0, 40 * MIB
    uploads["ranker"] = Progress(10, 5)
    lines = under_way.lines()
    assert lines["transfers"] == {
        "fraud": {
            "done_bytes": 40 * MIB, "total_bytes": 100 * MIB, "rate_bytes_per_s": 10 * MIB, "left_s": 6.0,
        },
    }  # fmt: skip
    assert lines["uploads"]["ranker"]["done_bytes"] == 5 and lines["scrub"] == {}
    pulls.clear()
    under_way.lines()
    pulls["fraud"], clock.now_s = Progress(100 * MIB, 50 * MIB), 15.0
    assert under_way.lines()["transfers"]["fraud"]["rate_bytes_per_s"] is None, "another pull"
    under_way.scrub = Progress(8, 4)
    assert under_way.lines()["scrub"]["total_bytes"] == 8


def node(**changed: object) -> dict[str, object]:
    line = {"active": 1, "wanted": 2, "state": "pulling", "error": None, "why": "version 2 is the latest", **changed}
    return {"id": "gpu-02", "role": "replica", "state": "ok", "last_seen_s": 0.1, "url": "", "models": {"fraud": line}}


@pytest.mark.parametrize(
    ("line", "moving", "trouble"),
    [
        ({}, True, ""),  # it is on its way, and the lines above say how far
        ({}, False, "! gpu-02: fraud: version 2 is the latest"),
        ({"error": "nobody has it"}, True, "! gpu-02: fraud: nobody has it"),
        ({"why": "config pins 2"}, True, "! gpu-02: fraud: config pins 2"),
    ],
)
def test_a_pull_under_way_is_no_trouble(
    line: dict[str, object], moving: bool, trouble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    transfers = {"fraud": {"done_bytes": 1, "total_bytes": 2, "rate_bytes_per_s": None, "left_s": None}}
    shown = node(**line) | ({"transfers": transfers} if moving else {})
    status._show_troubles({"nodes": [shown]})
    assert capsys.readouterr().out.strip() == trouble


def test_one_fault_of_a_host_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    full = "The disk is full: free space. [path=/state, needed_bytes=%d]"
    line = {"active": None, "wanted": 1, "state": "failed", "error": None, "why": ""}
    shown = node() | {"models": {f"m{n}": {**line, "error": full % n} for n in range(8)}}
    shown["models"]["other"] = {**line, "error": "nobody has it"}  # type: ignore[index]
    status._show_troubles({"nodes": [shown]})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "! gpu-02: m0, m1, m2, m3, m4 and 3 more: The disk is full: free space. [path=/state, needed_bytes=0]",
        "! gpu-02: other: nobody has it",
    ]
