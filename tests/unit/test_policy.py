"""What a host should run, with the sentence that says why, and which versions it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.test_catalog import record

from modelsync.core import policy
from modelsync.core.catalog import ModelRecord
from modelsync.core.ids import ModelName, Version
from modelsync.core.policy import Wish

EMPTY = ModelRecord(ModelName("fraud"))
ALIASES = {"stable": Version(2), "lost": Version(9)}


@pytest.mark.parametrize(
    ("known", "node_pin", "wish"),
    [
        (EMPTY, None, Wish(None, "nothing is published yet")),
        (record(1, 2), None, Wish(Version(2), "version 2 is the latest")),
        (record(1, 2, desired=None), None, Wish(Version(2), "version 2 is the latest")),
        (record(1, 2, desired=1), None, Wish(Version(1), "version 1 was chosen over the head, 2")),
        (record(1, 2, pinned=1), None, Wish(Version(1), "the fleet is pinned to version 1", pinned=True)),
        (record(1, 2, pinned=1), 2, Wish(Version(2), "this host's config pins version 2", pinned=True)),
        (record(1, 2), "1", Wish(Version(1), "this host's config pins version 1", pinned=True)),
        (
            record(1, 2, 3, aliases=ALIASES),
            "stable",
            Wish(Version(2), "this host's config pins version 2 (alias stable)", pinned=True),
        ),
        (record(1), 5, Wish(None, "this host's config pins 5, which is not published: waiting for it", waiting=True)),
        (
            record(1, aliases=ALIASES),
            "lost",
            Wish(None, "this host's config pins 'lost', which is not published: waiting for it", waiting=True),
        ),
        (EMPTY, "stable", Wish(None, "this host's config pins 'stable', which is not published: waiting for it", True)),
    ],
)
def test_what_a_host_should_run(known: ModelRecord, node_pin: int | str | None, wish: Wish) -> None:
    assert policy.wanted(known, node_pin) == wish


@pytest.mark.parametrize(
    ("fields", "keep", "active", "previous", "wanted", "kept"),
    [
        ({}, 1, None, None, None, {6}),
        ({}, 3, None, None, 6, {4, 5, 6}),
        ({}, 99, 6, 5, 6, {1, 2, 3, 4, 5, 6}),
        ({}, 1, 2, 1, 6, {1, 2, 6}),
        ({"pinned": 3}, 1, 3, None, 3, {3, 6}),
        ({"desired": 2}, 1, None, None, 2, {2, 6}),
        ({"aliases": {"stable": Version(1)}}, 1, 6, None, 6, {1, 6}),
        ({}, 1, 6, None, 4, {4, 6}),  # its own pin
        ({}, 1, 77, None, 6, {6, 77}),  # what runs is kept even if the fleet forgot it
    ],
)
def test_what_a_host_keeps(
    fields: dict[str, Any], keep: int, active: int | None, previous: int | None, wanted: int | None, kept: set[int]
) -> None:
    known = record(1, 2, 3, 4, 5, 6, **fields)
    wish = Wish(Version(wanted) if wanted else None, "test")
    assert policy.retained(known, keep, 0, active, previous, wish) == kept  # type: ignore[arg-type]


def test_an_empty_record_keeps_nothing() -> None:
    assert policy.retained(EMPTY, 5, 0, None, None, Wish(None, "")) == frozenset()


@pytest.mark.parametrize(
    ("keep_days", "kept"), [(0, {4, 5, 6}), (3, {4, 5, 6}), (2, {4, 5, 6}), (1, {5, 6}), (0.5, {6})]
)
def test_age_is_measured_between_publishes(keep_days: float, kept: set[int]) -> None:
    known = record(1, 2, 3, 4, 5, 6)
    versions = {n: replace(entry, created_ms=n * policy.DAY_MS) for n, entry in known.versions.items()}
    known = replace(known, versions=versions)
    assert policy.retained(known, 3, keep_days, None, None, Wish(Version(6), "")) == kept
    assert policy.retained(known, 3, keep_days, Version(1), None, Wish(Version(6), "")) == {1, *kept}
