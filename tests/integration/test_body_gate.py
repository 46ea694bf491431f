"""How many bodies leave a node at once: what is above waits a little, and what is above that is told to come again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from tests.integration.http_fixture import FakeNode, serving


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


async def test_above_the_places_a_request_waits_and_is_then_told_to_come_again(node: FakeNode) -> None:
    digest = node.hold(b"x" * (64 << 20))
    limits = {"max_bodies": 2, "max_waiting_bodies": 1, "body_wait_s": 0.3, "drain_s": 0.2}
    async with serving(node, **limits) as server, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{server.port}/v1/objects/{digest}"
        held = [await http.get(url) for _ in range(2)]  # their heads have come; nobody reads their bodies
        async with http.get(url) as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        waiting = asyncio.create_task(http.get(url))
        held.pop().close()
        async with await waiting as response:
            assert response.status == 200
        held.pop().close()
