"""A crew for every module of tests that asks for one: three daemons that each test finds whole, and leaves checked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.crew import Crew


@pytest.fixture(scope="module")
def started_crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    crew = Crew(tmp_path_factory.mktemp("crew"))
    yield crew
    crew.close()


@pytest.fixture
def crew(started_crew: Crew) -> Iterator[Crew]:
    started_crew.mend()
    yield started_crew
    started_crew.mend()
    started_crew.ledger.check(started_crew.redis, started_crew.daemons)
