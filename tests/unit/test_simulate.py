"""`modelsync simulate placement`: what it says of fleets that one describes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelsync.cli.simulate import placement_command


def run(*words: str) -> Result:
    return CliRunner().invoke(placement_command, words)


def lines(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*words, "--json").output)
    return found


def test_the_bars_of_a_fleet_of_eight() -> None:
    placed, joined, left = lines()
    assert placed["busiest"] <= 1.25
    assert joined["moved_share"] <= 1.2 / 9
    assert (placed["lacking_copies"], left["nodes"]) == (0, 8)


def test_more_copies_than_nodes_are_said() -> None:
    words = ("--nodes", "3", "--models", "10", "--copies", "5")
    assert [line["lacking_copies"] for line in lines(*words)] == [20, 10, 20]
    assert "! placed: 20 copies lie nowhere: there are fewer nodes than copies" in run(*words).output
    assert "!" not in run().output


@pytest.mark.parametrize("words", [("--weights", "1,x"), ("--weights", "0"), ("--size", "7zb"), ("--nodes", "0")])
def test_what_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2
