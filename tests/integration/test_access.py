"""How a command reaches a fleet when daemons break off: a question may go on to another one, an order may not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from modelsync.access import Access
from modelsync.config import SecuritySection
from modelsync.core.errors import PeerBrokeOff, PeerUnavailable
from modelsync.core.ids import FleetName, ModelName


class Fleet(Access):
    """A fleet whose daemons are these, the primary first."""

    def __init__(self, stack: contextlib.AsyncExitStack, urls: list[str]) -> None:
        super().__init__(stack, None, 5.0, None, "redis://nobody", FleetName("test"), SecuritySection())
        self.urls = urls

    async def _urls(self) -> list[str]:
        return self.urls


@contextlib.asynccontextmanager
async def breaking_off(asked: list[str], name: str) -> AsyncIterator[str]:
    """A daemon that takes a request, notes it, and dies."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(name)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_order_that_may_have_been_carried_out_is_not_given_again() -> None:
    """``rollback`` twice would go back two versions."""
    asked: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(breaking_off(asked, "first"))
        second = await stack.enter_async_context(breaking_off(asked, "second"))
        with pytest.raises(PeerBrokeOff, match="may have been done"):
            await Fleet(stack, [first, second]).command("rollback fraud", "test")
    assert asked == ["first"]


async def test_a_question_goes_on_to_the_next_daemon() -> None:
    asked: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(breaking_off(asked, "first"))
        second = await stack.enter_async_context(breaking_off(asked, "second"))
        with pytest.raises(PeerBrokeOff):
            await Fleet(stack, [first, second]).model(ModelName("fraud"))
    assert set(asked) == {"first", "second"}


async def test_an_order_that_never_left_is_given_to_the_next_daemon() -> None:
    asked: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        second = await stack.enter_async_context(breaking_off(asked, "second"))
        with pytest.raises(PeerUnavailable):
            await Fleet(stack, ["http://127.0.0.1:1", second]).command("rollback fraud", "test")
    assert asked == ["second"]
