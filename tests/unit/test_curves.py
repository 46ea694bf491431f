"""Which curves a server's statistics make, and that they can be drawn."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from modelsync.core import curves
from modelsync.core.curves import Bars, Heat, Lines
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.edges.host import plots


def step(t_s: int, requests: int, misses: int, loads: int = 0, p50_s: float | None = 0.001) -> dict[str, Any]:
    return {
        "t_s": t_s, "requests": requests, "hits": requests - misses, "misses": misses, "loads": loads,
        "load_s": 0.5 * loads, "evictions": 0, "latency_p50_s": p50_s, "latency_p99_s": p50_s and 10 * p50_s,
    }  # fmt: skip


LOAD = {"read_s": 0.1, "verify_s": 0.0, "deserialise_s": 0.7, "warm_up_s": 0.2}
VERSION = {"requests": 30, "hits": 27, "misses": 3, "loads": 2, "evictions": 1, "size_bytes": 5, "load": LOAD}
STATS = {
    "models": {"fraud": {"13": VERSION, "9": {**VERSION, "loads": 0}}, "idle": {}},
    "timeseries": {"fraud": [step(1000, 10, 3, 2), step(1010, 20, 0)], "ranking": [step(1010, 60, 20)], "idle": []},
    "client": {},
}


def panel(title: str) -> Any:
    return next(panel for panel in curves.panels(curves.parse(STATS)) if panel.title.startswith(title))


def test_figures_of_each_version() -> None:
    nine, thirteen = curves.parse(STATS).models
    assert (nine.version, nine.load_s) == ("9", None)
    assert (thirteen.version, thirteen.hit_rate, thirteen.load_s) == ("13", 0.9, 0.5)


def test_the_hit_rate_is_of_all_models_together() -> None:
    assert panel("Hit rate").lines == {"hits": [(0.0, 70.0), (10.0, 75.0)]}


def test_loads_their_time_and_the_latency() -> None:
    assert panel("Loads").lines["loads"] == [(0.0, 2.0), (10.0, 0.0)]
    assert panel("Time of a load").lines == {"mean": [(0.0, 500.0)]}
    assert panel("Latency, 99th").lines["fraud"] == [(0.0, 10.0), (10.0, 10.0)]
    assert list(panel("Requests").lines) == ["ranking", "fraud"]  # the busiest first, the idle one not at all


def test_cold_starts_are_split_and_only_of_what_was_loaded() -> None:
    bars = panel("Cold start")
    assert bars.labels == ["fraud 13"]
    assert bars.parts == {"read": [50.0], "verify": [0.0], "deserialise": [350.0], "warm-up": [100.0]}


def test_hot_models_by_time() -> None:
    heat = panel("Hot models")
    assert (heat.rows, heat.columns) == (["ranking", "fraud"], ["0", "10"])
    assert heat.values == [[0.0, 60.0], [10.0, 20.0]]


def test_a_time_in_which_nothing_happened_is_a_gap_not_a_slope(tmp_path: Path) -> None:
    """Steps without anything are left out by the server: a line across them would tell of requests all the time."""
    stats = {**STATS, "timeseries": {"fraud": [step(1000, 10, 3, 2), step(1010, 20, 0), step(1400, 5, 0)]}}
    drawn = curves.panels(curves.parse(stats))
    points = next(panel for panel in drawn if panel.title == "Requests").lines["fraud"]
    assert [at_s for at_s, _ in points] == [0.0, 10.0, 20.0, 400.0]
    assert [math.isnan(value) for _, value in points] == [False, False, True, False]
    plots.draw(drawn, tmp_path / "curves.svg", "gaps")
    assert "nan" not in (tmp_path / "curves.svg").read_text().lower()


def test_a_server_that_did_nothing_has_no_curves() -> None:
    assert curves.panels(curves.parse({"models": {}, "timeseries": {}})) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("models"),
        lambda d: d.update(timeseries=7),
        lambda d: d["timeseries"]["fraud"].append({}),
        lambda d: d["timeseries"]["fraud"][0].update(requests="many"),
        lambda d: d["timeseries"]["fraud"][0].update(latency_p50_s=[]),
        lambda d: d["models"]["fraud"].update({"14": None}),
        lambda d: d["models"]["fraud"]["13"].update(load=3),
    ],
)
def test_what_is_no_statistics_is_refused(change: Any) -> None:
    document = copy.deepcopy(STATS)
    change(document)
    with pytest.raises(MalformedMessage, match="/stats"):
        curves.parse(document)


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_every_kind_of_panel_can_be_drawn(tmp_path: Path, suffix: str, begins: bytes) -> None:
    found = curves.panels(curves.parse(STATS))
    assert {type(panel) for panel in found} == {Lines, Bars, Heat}
    path = tmp_path / f"curves{suffix}"
    plots.draw(found, path, "title")
    assert path.read_bytes().startswith(begins)


def test_a_file_of_another_kind_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(BadName, match=r"\.png or \.svg"):
        plots.require_drawable(tmp_path / "curves.gif")


@pytest.mark.parametrize(
    ("totals", "end"),
    [
        ([], 1.0),
        ([0.0, 0.0], 1.0),
        ([10.0, 20.0, 15.0], 21.0),
        ([5000.0, 20.0, 15.0, 12.0], 26.0),  # one that dwarfs the rest is cut off
        ([5000.0, 4000.0, 20.0, 15.0, 12.0, 10.0, 9.0, 8.0], 26.0),
        ([900.0, 800.0, 700.0, 20.0], 945.0),  # those are no exception
        ([5000.0, 0.0, 0.0, 0.0], 5250.0),
    ],
)
def test_a_bar_that_dwarfs_the_others_is_cut_off(totals: list[float], end: float) -> None:
    assert plots.end_of_bars(totals) == pytest.approx(end)
